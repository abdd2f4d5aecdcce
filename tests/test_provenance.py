"""How a result came about, and the commands that may follow it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jclip_fewshot import provenance


def test_stopwatch_counts_each_stage():
    watch = provenance.Stopwatch()
    time.sleep(0.02)
    watch.lap("sleep")
    watch.lap("nothing")
    assert watch.seconds["sleep"] > 0.015 > watch.seconds["nothing"] >= 0


def test_the_command_is_a_line_that_a_shell_runs(monkeypatch):
    module = str(Path(provenance.__file__).with_name("__main__.py"))
    monkeypatch.setattr(sys, "argv", [module, "report", "--out", "a b", "--help"])
    line = provenance.command_line()
    assert line.endswith(" -m jclip_fewshot report --out 'a b' --help")
    done = subprocess.run(line, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "usage: python -m jclip_fewshot report" in done.stdout
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "a b"])
    assert provenance.command_line().endswith("python train.py --data 'a b'")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jclip-fewshot", "runs"])
    assert provenance.command_line() == "jclip-fewshot runs"
    for program in ("python -m jclip_fewshot", "jclip-fewshot"):  # as the command table names its scripts
        monkeypatch.setattr(sys, "argv", [f"{program} train", "--data", "a b"])
        assert provenance.command_line().endswith(f"{program.replace('python ', '')} train --data 'a b'")
        assert "'python" not in provenance.command_line()


@pytest.mark.parametrize("program, train, predict", [
    ("train.py", "python train.py", "python -m jclip_fewshot predict"),
    ("../a b/test.py", "python '../a b/train.py'", "python -m jclip_fewshot predict"),
    ("python -m jclip_fewshot train", "python -m jclip_fewshot train", "python -m jclip_fewshot predict"),
    ("/x/jclip_fewshot/__main__.py", "python -m jclip_fewshot train", "python -m jclip_fewshot predict"),
    ("jclip-fewshot train", "jclip-fewshot train", "jclip-fewshot predict"),
    ("/usr/bin/jclip-fewshot", "jclip-fewshot train", "jclip-fewshot predict"),
    ("/x/pytest/__main__.py", "python train.py", "python -m jclip_fewshot predict")])
def test_the_next_command_is_called_as_this_one_was(monkeypatch, program, train, predict):
    monkeypatch.setattr(sys, "argv", [program])
    assert provenance.next_command("train") == train and provenance.next_command("predict") == predict


def test_the_commit_of_a_checkout(tmp_path):
    assert provenance.git_commit(tmp_path) == "absent"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert provenance.git_commit(tmp_path) == "absent"
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.git_commit(tmp_path) == head
    (tmp_path / "site-packages").mkdir()
    assert provenance.git_commit(tmp_path / "site-packages") == "absent"  # the commit of something else
