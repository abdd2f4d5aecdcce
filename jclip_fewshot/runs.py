"""A run's folder: record.json, which a person reads, and model.npz, which test.py reads."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Dict, Sequence, Union

import numpy as np

from jclip_fewshot import __version__
from jclip_fewshot.config import MachineConfig, TrainConfig, checked
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage import records
from jclip_fewshot.storage.arrays import save_arrays, save_json

RECORD, MODEL, SHOTS = "record.json", "model.npz", "shots.txt"


def new_run(runs: Union[str, Path], name: str, board: str) -> Path:
    """The folder of a new run; `name`, or date, time and board. A run of the same name is replaced on saving."""
    if name and Path(name).name != name:
        raise UserError(f"--name {name}: a plain name, not a path; --runs says where runs lie")
    folder = Path(runs, name or time.strftime(f"%Y%m%d-%H%M%S-{board}"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_run(run: Union[str, Path], runs: Union[str, Path], demo: bool = False) -> Path:
    """`run`, or the newest finished run under `runs`: of the built-in contest with `demo`, else of another.

    Raises:
        UserError: there is none, or it was not finished.
    """
    if run:
        folder = Path(run)
        if not (folder / RECORD).is_file():
            raise UserError(f"--run {run}: no finished run there ({RECORD} is missing); python train.py makes one")
        return folder
    finished = sorted(Path(runs).glob(f"*/{RECORD}"), key=lambda record: record.stat().st_mtime, reverse=True)
    for record in finished:
        try:
            if load_record(record.parent)["config"]["demo"] == demo:
                return record.parent
        except UserError as error:
            warn(f"{error}; looking at the run before it")
    raise UserError(f"no finished run under {runs}: python train.py{' --demo' if demo else ''} makes one")


def repeated(settings: TrainConfig) -> TrainConfig:
    """The settings of the run that `--from-run` names, with its very shots; what the machine and the new
    run's folder are called comes from `settings`.

    Raises:
        UserError: no such run, or settings that this version does not know.
    """
    folder = find_run(settings.from_run, settings.runs)
    saved = load_record(folder)["config"]
    machine = {f.name for f in dataclasses.fields(MachineConfig)} | {"runs", "name", "from_run"}
    same = {name: value for name, value in saved.items() if name not in machine}
    kept = {name: value for name, value in vars(settings).items() if name in machine}
    return checked(TrainConfig, {**same, **kept, "shot_list": str(folder / SHOTS)})


def require_same_classes(folder: Path, record: dict, class_names: Sequence[str]) -> None:
    """Raises UserError where a data set's classes are not those that the run learned."""
    if record["classes"] != list(class_names):
        raise UserError(f"{folder} learned {len(record['classes'])} classes that are not the {len(class_names)} of "
                        "this data set, or in another order: train again, or give the right --run or --data")


def save_test(folder: Path, split: str, record: dict, arrays: Dict[str, np.ndarray]) -> None:
    """What a test run leaves in its run's folder: test_A.json and test_A.npz for split A."""
    save_arrays(folder / f"test_{split}.npz", {name: np.asarray(value) for name, value in arrays.items()})
    save_json(folder / f"test_{split}.json", record)


class Stopwatch:
    """Seconds of each stage: `lap(stage)` counts from the lap before."""

    def __init__(self) -> None:
        self.seconds: Dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def save_record(folder: Path, record: dict) -> None:
    """Writes the record as JSON, numbers and strings as a person reads them."""
    save_json(folder / RECORD, record)


def load_record(folder: Path) -> dict:
    """The record of a finished run, checked: see storage/records.py."""
    return records.load_record(folder / RECORD)


def versions() -> Dict[str, str]:
    """What ran: versions of this package, Python and the libraries that touch a number."""
    found = {"jclip_fewshot": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in ("jittor", "numpy", "pillow", "instant-clip-tokenizer", "ftfy", "onednn-cpu-gomp"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return {**found, "git commit": git_commit(Path(__file__).parents[1])}


def git_commit(checkout: Path) -> str:
    """The commit that a checkout stands at, "absent" where it is none. Read from its files: a child process that
    fails would be taken by Jittor for one of its own."""
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


def command_line() -> str:
    """How this process was called, as a line for the shell; `python -m` in place of the module's file."""
    program, *arguments = sys.argv
    python = Path(sys.executable).name
    if shutil.which(python) != sys.executable:  # an environment that is not active
        python = os.path.relpath(sys.executable) if Path.cwd() in Path(sys.executable).parents else sys.executable
    if Path(program).name == "__main__.py":
        arguments = ["-m", Path(program).parent.name, *arguments]
    else:
        arguments = [program, *arguments]
    return shlex.join([python, *arguments])
