"""A run's folder, and the only place that opens or writes one: `Run.open`, `Run.chosen`, `Run.create`.

    record.json  shots.txt  model.npz     train.py: how it was made, from which images, what was learned
    test_A.json  test_A.npz  result.*     test.py: scores and answers to test set A, the submission

A folder that exists is never emptied or written over by another run.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.config import flag_of
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data.data_set import DataSet, TestSet
from jclip_fewshot.data.formats.contest import CLASS_LISTS
from jclip_fewshot.data.shots import write_shot_list
from jclip_fewshot.data.submission import move_aside, require_target, write_result, write_table
from jclip_fewshot.errors import UserError, shown
from jclip_fewshot.features.sources import Source, encoders_of, listed, reopen_source
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.provenance import demo_flags, next_command
from jclip_fewshot.records import Record, TestRecord
from jclip_fewshot.storage.arrays import ANY, Schema, load_arrays, save_arrays
from jclip_fewshot.storage.files import require_writable, require_writable_folder, write_text
from jclip_fewshot.storage.json_files import read_json, write_json

RECORD, MODEL, SHOTS = "record.json", "model.npz", "shots.txt"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its checked record; the pipeline is read when it is asked for."""

    folder: Path
    record: Record

    @classmethod
    def open(cls, folder: str | Path, flag: str = "--run", runs: str | Path = "runs") -> Run:
        """Return the run in `folder`, or of that name under `runs`; flag: what named it, for the message.

        Raise UserError if there is none, or its record is damaged.
        """
        given, folder = folder, Path(folder)
        if not folder.exists() and folder.name == str(folder):
            folder = Path(runs, folder)
        if not (folder / RECORD).is_file():
            raise UserError(f"{flag} {given}: no finished run there ({RECORD} is missing); {next_command('train')} "
                            "makes one")
        return cls(folder, read_json(folder / RECORD, Record, "train again"))

    @classmethod
    def all(cls, runs: str | Path) -> list[Run]:
        """Return the finished runs under a folder, the newest first; those that cannot be read are named."""
        found = []
        paths = Path(runs).glob(f"*/{RECORD}")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                found.append(cls.open(path.parent))
            except UserError as error:
                warn(f"{error}; it is left out")
        return found

    @classmethod
    def chosen(cls, folder: str, runs: str | Path, demo: bool = False, demo_seed: int | None = None,
               split: str = "") -> Run:
        """Return the run in `folder`, or the newest one under `runs` that can answer `split`.

        demo: of the built-in contest (of that seed), else of another. Without a split, runs of both boards are refused:
        nothing says which one is meant.
        Raise UserError if there is none.
        """
        if folder:
            return cls.open(folder, runs=runs)
        found = [run for run in cls.all(runs) if run.record.config.demo == demo
                 and (not demo or demo_seed in (None, run.record.config.demo_seed))]
        newest = {run.board: run for run in reversed(found)}  # of each board
        if not split and len(newest) > 1:
            choices = " or ".join(f"--split {board} ({run.folder})" for board, run in sorted(newest.items()))
            raise UserError(f"{runs} has runs of both boards: say which test set to answer, {choices}, or give --run")
        if split in CLASS_LISTS:
            found = [run for run in found if run.board == split]
        if not found:
            wanted = demo_flags(demo, demo_seed) + (" --board B" if split == "B" else "")
            raise UserError(f"no finished run under {runs}: {next_command('train')}{wanted} makes one")
        return found[0]

    @classmethod
    def create(cls, runs: str | Path, name: str, shots: Iterable[tuple[str, int]], pipeline: Pipeline,
               record: Record) -> Run:
        """Write a new run whole, the record last, or nothing. Return it.

        shots: (path below the data folder, class id) of the training images; name: see `new_folder`.
        Raise UserError if it cannot be written.
        """
        folder = new_folder(runs, name, record.config.board)
        try:
            write_shot_list(folder / SHOTS, shots)
            save_arrays(folder / MODEL, {**pipeline.state(), **pipeline.report_arrays()})
            write_json(folder / RECORD, record)
        except BaseException as error:
            for part in (RECORD, MODEL, SHOTS):
                (folder / part).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
            if isinstance(error, OSError):
                raise UserError(f"the run cannot be saved in {folder} ({error.strerror or error}); nothing of it is "
                                "left there, and what is encoded is kept in the cache") from error
            raise
        return cls(folder, record)

    @property
    def board(self) -> str:
        """The board whose classes it has learned, A or B."""
        return self.record.config.board

    @cached_property
    def pipeline(self) -> Pipeline:
        """What was learned. Raise UserError if the file is damaged or of another version."""
        try:
            arrays = self.arrays(STATE_SCHEMA)
        except UserError:
            if "methods" in self.arrays():
                raise
            raise UserError(f"{self.folder} was trained by an earlier version of this program and cannot be read: "
                            f"{next_command('train')} --from-run {shlex.quote(str(self.folder))} trains it "
                            "again") from None
        return Pipeline.from_state(arrays)

    def arrays(self, schema: Schema = ANY) -> dict[str, np.ndarray]:
        """Return the arrays of what was learned, checked against a schema."""
        return load_arrays(self.folder / MODEL, schema)

    def source(self, given: Any, **encoding: Any) -> Source:
        """Return the encoder that it was trained with, opened again.

        given: settings with `model`, `weights`, `features`, `features_extra`: where those lie now, if they were moved.
        encoding: see `reopen_source`.
        Raise UserError if it is gone, another one now, or `given` does not fit the run.
        """
        return reopen_source(self.record.encoder, self.where_sources(given), self.record.shots.files,
                             self.record.classes, self.pipeline.task_, **encoding)

    def where(self, saved: str) -> str:
        """Return where a file or folder that the record names lies now.

        A relative path is looked for below the working folder, below the project's that holds the run (runs/NAME) and
        below the one where train.py ran; an absolute one where it was, and then in the same places. Last comes its
        bare name in the run, here and in weights/. Where it is in none of them, `saved` itself.
        """
        was = self.record.folder or os.getcwd()
        whole = Path(os.path.abspath(os.path.join(was, saved)))
        below = os.path.relpath(whole, was)
        project = self.folder.resolve().parent.parent
        places = [whole] if os.path.isabs(saved) else []
        places += [Path(below), project / below, whole, self.folder / whole.name, Path(whole.name),
                   project / whole.name, Path("weights", whole.name), project / "weights" / whole.name]
        return next((str(place) for place in places if os.path.exists(place)), saved)

    def where_sources(self, given: Any) -> dict[str, Any]:
        """Return {"model", "weights", "features"}: as `given` (see `source`), or where the run's own lie now.

        Of several encoders, "others" holds a list of the same for those behind the first.
        Raise UserError if `given` does not fit what the run was trained with.
        """
        encoders = encoders_of(self.record.encoder)
        kinds = ["model" if "model" in one else "features" if one.get("has_text", True) else "features_extra"
                 for one in encoders]
        waiting = {kind: listed(getattr(given, kind, "") or ()) for kind in ("model", "features", "features_extra")}
        for kind, files in waiting.items():
            mine = [one.get("model") or one["features"] for one, its in zip(encoders, kinds) if its == kind]
            if len(files) not in (0, len(mine)):
                such = f"{len(mine)} such ({', '.join(mine)})" if mine else "none such"
                all_kinds = " and ".join(flag_of(one) for one in dict.fromkeys(kinds))
                raise UserError(f"{flag_of(kind)}: {len(files)} given, but {self.folder} was trained with {such}, but "
                                f"{all_kinds}: one for each, in this order, or none")
        if given.weights and "model" not in kinds:
            raise UserError(f"--weights: {self.folder} was trained with feature files alone; give --features instead")
        found = []
        for one, kind in zip(encoders, kinds):
            name = "model" if kind == "model" else "features"
            now = waiting[kind].pop(0) if waiting[kind] else self.where(one[name])
            weights = given.weights or (self.where(one["weights"]) if one.get("weights") else "")
            found.append({"model": "", "weights": weights, "features": "", name: now})
        first, *others = found
        return {**first, "others": others} if others else first

    def require_same_classes(self, class_names: Sequence[str]) -> None:
        """Raise UserError if a data set's classes are not those that the run learned."""
        if self.record.classes != list(class_names):
            raise UserError(f"{self.folder} learned {len(self.record.classes)} classes that are not the "
                            f"{len(class_names)} of this data set, or in another order: train again, or give the right "
                            "--run or --data")

    def split(self, data: DataSet, given: str = "") -> tuple[str, bool]:
        """Return the test set of a data set that is meant, and whether it is the run's own.

        Raise UserError if `given` is that of the other board, whose classes it has not learned.
        """
        if not data.plain and given in CLASS_LISTS and given != self.board:
            raise UserError(f"{self.folder} has learned the classes of board {self.board} and cannot answer --split "
                            f"{given}: give the --run of {next_command('train')} --board {given}")
        return given or data.default_split, given in ("", data.default_split)

    def splits(self) -> list[str]:
        """Return the test sets that it has answered, the last one last."""
        paths = sorted(self.folder.glob("test_*.json"), key=lambda path: path.stat().st_mtime)
        return [path.stem[len("test_"):] for path in paths]

    def tested(self, split: str) -> TestRecord:
        """Return how it answered a test set. Raise UserError if it has not, or the file is damaged."""
        if split not in self.splits():
            raise UserError(f"{self.folder} has not answered test set {split}: {next_command('test')} --run "
                            f"{shlex.quote(str(self.folder))} --split {shlex.quote(split)} does")
        return read_json(self.folder / f"test_{split}.json", TestRecord, "run test.py again")

    def answers(self, split: str, schema: Schema) -> dict[str, np.ndarray]:
        """Return the arrays that it left of a test set, checked against a schema; others are not read."""
        return load_arrays(self.folder / f"test_{split}.npz", schema, others=None)

    def save_test(self, split: str, record: TestRecord, arrays: dict[str, Any]) -> None:
        """Write how it answered a test set, and the answers."""
        save_arrays(self.folder / f"test_{split}.npz", {name: np.asarray(value) for name, value in arrays.items()})
        write_json(self.folder / f"test_{split}.json", record)

    def save_answers(self, result: Path, split: str, own: bool, tests: TestSet, best: np.ndarray,
                     probability: np.ndarray) -> Path | None:
        """Write the answers to `result` and a copy into the run. Return the archive to submit; none of a .csv.

        own: `split` is the one that the run was trained for. best (N, ≤5): class ids. probability (N,): of the first,
        NaN where the image could not be read. Beside a result.txt stand its archive and the names of its classes.
        A file of these names that none of the runs beside this one has written is moved aside first, with a line.
        """
        table = result.suffix == ".csv"
        for path in (result,) if table else (result, result.with_suffix(".zip"), _names_file(result)):
            aside = move_aside(path, sorted(self.folder.resolve().parent.glob(f"*/result*{path.suffix}")))
            if aside:
                tell(f"{path} was not written by these runs: it is moved to {aside}")
        classes, archive = self.record.classes, None
        for place in (self.folder / f"{'result' if own else f'result_{split}'}{result.suffix}", result):
            if table:
                write_table(place, tests.files, [classes[row[0]] for row in best], probability.tolist())
                continue
            archive = write_result(place, tests.names, best.tolist(), len(classes))
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["image", *(f"class{number + 1}" for number in range(len(best[0])))])
            writer.writerows([name, *(classes[label] for label in row)] for name, row in zip(tests.names, best))
            write_text(_names_file(place), text.getvalue())
        return archive


