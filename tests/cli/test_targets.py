"""Where commands write: a target that cannot be written is one line before the work, and nothing is half-written."""

import os
import subprocess
import sys

import pytest

from jclip_fewshot.data import demo
from tests.cli.scripts import call, call_here, fails
from tests.conftest import ROOT
from tests.evaluation.suites import small_suite

BAD = ("/dev/full", "/proc/nothing/there.npz", "classes.txt/there.npz", "a.npz")  # a device, no folders, a folder


@pytest.fixture(scope="module")
def commands(contest, trained):
    """Each command that writes a file, up to the file's name."""
    small_suite(contest / "suite.npz")
    (contest / "a.npz").mkdir()
    assert call(contest, "test.py", "--run", trained, "--quiet").returncode == 0
    return {"convert": ("jclip_fewshot", "convert", demo.CHECKPOINT),
            "export": ("jclip_fewshot", "export", trained),
            "evaluate": ("jclip_fewshot", "evaluate", "--suite", "suite.npz", "--methods", "zero_shot", "--json")}


@pytest.mark.parametrize("name", ["convert", "export", "evaluate"])
@pytest.mark.parametrize("target", BAD)
def test_a_target_that_cannot_be_written(contest, commands, name, target):
    if name == "export" and not target.endswith(".npz"):  # it looks at the ending first
        (contest / "full.npz").unlink(missing_ok=True)
        (contest / "full.npz").symlink_to(target)
        target = "full.npz"
    before = sorted(contest.iterdir())
    done = call_here(contest, *commands[name], target)
    fails(done, target)
    assert "Jittor" not in done.stderr and sorted(contest.iterdir()) == before


@pytest.mark.parametrize("target", ["/dev/full", "/proc/nothing/there", "classes.txt", "classes.txt/there"])
def test_a_folder_for_the_report_that_cannot_be_written(contest, commands, trained, target):
    fails(call_here(contest, "jclip_fewshot", "report", trained, "--out", target), target)


def test_a_disk_that_fills_up_leaves_no_half(contest, commands):
    """A limit of a file's size stands for the disk: enough for the look at the start, too little for the file."""
    module, *rest = commands["convert"]
    line = " ".join([sys.executable, "-m", module, *map(str, rest), "full.safetensors"])
    before = sorted(contest.iterdir())
    done = subprocess.run(["bash", "-c", f"ulimit -f 70; {line}"], cwd=contest, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    fails(done, "full.safetensors: cannot be written: File too large")
    assert sorted(contest.iterdir()) == before
