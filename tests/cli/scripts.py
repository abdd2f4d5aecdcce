"""Calls of the scripts, for their tests."""

import os
import subprocess
import sys

from jclip_fewshot.backend import runtime
from tests.conftest import ROOT

TRAIN = ("train.py", "--data", ".", "--features", "features.npz", "--methods", "tip_adapter,gda")


def call(folder, *command, **environment):
    """Runs a script of the checkout with `folder` as working directory."""
    script, *arguments = command
    line = [sys.executable] + (["-m", "jclip_fewshot"] if script == "jclip_fewshot" else [str(ROOT / script)])
    inherited = {name: value for name, value in os.environ.items() if name != runtime.DEVICE_VARIABLE}
    return subprocess.run(line + [str(argument) for argument in arguments], cwd=folder, timeout=600,
                          env={**inherited, "PYTHONPATH": str(ROOT), **environment}, capture_output=True,
                          text=True)


def fails(done, *said):
    """Status 2, one line that says it, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for words in said:
        assert words in lines[0], lines[0]
