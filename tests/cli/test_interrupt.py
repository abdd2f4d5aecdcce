"""Ctrl-C in a terminal: within two seconds, status 130, one line, nobody left behind. More moments by hand:

    python -m tests.cli.terminal --moments 40
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jclip_fewshot.data import demo
from tests.cli.terminal import press
from tests.conftest import ROOT

LIMIT = 2.0
TRAIN = [sys.executable, str(ROOT / "train.py")]
ENCODE = [*TRAIN, "--data", "data", "--model", str(demo.CHECKPOINT), "--methods", "tip_adapter", "--augment", "40",
          "--workers", "2"]
STOPPED_AT_IMAGES = (r"stopped; .*: (0 of 288 are encoded"
                     r"|[1-9]\d* of 288 are encoded and kept; the same command goes on from there)")
SOME_ENCODED = r"views: +[1-9][0-9]?%\|"  # on the bar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the demo contest in data/ and a finished run of it."""
    folder = tmp_path_factory.mktemp("interrupt")
    demo.prepare(folder / "data")
    shutil.rmtree(folder / "data/TestSetB", ignore_errors=True)
    subprocess.run([*ENCODE, "--augment", "0", "--name", "whole", "--quiet"], cwd=folder, check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    return folder


def stopped(done, status=130, limit=LIMIT):
    """One line, in time, and no process left; returns the line."""
    assert done.status == status, done
    assert done.seconds < limit, done
    assert "Traceback" not in done.screen and not done.left, done
    line, = done.said()
    assert line.startswith("stopped"), done
    return line


def encoded(line):
    """How many images a last line says are encoded."""
    return int(re.search(r"([0-9,]+) of 288", line).group(1).replace(",", ""))


@pytest.mark.parametrize("after", [0.0, 0.05, 0.15, 0.4])
def test_during_the_imports(folder, after):
    assert stopped(press([*TRAIN, "--data", "data"], folder, after)) in (
        "stopped", "stopped; features that are finished are kept in .cache")


@pytest.mark.parametrize("after", [0.1, 1.5])
def test_while_jittor_starts_and_sentences_are_encoded(folder, after):
    line = stopped(press([*ENCODE, "--name", "x", "--cache", f"cold{after}"], folder, after, "Jittor on"))
    assert "kept in cold" in line or re.fullmatch(STOPPED_AT_IMAGES, line)  # where the machine is fast


def test_while_encoding_and_the_next_run_goes_on(folder):
    cold = [*ENCODE, "--name", "stopped", "--cache", "cold"]
    line = stopped(press(cold, folder, 0.5, SOME_ENCODED))
    assert "are encoded and kept; the same command goes on" in line and "of 288" in line
    assert not (folder / "runs/stopped/record.json").exists()
    count = encoded(line)
    assert count > 0
    line = stopped(press(cold, folder, 0.2, " cached"))
    assert encoded(line) >= count


def test_without_a_cache_nothing_claims_to_be_kept(folder):
    line = stopped(press([*ENCODE, "--name", "x", "--cache", ""], folder, 3.0, "-wide features"))
    assert "kept" not in line and "cache" not in line


def test_a_second_ctrl_c_and_sigterm(folder):
    cold = [*ENCODE, "--name", "x", "--cache", "cold-too"]
    stopped(press(cold, folder, 2.0, "-wide features", again=0.05))
    stopped(press(cold, folder, 2.0, "-wide features", send=signal.SIGTERM), 143)
    stopped(press(cold, folder, 0.1, send=signal.SIGTERM), 143)


def test_while_the_heads_learn(folder):
    trained = [*TRAIN, "--data", "data", "--model", str(demo.CHECKPOINT), "--augment", "0", "--name", "x"]
    stopped(press(trained, folder, 0.1, "288 shots of"))
    stopped(press(trained, folder, 0.8, "288 shots of"))


def test_the_other_commands(folder, tmp_path):
    stopped(press([*TRAIN, "--demo"], tmp_path, 0.2, "draw the demo"))
    test = [sys.executable, str(ROOT / "test.py"), "--run", "runs/whole", "--cache", "cold-test"]
    stopped(press(test, folder, 0.2, "-wide features"))  # of 662 images, about a second's work
    validate = [sys.executable, "-m", "jclip_fewshot", "validate", "--data", "data", "--model", str(demo.CHECKPOINT),
                "--name", "v", "--cache", "cold-validate"]
    stopped(press(validate, folder, 1.0, "-wide features"))


@pytest.mark.parametrize("after", [0.1, 0.5, 0.9, 1.4])
@pytest.mark.parametrize("command", [("report", "runs/whole"), ("export", "runs/whole", "half.npz"),
                                     ("predict", "runs/whole", "data/TestSetA", "--cache", "")])
def test_commands_on_a_run(folder, command, after):
    """They end well where the machine is faster than the key."""
    done = press([sys.executable, "-m", "jclip_fewshot", *command], folder, after)
    assert done.status == 0 or stopped(done)
    left = {path.name for path in [*folder.iterdir(), *folder.glob("runs/whole/*")]}
    assert not any(name.startswith(".part") or name.endswith(".tmp") for name in left)


def test_jittor_does_not_answer_for_longer_than_the_grace(folder):
    """Python hears nothing while one call of Jittor's lasts; the watchdog does."""
    code = ("import sys; sys.modules['__main__'].__file__ = 'train.py'\n"
            "import jclip_fewshot.cli.start\n"
            "from jclip_fewshot.cli import command\n"
            "from jclip_fewshot.config import TrainConfig\n"
            "import hashlib\n"
            "def main():\n"
            "    command.set_up(TrainConfig(cache=''))\n"
            "    print('deaf', flush=True)\n"
            "    hashlib.pbkdf2_hmac('sha256', b'', b'', 100_000_000)\n"
            "command.run(main)")
    done = press([sys.executable, "-c", code], folder, 0.3, "deaf")
    assert stopped(done) == "stopped" and done.seconds > 0.5


def test_while_jittor_is_built(tmp_path):
    """In a home without a build: its compilers end too, and no half of a build is taken for a whole one."""
    done = press([*TRAIN, "--demo"], tmp_path, 4.0, "Building Jittor", JITTOR_HOME=str(tmp_path / "home"))
    stopped(done)
    left = [path.name for path in Path(tmp_path / "home/.cache/jittor").glob("jclip_built*")]
    assert not left


def test_a_background_job_that_ignores_ctrl_c_goes_on_ignoring_it(folder):
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "sys.modules['__main__'].__file__ = 'train.py'\n"
            "import jclip_fewshot.cli.start\n"
            "import os; os.kill(os.getpid(), signal.SIGINT); print('goes on')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "goes on\n"
