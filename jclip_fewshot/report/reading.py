"""A run's files, read back for its report: record, arrays, where its images lie, its answers. Letters: analysis.py."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
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
from jclip_fewshot.run import RECORD, Run
from jclip_fewshot.storage.arrays import Field, Schema

SMALL, LARGE = 64, 160  # pixels of a thumbnail
MOST_SMALL = 4000  # in a page: 8 MB


def _schemas(record: Record) -> tuple[Schema, Schema]:
    """What a report reads of a run's arrays and of a test set's: N images in all, R that could be read."""
    shots, classes = len(record.shots.files), len(record.classes)
    model = {"shots/features": Field("float", f"{shots} D"), "shots/text": Field("float", f"{classes} D"),
             "shots/labels": Field("whole", f"{shots}", low=0, below=classes),
             "held_out_probs": Field("float", f"{shots} {classes}", needed=False),
             "alpha_beta/alphas": Field("float", "A", low=1e-6, needed=False),
             "alpha_beta/betas": Field("float", "B", low=1e-6, needed=False),
             "alpha_beta/top1": Field("float", "A B", needed=False)}
    answers = {"names": Field("text", "N"), "readable": Field("whole", "R", low=0, below="N"),
               "probs": Field("float", f"R {classes}"), "before": Field("float", f"R {classes}"),
               "truth": Field("whole", "N", low=UNKNOWN, below=classes, needed=False)}
    for kind in ("guess", "truth"):
        answers[f"nearest_{kind}"] = Field("whole", "R", low=-1, below=shots, needed=False)
        answers[f"nearest_{kind}_cosine"] = Field("float", "R", needed=False)
    return model, answers


@dataclass(frozen=True)
class Answers:
    """What a test run answered; rows are the images that could be read and, where the truth is known, have a class."""

    split: str
    record: TestRecord
    names: list[str]
    paths: list[Path | None]  # where each image lies; None where it is gone
    probs: np.ndarray  # (N, K) float32, the final answer
    before: np.ndarray  # (N, K), the ensemble's, each image by itself
    truth: np.ndarray | None  # (N,) int64
    nearest: dict[str, np.ndarray]  # (N,) each, of analysis.nearest_shots without "nearest_"; empty if not kept

    @cached_property
    def guess(self) -> np.ndarray:
        """(N,) the class that is answered first; ties go to the lower id, as in result.txt."""
        return self.probs.argmax(axis=1)

    @cached_property
    def sure(self) -> np.ndarray:
        """(N,) the rows, the most confident first: by the probability of the first guess."""
        return np.argsort(-self.probs.max(axis=1), kind="stable")


@dataclass(frozen=True)
class ReportData:
    """A trained run, read back: record, arrays, where its shots lie (None: gone) and, after test.py, its answers."""

    record: Record
    arrays: dict[str, np.ndarray]
    shot_paths: list[Path | None]
    answers: Answers | None

    @property
    def shot_labels(self) -> np.ndarray:
        """(S,) int64."""
        return self.arrays["shots/labels"]

    def shots_of(self, label: int) -> np.ndarray:
        """Return which shots are of a class."""
        return np.flatnonzero(self.shot_labels == label)


def find_run(run: str | Path, runs: str | Path) -> Path:
    """Return the folder `run`, or what was trained, tested or validated last under `runs`; raise UserError for none."""
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
    """Read a run's files and, where test.py has been, its answers; raise UserError if they are absent or damaged."""
    run = Run.open(folder)
    split = split or "".join(run.splits()[-1:])
    of_model, of_answers = _schemas(run.record)
    arrays, answers = run.arrays(of_model), _read_answers(run, split, of_answers) if split else None
    root = answers and answers.record.config.data or run.record.config.data
    shots = [Path(root, path) for path in run.record.shots.files]
    return ReportData(run.record, arrays, [path if path.is_file() else None for path in shots], answers)


def _read_answers(run: Run, split: str, schema: Schema) -> Answers:
    tested, arrays = run.tested(split), run.answers(split, schema)
    readable = arrays["readable"].astype(np.int64)
    names = arrays["names"][readable].tolist()
    paths, truth = _images_and_truth(tested.config.data or run.record.config.data, run.record, split, names)
    if "truth" in arrays:  # what the scores were taken with
        truth = arrays["truth"][readable]
    rows = np.arange(len(names)) if truth is None else np.flatnonzero(truth != UNKNOWN)  # others cannot be judged
    nearest = {key.removeprefix("nearest_"): value[rows] for key, value in arrays.items() if key.startswith("nearest_")}
    return Answers(split, tested, [names[row] for row in rows], [paths[row] for row in rows], arrays["probs"][rows],
                   arrays["before"][rows], None if truth is None else truth[rows], nearest)


def _images_and_truth(root: str, record: Record, split: str,
                      names: Sequence[str]) -> tuple[list[Path | None], np.ndarray | None]:
    """Where the test images lie and their answers, as far as the data set is still there and the same."""
    try:
        data = read_data_set(root, record.config.board, labelled=False, format=record.config.format,
                             labels=record.config.labels)
        tests = data.split(split)
        where = {name: tests.folder / name for name in tests.names}
        labels = tests.labels if data.class_names == record.classes else None
        return [where.get(name) for name in names], None if labels is None else truth_of(labels, names)
    except UserError:
        return [None] * len(names), None


class Thumbnails:
    """Squares of images, as CLIP sees them, as data: URIs; each file is decoded once a size.

    `large` returns a URI, `small` a place in `shared`, as the page holds small ones once and draws them in many places.
    Both return None where the image is gone, cannot be read, or the page is full.
    """

    def __init__(self) -> None:
        self.shared: list[str] = []
        self.large, self.small = cache(partial(_data_uri, size=LARGE)), cache(self._place)

    def _place(self, path: Path | None) -> int | None:
        uri = _data_uri(path, SMALL) if len(self.shared) < MOST_SMALL else None
        self.shared += [uri] if uri else []
        return len(self.shared) - 1 if uri else None


def _data_uri(path: Path | None, size: int) -> str | None:
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # lets JPEG decode at a fraction of its size
            buffer = io.BytesIO()
            resize_and_crop(image, min(size, *image.size)).save(buffer, "JPEG", quality=76, optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
