"""A run's files, read back for its report: record, arrays, where its images lie, its answers.

Letters: N test images that could be read, S shots, K classes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from jclip_fewshot.clip.preprocess import resize_and_crop
from jclip_fewshot.console import warn
from jclip_fewshot.data.data_set import UNKNOWN
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import truth_of
from jclip_fewshot.provenance import next_command
from jclip_fewshot.records import VALIDATE, Record, TestRecord, read_validation
from jclip_fewshot.run import MODEL, RECORD, Run
from jclip_fewshot.storage.arrays import Field

# arrays that a report reads, for load_arrays: N images in all, R that could be read, S shots, K classes, D width
MODEL_SCHEMA = {
    "shots/features": Field("float", "S D"), "shots/labels": Field("whole", "S", low=0, below="K"),
    "shots/text": Field("float", "K D"), "held_out_probs": Field("float", "S K", needed=False),
    "alpha_beta/alphas": Field("float", "A", low=1e-6, needed=False),
    "alpha_beta/betas": Field("float", "B", low=1e-6, needed=False),
    "alpha_beta/top1": Field("float", "A B", needed=False)}
ANSWERS_SCHEMA = {
    "names": Field("text", "N"), "readable": Field("whole", "R", low=0, below="N"), "probs": Field("float", "R K"),
    "before": Field("float", "R K"), "truth": Field("whole", "N", low=UNKNOWN, below="K", needed=False),
    **{f"nearest_{kind}": Field("whole", "R", low=-1, needed=False) for kind in ("guess", "truth")},
    **{f"nearest_{kind}_cosine": Field("float", "R", needed=False) for kind in ("guess", "truth")}}


@dataclass(frozen=True)
class Answers:
    """What a test run answered; rows are the images that could be read.

    probs (N, K) float32: the final answer; before (N, K): the ensemble's, each image by itself.
    truth (N,) int64, None where it is not known. nearest: {"guess" or "truth": (N,) the nearest shot of that
    class, -1 for none}, and their cosines under "guess_cosine", "truth_cosine"; empty where they were not kept.
    paths: where each image lies, None where it is gone. refined: the test set was refined as a whole.
    """

    split: str
    record: TestRecord
    names: list[str]
    paths: list[Path | None]
    probs: np.ndarray
    before: np.ndarray
    truth: np.ndarray | None
    nearest: dict[str, np.ndarray]
    refined: bool

    @cached_property
    def guess(self) -> np.ndarray:
        """(N,) the class that is answered first; ties go to the lower id, as in result.txt."""
        return self.probs.argmax(axis=1)


@dataclass(frozen=True)
class ReportData:
    """A trained run, read back: record, arrays, where its shots lie and, after test.py, its answers."""

    run: Run
    arrays: dict[str, np.ndarray]
    shot_paths: list[Path | None]
    answers: Answers | None

    @property
    def record(self) -> Record:
        """How it was trained."""
        return self.run.record

    @property
    def shot_labels(self) -> np.ndarray:
        """(S,) int64."""
        return self.arrays["shots/labels"]

    @property
    def domains(self) -> list[str]:
        """Each class's domain, by id."""
        return self.record.domains

    def shots_of(self, label: int) -> np.ndarray:
        """Which shots are of a class."""
        return np.flatnonzero(self.shot_labels == label)


