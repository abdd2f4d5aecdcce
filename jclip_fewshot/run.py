"""A run's folder, and the only place that opens or writes one: `Run.open`, `Run.chosen`, `Run.create`.

    record.json  shots.txt  model.npz     train.py: how it was made, from which images, what was learned
    test_A.json  test_A.npz  result.*     test.py: scores and answers to test set A, the submission

A folder that exists is never emptied or written over by another run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jclip_fewshot.config import DEMO_SEED, MachineConfig, TestConfig, TrainConfig, ValidateConfig, checked
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data import submission
from jclip_fewshot.data.data_set import DataSet, TestSet
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.formats.contest import CLASS_LISTS
from jclip_fewshot.data.shots import write_shot_list
from jclip_fewshot.errors import UserError, flag_of, shown
from jclip_fewshot.features.sources import Source, encoders_of, listed, reopen_source
from jclip_fewshot.methods.plan import GROUPS, OF
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.provenance import next_command
from jclip_fewshot.records import Record, TestRecord
from jclip_fewshot.storage.arrays import ANY, Schema, load_arrays, save_arrays
from jclip_fewshot.storage.files import require_writable, require_writable_folder
from jclip_fewshot.storage.json_files import read_json, write_json

RECORD, MODEL, SHOTS = "record.json", "model.npz", "shots.txt"
# of settings that are taken up again: those that decide on the shots, paths, and what is the new run's own
DRAW = ("shots", "seed", "select", "pool", "shot_list", "data", "board", "demo", "demo_seed", "skip_bad")
_PATHS = ("data", "weights", "prompts", "names", "templates", "descriptions", "support", "unlabelled", "shot_list",
          "features", "features_extra", "model")
_OWN = {f.name for f in fields(MachineConfig)} | {"runs", "name", "from_run", "run"}
Content = TypeVar("Content")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its checked record; the pipeline is read when it is asked for."""

    folder: Path
    record: Record

    @classmethod
    def open(cls, folder: str | Path, flag: str = "--run", runs: str | Path = "runs") -> Run:
        """Return the run in `folder`, or of that name under `runs`; flag: what named it. Raise UserError if none is."""
        found = Path(folder)
        if not found.exists() and found.name == str(folder):
            found = runs / found
        if not (found / RECORD).is_file():
            raise UserError(f"{flag} {folder}: no finished run there; {next_command('train')} makes one")
        return cls(found, read_json(found / RECORD, Record, "train again"))

    @classmethod
    def all(cls, runs: str | Path) -> list[Run]:
        """Return the finished runs under a folder, the newest first; those that cannot be read are named."""
        paths = sorted(Path(runs).glob(f"*/{RECORD}"), key=_age, reverse=True)
        return readable(lambda path: cls.open(path.parent), paths)

    @classmethod
    def chosen(cls, folder: str, runs: str | Path, demo: bool = False, demo_seed: int = DEMO_SEED,
               split: str = "") -> Run:
        """Return the run in `folder`, or the newest one under `runs`, of the built-in contest or not, for `split`.

        Raise UserError if there is none, or, without a split, if there are runs of both boards.
        """
        if folder:
            return cls.open(folder, runs=runs)
        found = [run for run in cls.all(runs) if run.record.config.demo == demo
                 and (not demo or run.record.config.demo_seed == demo_seed)]
        newest = {run.board: run for run in reversed(found)}  # of each board
        if not split and len(newest) > 1:
            choices = " or ".join(f"--split {board} ({run.folder})" for board, run in sorted(newest.items()))
            raise UserError(f"{runs} has runs of both boards: say which one answers, {choices}, or give --run")
        if split in CLASS_LISTS:
            found = [run for run in found if run.board == split]
        if not found:
            wanted = "" if not demo else " --demo" if demo_seed == DEMO_SEED else f" --demo-seed {demo_seed}"
            wanted += " --board B" if split == "B" else ""
            raise UserError(f"no finished run under {runs}: {next_command('train')}{wanted} makes one")
        return found[0]

    @classmethod
    def create(cls, runs: str | Path, name: str, shots: Iterable[tuple[str, int]], pipeline: Pipeline,
               record: Record) -> Run:
        """Write a new run whole, the record last, or nothing; shots: (path below the data folder, class id) each."""
        folder = new_folder(runs, name, record.config.board)
        try:
            write_shot_list(folder / SHOTS, shots)
            save_arrays(folder / MODEL, {**pipeline.state(), **pipeline.report_arrays()})
            write_json(folder / RECORD, record)
        except BaseException:
            with contextlib.suppress(OSError):
                for name in (SHOTS, MODEL, RECORD):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
            raise
        return cls(folder, record)

    @property
    def board(self) -> str:
        return self.record.config.board

    @cached_property
    def pipeline(self) -> Pipeline:
        """What was learned. Raise UserError if the file is damaged or of another version."""
        try:
            return Pipeline.from_state(self.arrays(STATE_SCHEMA))
        except UserError:
            if "methods" in self.arrays():
                raise
            again = f"{next_command('train')} --from-run {shlex.quote(str(self.folder))}"
            raise UserError(f"{self.folder} is of an earlier version and unreadable: {again} trains it again") from None

    def arrays(self, schema: Schema = ANY) -> dict[str, np.ndarray]:
        """Return the arrays of what was learned, checked against a schema."""
        return load_arrays(self.folder / MODEL, schema)

    def source(self, given: Any, **encoding: Any) -> Source:
        """Return the encoder of the training; given: see `where_sources`. Raise UserError if gone, or another one."""
        return reopen_source(self.record.encoder, self.where_sources(given), self.record.shots.files,
                             self.record.classes, self.pipeline.task_, **encoding)

    def where(self, saved: str) -> str:
        """Return where a file or folder of the record lies now; `saved` itself where it is nowhere, or empty."""
        was = self.record.folder or os.getcwd()  # where train.py ran
        whole = Path(os.path.abspath(os.path.join(was, saved)))
        below = os.path.relpath(whole, was)
        project = self.folder.resolve().parent.parent  # of runs/NAME
        places = [whole] if os.path.isabs(saved) else []
        places += [Path(below), project / below, whole, self.folder / whole.name, Path(whole.name),
                   project / whole.name, Path("weights", whole.name), project / "weights" / whole.name]
        return next((str(place) for place in places if saved and os.path.exists(place)), saved)

    def where_sources(self, given: Any) -> list[tuple[str, str]]:
        """Return each encoder's model or feature file as it lies now, or as `given` has it, and its weights' folder."""
        encoders = encoders_of(self.record.encoder)
        kinds = ["model" if "model" in one else "features" if one.get("has_text", True) else "features_extra"
                 for one in encoders]
        now: dict[str, Iterator[str]] = {}
        for kind in ("model", "features", "features_extra"):
            files = listed(getattr(given, kind, ()))
            mine = [one.get("model") or one["features"] for one, its in zip(encoders, kinds) if its == kind]
            now[kind] = iter(files or map(self.where, mine))
            if len(files) not in (0, len(mine)):
                such = f"{len(mine)} such ({', '.join(mine)})" if mine else "none such"
                all_kinds = " and ".join(map(flag_of, dict.fromkeys(kinds)))
                raise UserError(f"{flag_of(kind)}: {len(files)} given, but {self.folder} was trained with {such}, but "
                                f"{all_kinds}: give one for each, or none")
        if given.weights and "model" not in kinds:
            raise UserError(f"--weights: {self.folder} was trained with feature files alone; give --features instead")
        return [(next(now[kind]), given.weights or self.where(one.get("weights", "")))
                for one, kind in zip(encoders, kinds)]

    def questions(self, settings: TestConfig) -> tuple[DataSet, str, TestSet, Path]:
        """Return data set, split, test images and the answers' file. Raise UserError if they do not fit the run."""
        config = self.record.config
        root = settings.data or self.where(config.data)
        data = read_data_set(root, self.board, labelled=config.shots > 0, format=config.format,
                             labels=self.where(config.labels))
        self.require_fit(data, settings.split)
        split = settings.split or data.default_split
        tests = data.split(split, used=self.record.shots.files)
        for note in tests.notes:
            tell(note)
        result = submission.answers_file(settings.result, settings.out, data.plain, root if config.demo else "")
        submission.require_target(result)
        if result.suffix != ".csv":
            require_writable(_names_file(result), "--result")
            submission.require_names(tests.folder, tests.names)
        require_writable_folder(self.folder, "--run")
        return data, split, tests, result

    def require_fit(self, data: DataSet, split: str = "") -> None:
        """Raise UserError if the run has not learned the classes of a data set, or those of the board `split`."""
        if self.record.classes != data.class_names:
            raise UserError(f"{self.folder} learned {len(self.record.classes)} classes that are not the "
                            f"{len(data.class_names)} of this data set: train again, or give the right --run or --data")
        if not data.plain and split in CLASS_LISTS and split != self.board:
            raise UserError(f"{self.folder} has learned the classes of board {self.board} and cannot answer --split "
                            f"{split}: give the --run of {next_command('train')} --board {split}")

    def splits(self) -> list[str]:
        """Return the test sets that it has answered, the last one last."""
        return [path.stem.removeprefix("test_") for path in sorted(self.folder.glob("test_*.json"), key=_age)]

    def tested(self, split: str) -> TestRecord:
        """Return how it answered a test set. Raise UserError if it has not, or the file is damaged."""
        if split not in self.splits():
            given = shlex.join(["--run", str(self.folder), "--split", split])
            raise UserError(f"{self.folder} has not answered test set {split}: {next_command('test')} {given} does")
        return read_json(self.folder / f"test_{split}.json", TestRecord, "run test.py again")

    def answers(self, split: str, schema: Schema) -> dict[str, np.ndarray]:
        """Return what the schema names of the arrays that it left of a test set."""
        return load_arrays(self.folder / f"test_{split}.npz", schema, others=None)

    def save_test(self, split: str, record: TestRecord, arrays: dict[str, Any]) -> None:
        save_arrays(self.folder / f"test_{split}.npz", {name: np.asarray(value) for name, value in arrays.items()})
        write_json(self.folder / f"test_{split}.json", record)

    def save_answers(self, result: Path, split: str, own: bool, tests: TestSet, best: np.ndarray,
                     probability: np.ndarray) -> Path | None:
        """Write the answers to `result` and a copy into the run. Return the archive to submit; none of a .csv.

        own: `split` is the one that the run was trained for. best (N, ≤5): class ids. probability (N,): of the first,
        NaN where the image could not be read. Files that these runs have not written are moved aside.
        """
        table = result.suffix == ".csv"
        for path in (result,) if table else (result, result.with_suffix(".zip"), _names_file(result)):
            aside = submission.move_aside(path, sorted(self.folder.resolve().parent.glob(f"*/result*{path.suffix}")))
            if aside:
                tell(f"{path} was not written by these runs: it is moved to {aside}")
        classes, archive = self.record.classes, None
        for place in (self.folder / f"{'result' if own else f'result_{split}'}{result.suffix}", result):
            if table:
                submission.write_table(place, tests.files, [classes[row[0]] for row in best], probability.tolist())
                continue
            archive = submission.write_result(place, tests.names, best.tolist(), len(classes))
            submission.write_csv(
                _names_file(place), ["image", *(f"class{number + 1}" for number in range(len(best[0])))],
                ([name, *(classes[label] for label in row)] for name, row in zip(tests.names, best)))
        return archive


