"""Closed, full and cut-off output, odd locales and terminals, limits of the machine: the work goes on, or one line."""

import os
import subprocess
import sys

import pytest

from tests.cli.scripts import TRAIN
from tests.conftest import ROOT


def shell(folder, name, after, before="", **environment):
    """Trains in a shell with `after` behind the command; (status, output, the run's record exists)."""
    script, *flags = TRAIN
    line = " ".join([before, sys.executable, str(ROOT / script), *flags, "--name", name, after])
    done = subprocess.run(["bash", "-c", line], cwd=folder, timeout=300, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    return done.returncode, done.stdout.decode(errors="replace"), (folder / f"runs/{name}/record.json").exists()


@pytest.mark.parametrize("name, after, status", [
    ("head", "2>&1 | head -1; exit ${PIPESTATUS[0]}", 1), ("error-full", "2>/dev/full", 0),
    ("out-full", ">/dev/full", 1), ("all-closed", "<&- >&- 2>&-", 1)])
def test_output_that_nobody_takes_does_not_end_the_work(contest, name, after, status):
    ended, output, saved = shell(contest, name, after)
    assert saved and ended == status and "Traceback" not in output
    if name == "out-full":
        assert output.splitlines()[-1].startswith("error: the results could not be printed")


def test_odd_locales_and_terminals(contest):
    for name, environment in (("c", dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")),
                              ("narrow", dict(PYTHONIOENCODING="ascii", TERM="dumb", COLUMNS="60"))):
        ended, output, saved = shell(contest, f"locale-{name}", "2>&1", **environment)
        assert ended == 0 and saved and "Traceback" not in output, output


@pytest.mark.parametrize("flags", ["-h", "--print-config"])
@pytest.mark.parametrize("after", [">/dev/full", ">&-"])
def test_help_that_could_not_be_printed_is_no_success(contest, flags, after):
    line = f"{sys.executable} {ROOT / 'train.py'} {flags} {after}"
    done = subprocess.run(["bash", "-c", line], cwd=contest, capture_output=True, text=True)
    assert done.returncode == 1 and "could not be printed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_left_over_rank_is_refused_at_once(contest, rank):
    ended, output, saved = shell(contest, f"rank-{rank}", "2>&1", PMI_SIZE="2", PMI_RANK=rank)
    assert ended == 2 and not saved and "unset PMI_RANK and PMI_SIZE" in output and "Traceback" not in output


def test_a_file_in_place_of_the_runs_folder_is_said(contest):
    (contest / "file").write_text("")
    ended, output, _ = shell(contest, "x", "--runs file 2>&1")
    assert ended == 2 and "Traceback" not in output and "error: " in output


def test_python_without_the_packages_finds_the_checkouts_own(tmp_path):
    """A Python in which tqdm is missing goes on in .venv, or says what to type."""
    (tmp_path / "checkout/jclip_fewshot/cli").mkdir(parents=True)
    for name in ("jclip_fewshot/__init__.py", "jclip_fewshot/cli/__init__.py", "jclip_fewshot/cli/start.py"):
        (tmp_path / "checkout" / name).write_text((ROOT / name).read_text())
    (tmp_path / "checkout/train.py").write_text("import jclip_fewshot.cli.start\nprint('went on')\n")
    bare = [sys.executable, "-I", "-S", "-c", "import runpy, sys; sys.path.insert(0, 'checkout'); "
            "sys.argv = ['checkout/train.py', '--demo']; runpy.run_path('checkout/train.py', run_name='__main__')"]
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "make demo" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "checkout/.venv/bin").mkdir(parents=True)
    (tmp_path / "checkout/.venv/ready").write_text("")
    (tmp_path / "checkout/.venv/bin/python").write_text('#!/bin/sh\necho ".venv was asked: $*"\n')
    (tmp_path / "checkout/.venv/bin/python").chmod(0o755)
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and ".venv was asked: " in done.stdout and "went on" not in done.stdout


def test_a_crash_in_a_library_says_where(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import jclip_fewshot.cli.start, os, signal\n\ndef work():\n    os.kill(os.getpid(), "
                      "signal.SIGSEGV)\n\nwork()\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    assert done.returncode == -11 and "Segmentation fault" in done.stderr and "in work" in done.stderr