def find_run(run: str | Path, runs: str | Path) -> Path:
    """Return the folder `run`, or what was trained, tested or validated last under `runs`.

    Raise UserError if there is none.
    """
    if run:
        return Path(run) if Path(run, VALIDATE).is_file() else Run.open(run, "RUN", runs).folder
    files = [path for name in (RECORD, "test_*.json", VALIDATE) for path in Path(runs).glob(f"*/{name}")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            read_validation(path.parent) if path.name == VALIDATE else Run.open(path.parent)
            return path.parent
        except UserError as error:
            warn(f"{error}; looking at the run before it")
    raise UserError(f"no finished run under {runs}: {next_command('train')} makes one")


def read_run(folder: Path, split: str = "") -> ReportData:
    """Read a run's record, arrays and, where test.py has been, its answers.

    Raise UserError if there is no such run, no answers of `split`, or a file is damaged.
    """
    run = Run.open(folder)
    record, arrays = run.record, run.arrays(MODEL_SCHEMA)
    _require_fit(folder / MODEL, len(arrays["shots/text"]) == len(record.classes)
                 and len(arrays["shots/labels"]) == len(record.shots.files))
    answers, root, splits = None, record.config.data, run.splits()
    if split or splits:
        answers = _read_answers(run, split or splits[-1])
        root = answers.record.config.data or root
    shots = [Path(root, path) for path in record.shots.files]
    if answers:
        _require_fit(folder / f"test_{answers.split}.npz", answers.probs.shape[1] == len(record.classes)
                     and all(found.max(initial=-1) < len(shots) for found in answers.nearest.values()
                             if found.dtype.kind == "i"))
    return ReportData(run, arrays, [path if path.is_file() else None for path in shots], answers)


def _require_fit(file: Path, fits: bool) -> None:
    if not fits:
        raise UserError(f"{file} does not fit the run's record: train and test again")


def _read_answers(run: Run, split: str) -> Answers:
    tested, arrays = run.tested(split), run.answers(split, ANSWERS_SCHEMA)
    readable = arrays["readable"].astype(np.int64)
    names = [str(name) for name in arrays["names"][readable]]
    paths, truth = _images_and_truth(tested.config.data or run.record.config.data, run.record, split, names)
    if "truth" in arrays:  # what the scores were taken with
        truth = arrays["truth"][readable]
    rows = np.arange(len(names)) if truth is None else np.flatnonzero(truth != UNKNOWN)  # others cannot be judged
    nearest = {key[len("nearest_"):]: value[rows] for key, value in arrays.items() if key.startswith("nearest_")}
    return Answers(split, tested, [names[row] for row in rows], [paths[row] for row in rows], arrays["probs"][rows],
                   arrays["before"][rows], None if truth is None else truth[rows], nearest, bool(tested.refinement))


def _images_and_truth(root: str, record: Record, split: str,
                      names: Sequence[str]) -> tuple[list[Path | None], np.ndarray | None]:
    """Where the test images lie and their answers, as far as the data set is still there and the same."""
    try:
        data = read_data_set(root, record.config.board, labelled=False, format=record.config.format,
                             labels=record.config.labels)
        tests = data.split(split)
        where = {name: tests.folder / name for name in tests.names}
        labels = tests.labels if data.class_names == record.classes else None
        truth = None if labels is None else truth_of(labels, names)
    except UserError:
        return [None] * len(names), None
    return [where.get(name) for name in names], truth


class Thumbnails:
    """Squares of images, as CLIP sees them, as data: URIs; each file is decoded once a size.

    Small ones are drawn in many places: the page holds each once, under a number, and refers to it.
    """

    SMALL, LARGE = 64, 160  # pixels
    MOST = 4000  # small ones in a page: 8 MB

    def __init__(self) -> None:
        self._small: dict[Path | None, int | None] = {}
        self._large: dict[Path | None, str | None] = {}
        self.shared: list[str] = []

    def large(self, path: Path | None) -> str | None:
        """Return the URI; None where the image is gone or cannot be read."""
        if path not in self._large:
            self._large[path] = _data_uri(path, self.LARGE)
        return self._large[path]

    def small(self, path: Path | None) -> int | None:
        """Return the place in `shared`; None where the image is gone, cannot be read, or the page is full."""
        if path not in self._small:
            uri = _data_uri(path, self.SMALL) if len(self.shared) < self.MOST else None
            self._small[path] = None if uri is None else len(self.shared)
            self.shared += [uri] if uri else []
        return self._small[path]


def _data_uri(path: Path | None, size: int) -> str | None:
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # lets JPEG decode at a fraction of its size
            square = resize_and_crop(image, min(size, *image.size))
            buffer = io.BytesIO()
            square.save(buffer, "JPEG", quality=76, optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