def repeated(settings: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Return the settings and shots of the run that `--from-run` names, overridden by flags given explicitly.

    A given flag that decides on the shots draws them again. What is the machine's, and the new run's name, comes from
    `settings`; "auto" means what that run took. Raise UserError if there is no such run.
    """
    run = Run.open(settings.from_run, "--from-run")
    values, changed = _taken(run, settings, given)
    if not changed and set(values["methods"].split(",")) & set(GROUPS):
        values["methods"] = ",".join(dict.fromkeys(name.partition(OF)[0] for name in run.record.settings
                                                   if name != "ensemble"))
    values.update(changed)
    if "shot_list" not in changed:
        same = not set(DRAW) & set(changed) and (values["shots"] or values["shot_list"])
        values["shot_list"] = str(run.folder / SHOTS) if same else ""
    return checked(TrainConfig, values)


def validated(settings: ValidateConfig, given: dict[str, Any]) -> ValidateConfig:
    """Return the settings of the run that `--run` names as far as validate has them, overridden by flags given."""
    values, changed = _taken(Run.open(settings.run), settings, given)
    values["shots"] = str(values["shots"])
    known = {f.name: values[f.name] for f in fields(ValidateConfig) if f.name in values}
    return checked(ValidateConfig, {**known, **changed})


def _taken(run: Run, settings: MachineConfig, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's settings, its files where they lie now, with this command's own; and what was given beside it."""
    values = dict(vars(run.record.config))
    for name in _PATHS:
        values[name] = run.where(values[name]) if isinstance(values[name], str) else tuple(map(run.where, values[name]))
    values.update({name: value for name, value in vars(settings).items() if name in _OWN})
    precisions = {one["precision"] for one in encoders_of(run.record.encoder) if isinstance(one.get("precision"), str)}
    if settings.precision == "auto" and len(precisions) == 1:
        values["precision"] = precisions.pop()
    changed = {name: value for name, value in given.items() if name not in _OWN}
    flags = [flag_of(name) + ("" if one is True else f" {shlex.quote(str(one))}") for name, value in changed.items()
             for one in (value if isinstance(value, (list, tuple)) else [value])]
    if flags:
        tell(f"Settings of {run.folder}, but {' '.join(flags)}")
    return values, changed


def readable(read: Callable[[Any], Content], places: Iterable, what: str = "it is") -> list[Content]:
    """Return what can be read of some places; a line names those that cannot, and that `what` is left out."""
    found = []
    for place in places:
        try:
            found.append(read(place))
        except UserError as error:
            warn(f"{error}; {what} left out")
    return found


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _names_file(result: Path) -> Path:
    return result.with_name(f"{result.stem}_names.csv")


def require_new(runs: str | Path, name: str) -> None:
    """Raise UserError, before the work, if a run of that name cannot be saved: it is no plain name, or taken."""
    if not name.isprintable() or len(name.encode()) > 100 or re.search(r'[/\\:*?"<>|]|^[ .]|[ .]$', name):
        raise UserError(f"--name {shown(name[:60])}: give a plain name of at most 100 bytes, not a path")
    if os.path.lexists(runs) and not os.path.exists(runs):
        raise UserError(f"--runs {runs}: a link that leads to nothing; remove it, or give another folder")
    require_writable_folder(runs, "--runs")
    folder = Path(runs, name)
    if name and os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--name {name}: {folder} exists; choose another name, or remove it yourself")


def new_folder(runs: str | Path, name: str, board: str, prefix: str = "") -> Path:
    """Make and return the folder of a new run: `name`, or `prefix`, date, time and board, and a number if taken."""
    require_new(runs, name)
    folder = stamped = Path(runs, name or prefix + time.strftime(f"%Y%m%d-%H%M%S-{board}"))
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=bool(name))
            return folder
        except FileExistsError:  # another run has ended in the same second
            if name or not folder.is_dir():
                raise
            number += 1
            folder = Path(f"{stamped}-{number}")