def require_result(result: Path) -> None:
    """Raise UserError, before the work, if the answers, or a file beside them, cannot be written."""
    require_target(result)
    if result.suffix != ".csv":
        require_writable(_names_file(result), "--result")


def _names_file(result: Path) -> Path:
    return result.with_name(f"{result.stem}_names.csv")


def is_file_name(name: str) -> bool:
    """Return whether a text is safe as a part of a file's name: one component, printable, not too long."""
    return (0 < len(name.encode("utf-8", "surrogateescape")) <= 100 and name.isprintable()
            and not re.search(r'[/\\:*?"<>|]', name) and name.strip(" .") == name)


def require_new(runs: str | Path, name: str) -> None:
    """Find out before the work whether a run of that name can be saved.

    Raise UserError if it is no plain name, or taken, or there is no folder where runs could be made.
    """
    if name and not is_file_name(name):
        said = shown(name if len(name) <= 60 else name[:60] + "…")
        raise UserError(f"--name {said}: a plain name of at most 100 bytes, not a path; --runs says where runs lie")
    if os.path.lexists(runs) and not os.path.exists(runs):
        raise UserError(f"--runs {runs}: a link that leads to nothing; remove it, or give another folder")
    require_writable_folder(runs, "--runs")
    folder = Path(runs, name)
    if name and os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--name {name}: {folder} exists, and nothing is written over; choose another name, or remove "
                        "it yourself")


def new_folder(runs: str | Path, name: str, board: str, prefix: str = "") -> Path:
    """Make and return the folder of a new run: `name`, or `prefix`, date, time and board, and a number if taken."""
    require_new(runs, name)
    stamp = prefix + time.strftime(f"%Y%m%d-%H%M%S-{board}")
    number = 1
    while not name:
        folder = Path(runs, stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run has ended in the same second
            if not folder.is_dir():
                raise
            number += 1
    folder = Path(runs, name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
