"""Where commands write: a target that cannot be written is one line before the work, and nothing is half-written."""

import os
import shutil
import subprocess
import sys

import pytest

from jclip_fewshot.data import demo
from tests.cli.scripts import TRAIN, call, fails
from tests.conftest import ROOT

BAD = ("/dev/full", "/proc/nothing/there.npz", "classes.txt/there.npz", "TrainSet")  # a device, no folders, a folder


@pytest.fixture(scope="module")
def commands(contest, trained):
    """Each command that writes a file, up to the file's name."""
    from tests.evaluation.test_evaluate import small_suite
    small_suite(contest / "suite.npz")
    assert call(contest, "test.py", "--run", trained, "--quiet").returncode == 0
    return {"convert": ("jclip_fewshot", "convert", demo.CHECKPOINT),
            "export": ("jclip_fewshot", "export", trained),
            "evaluate": ("jclip_fewshot", "evaluate", "--suite", "suite.npz", "--heads", "zero_shot", "--json")}


@pytest.mark.parametrize("name", ["convert", "export", "evaluate"])
@pytest.mark.parametrize("target", BAD)
def test_a_target_that_cannot_be_written(contest, commands, name, target):
    if name == "export" and not target.endswith(".npz"):  # it looks at the ending first
        (contest / "full.npz").unlink(missing_ok=True)
        (contest / "full.npz").symlink_to(target)
        target = "full.npz"
    before = sorted(contest.iterdir())
    done = call(contest, *commands[name], target)
    fails(done, target)
    assert "Jittor" not in done.stderr and sorted(contest.iterdir()) == before


@pytest.mark.parametrize("target", ["/dev/full", "/proc/nothing/there", "classes.txt", "classes.txt/there"])
def test_a_folder_for_the_report_that_cannot_be_written(contest, commands, trained, target):
    fails(call(contest, "jclip_fewshot", "report", trained, "--out", target), target)


def test_a_disk_that_fills_up_leaves_no_half(contest, commands):
    """A limit of a file's size stands for the disk: enough for the look at the start, too little for the file."""
    module, *rest = commands["convert"]
    line = " ".join([sys.executable, "-m", module, *map(str, rest), "full.safetensors"])
    before = sorted(contest.iterdir())
    done = subprocess.run(["bash", "-c", f"ulimit -f 70; {line}"], cwd=contest, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    fails(done, "full.safetensors: cannot be written: File too large", "ulimit -f unlimited")
    assert sorted(contest.iterdir()) == before


def test_the_folder_in_which_it_was_started_is_deleted(contest, tmp_path):
    there = [contest / part if part in (".", "features.npz") else part for part in TRAIN]
    move = f"cd '{tmp_path}/gone'; rmdir '{tmp_path}/gone'; "
    for command in (there, ["test.py"], ["jclip_fewshot", "runs"]):
        (tmp_path / "gone").mkdir()
        script, *flags = map(str, command)
        script = "-m jclip_fewshot" if script == "jclip_fewshot" else f"'{ROOT / script}'"
        flags = " ".join(f"'{flag}'" for flag in flags)
        done = subprocess.run(["bash", "-c", f"{move} '{sys.executable}' {script} {flags}"], capture_output=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)},
                              text=True)
        fails(done, "has been deleted")


def make(folder, *words, **environment):
    """make in `folder`, told nothing by the make and the environment that these tests run under: VENV is theirs."""
    env = {name: value for name, value in os.environ.items() if name not in ("VENV", "PYTHON", "SUITE", "MAKEFLAGS",
                                                                            "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")}
    return subprocess.run(["make", *words], cwd=folder, env={**env, **environment}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_clean_takes_what_it_made_and_nothing_else(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    ours, yours = ("demo/complete.txt", "demo-2/complete.txt", ".venv/ready", ".cache/rows"), (
        "demo-mine/photo.jpg", "runs/one/record.json", "result.txt", "weights/ViT-B-32.pt")
    for name in ours + yours:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    done = make(tmp_path, "-s", "clean")
    assert done.returncode == 0 and "are yours and stay" in done.stdout
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *yours}


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_clean_leaves_a_folder_that_it_did_not_set_up(tmp_path):
    """VENV is often set by something else: a folder without our mark, or an empty name, is not ours to delete."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").write_text("")
    for venv in ("theirs", str(tmp_path / "theirs"), ""):
        done = make(tmp_path, "-s", "clean", VENV=venv)
        assert done.returncode == 0, done.stdout
    assert (tmp_path / "theirs/file").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_sets_up_once_and_runs_the_readmes_commands(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")

    def planned(target):
        done = make(tmp_path, "-n", target, "PYTHON=python3.9")
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert "python3.9 -m venv .venv" in planned("demo") and "--editable '.[test,report]'" in planned("demo")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/ready").write_text("")
    assert planned("demo").split("\n")[:2] == [".venv/bin/python train.py --demo", ".venv/bin/python test.py --demo"]
    assert all(line.startswith(".venv/bin/python -m pytest ") for line in planned("test").strip().split("\n"))
    os.utime(tmp_path / ".venv/ready", (0, 0))  # pyproject.toml has changed since
    assert "pip install" in planned("test")
