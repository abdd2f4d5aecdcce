"""Calls of the scripts, for their tests."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from unittest import mock

from jclip_fewshot import console
from jclip_fewshot.__main__ import main as table_main
from jclip_fewshot.backend import runtime
from jclip_fewshot.cli import command, start
from tests.conftest import ROOT

TRAIN = ("train.py", "--data", ".", "--features", "features.npz", "--methods", "tip_adapter,gda")


def call(folder, *line, **environment):
    """Runs a script of the checkout with `folder` as working directory."""
    script, *arguments = line
    begin = [sys.executable] + (["-m", "jclip_fewshot"] if script == "jclip_fewshot" else [str(ROOT / script)])
    inherited = {name: value for name, value in os.environ.items() if name != runtime.DEVICE_VARIABLE}
    return subprocess.run(begin + [str(argument) for argument in arguments], cwd=folder, timeout=600,
                          env={**inherited, "PYTHONPATH": str(ROOT), **environment}, capture_output=True,
                          text=True)


def call_here(folder, *line):
    """The same in this process, in a tenth of the time: for commands that end before anything is encoded."""
    script, *arguments = map(str, line)
    table = script == "jclip_fewshot"
    main = table_main if table else runpy.run_path(str(ROOT / script))["main"]
    before = os.getcwd(), sys.argv, console.quiet, console.verbose
    out, err, status = io.StringIO(), io.StringIO(), 0
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), \
            mock.patch.object(start, "signals_are_ours", return_value=False):  # it would end this process
        try:
            os.chdir(folder)
            console.quiet = console.verbose = False
            sys.argv = [str(ROOT / ("jclip_fewshot/__main__.py" if table else script)), *arguments]
            command.run(main)
        except SystemExit as end:
            status = end.code
        finally:
            os.chdir(before[0])
            _, sys.argv, console.quiet, console.verbose = before
    return subprocess.CompletedProcess(line, status, out.getvalue(), err.getvalue())


def fails(done, *said):
    """Status 2, one line that says it, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for words in said:
        assert words in lines[0], lines[0]
