"""How a result came about: the command, the versions, the seconds; and the commands that may follow."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from jclip_fewshot import __version__

INSTALLED, MODULE = "jclip-fewshot", "python -m jclip_fewshot"  # the two names of the table of commands


class Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the seconds since the last lap as those of `stage`."""
        before, self._last = self._last, time.perf_counter()
        self.seconds[stage] = self._last - before


def made_by() -> dict[str, Any]:
    """Return how, when, where and by which versions this process runs, for a record."""
    return {"command": command_line(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "folder": os.getcwd(),
            "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that touch a number."""
    found = {"jclip_fewshot": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in ("jittor", "numpy", "pillow", "ftfy", "onednn-cpu-gomp"):
        found[name] = next((one.version for one in metadata.distributions(name=name)), "absent")
    return {**found, "git commit": git_commit(Path(__file__).parents[1])}


def git_commit(checkout: Path) -> str:
    """Return the commit that a checkout stands at, "absent" where it is none."""
    try:
        done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--show-prefix", "HEAD"], capture_output=True,
                              text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "absent"
    below, commit = done.stdout.split("\n")[:2]
    return "absent" if below else commit  # a package that is installed inside another checkout


def _called() -> list[str]:
    """How this process was called: [python, train.py], [python, -m, jclip_fewshot], [jclip-fewshot, train]."""
    program = Path(sys.argv[0])
    if sys.argv[0].startswith((f"{INSTALLED} ", f"{MODULE} ")):  # as the table names the scripts that it runs
        return sys.argv[0].split(" ")
    if program.name == INSTALLED:
        return [INSTALLED]
    return MODULE.split() if program.parts[-2:] == ("jclip_fewshot", "__main__.py") else ["python", sys.argv[0]]


def table_name() -> str:
    """Return what the table of commands is called here: `jclip-fewshot` or `python -m jclip_fewshot`."""
    return INSTALLED if _called()[0] == INSTALLED else MODULE


def next_command(command: str) -> str:
    """Return how to call another command from where this one was called: `python test.py`, `jclip-fewshot test`."""
    words = _called()
    if words[0] != "python" or len(words) > 2 or command not in ("train", "test"):
        return f"{table_name()} {command}"
    folder = Path(words[1]).parent if Path(words[1]).name in ("train.py", "test.py") else Path()
    return shlex.join(["python", str(folder / f"{command}.py")])


def command_line() -> str:
    """Return how this process was called, as a line for the shell."""
    words, python = _called(), Path(sys.executable).name
    if words[0] == "python":
        if shutil.which(python) != sys.executable:  # an environment that is not active
            python = os.path.relpath(sys.executable) if Path.cwd() in Path(sys.executable).parents else sys.executable
        words[0] = python
    return shlex.join([*words, *sys.argv[1:]])
