"""How a result came about: the command, the versions, the seconds; and the commands that may follow."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from jclip_fewshot import __version__
from jclip_fewshot.config import DEMO_SEED

INSTALLED, MODULE = "jclip-fewshot", "python -m jclip_fewshot"  # the two names of the table of commands


class Stopwatch:
    """Seconds of each stage: `lap(stage)` counts from the lap before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the seconds since the last lap as those of `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def made_by() -> dict[str, Any]:
    """Return how, when, where and by which versions this process runs, for a record."""
    return {"command": command_line(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "folder": os.getcwd(),
            "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that touch a number."""
    found = {"jclip_fewshot": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in ("jittor", "numpy", "pillow", "ftfy", "onednn-cpu-gomp"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return {**found, "git commit": git_commit(Path(__file__).parents[1])}


def git_commit(checkout: Path) -> str:
    """Return the commit that a checkout stands at, "absent" where it is none.

    It is read from git's files: a child process that fails would be taken by Jittor for one of its own.
    """
    try:
        folder = checkout / ".git"
        if folder.is_file():  # a worktree: "gitdir: PATH"
            folder = checkout / folder.read_text().split(":", 1)[1].strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name, common = head.split()[1], folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        if (shared / name).is_file():
            return (shared / name).read_text().strip()
        packed = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
        return next(parts[0] for parts in packed if parts[1:] == [name])
    except (OSError, ValueError, IndexError, StopIteration):
        return "absent"


def table_name() -> str:
    """Return what the table of commands is called here: `jclip-fewshot` or `python -m jclip_fewshot`."""
    name = Path(sys.argv[0]).name
    return INSTALLED if name == INSTALLED or sys.argv[0].startswith(f"{INSTALLED} ") else MODULE


def next_command(command: str) -> str:
    """Return how to call another command from where this one was called: `python test.py`, `jclip-fewshot test`."""
    program = Path(sys.argv[0])
    if command in ("train", "test") and program.name in ("train.py", "test.py"):
        return f"python {shlex.quote(str(program.with_name(command + '.py')))}"
    if table_name() == INSTALLED or _is_table():
        return f"{table_name()} {command}"
    return f"python {command}.py" if command in ("train", "test") else f"{MODULE} {command}"


def command_line() -> str:
    """Return how this process was called, as a line for the shell; `python -m` in place of the module's file."""
    program, *arguments = sys.argv
    python = Path(sys.executable).name
    if shutil.which(python) != sys.executable:  # an environment that is not active
        python = os.path.relpath(sys.executable) if Path.cwd() in Path(sys.executable).parents else sys.executable
    if program.startswith((f"{INSTALLED} ", f"{MODULE} ")):  # as the table names the scripts that it runs
        words = shlex.split(program)
        return shlex.join([*([python, *words[1:]] if words[0] == "python" else words), *arguments])
    if Path(program).name == INSTALLED:
        return shlex.join([INSTALLED, *arguments])
    if _is_table():
        return shlex.join([python, "-m", "jclip_fewshot", *arguments])
    return shlex.join([python, program, *arguments])


def _is_table() -> bool:
    """Whether this process runs the package's table of commands as a module."""
    program = Path(sys.argv[0])
    return sys.argv[0].startswith(f"{MODULE} ") or (program.name, program.parent.name) == ("__main__.py",
                                                                                          "jclip_fewshot")


def demo_flags(demo: bool, demo_seed: int | None) -> str:
    """Return " --demo" or " --demo-seed 7" for a command line."""
    return "" if not demo else " --demo" if demo_seed in (None, DEMO_SEED) else f" --demo-seed {demo_seed}"
