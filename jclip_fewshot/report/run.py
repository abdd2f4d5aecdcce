"""The page a person reads about a run: what it scored, where it errs, what each part adds, how to repeat it.

    python -m jclip_fewshot report [RUN]

Here the run's files are read and numbers are taken out of them; `report_pictures` draws them and
`report_page` lays the page out.

Letters: N test images that could be read, S shots, K classes, D feature width.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from jclip_fewshot import runs
from jclip_fewshot.clip.preprocess import resize_and_crop
from jclip_fewshot.data.contest import read_contest, read_labels, test_images
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import truth_of
from jclip_fewshot.storage.arrays import load_arrays
from jclip_fewshot.storage.files import atomic_write, write_text

FOLDER, PAGE = "report", "index.html"
VALIDATE = "validate.json"  # what `python -m jclip_fewshot validate` leaves in a run's folder
LIMIT = 500_000_000  # the contest's bound on a model's parameters
INSTALL = "pip install 'jclip_fewshot[report]'"  # brings matplotlib
CALIBRATION_BINS = 15  # as Guo et al. 2017
HELD_OUT_SCORE = "held_out_top1"  # what heads and ensemble call their score on left-out shots
ALPHAS, BETAS = np.geomspace(0.1, 20, 24), np.geomspace(0.5, 16, 16)


@dataclass(frozen=True)
class Answers:
    """What a test run answered; rows are the images that could be read.

    probs (N, K) float32: the final answer; before (N, K): the ensemble's, each image by itself.
    truth (N,) int64, None where it is not known. features (N, D), None where they were not kept.
    paths: where each image lies, None where it is gone. refined: the test set was refined as a whole.
    """

    split: str
    record: dict
    names: List[str]
    paths: List[Optional[Path]]
    probs: np.ndarray
    before: np.ndarray
    truth: Optional[np.ndarray]
    features: Optional[np.ndarray]
    refined: bool

    @property
    def guess(self) -> np.ndarray:
        """(N,) the class that is answered first; ties go to the lower id, as in result.txt."""
        return self.probs.argmax(axis=1)


@dataclass(frozen=True)
class Run:
    """A trained run, read back: record, arrays, where its shots lie and, after test.py, its answers."""

    folder: Path
    record: dict
    arrays: Dict[str, np.ndarray]
    shot_paths: List[Optional[Path]]
    answers: Optional[Answers]

    @property
    def shot_labels(self) -> np.ndarray:
        """(S,) int64."""
        return self.arrays["shots/labels"]

    @property
    def class_names(self) -> List[str]:
        """Raw names, by id."""
        return self.record["classes"]

    @property
    def domains(self) -> List[str]:
        """Each class's domain, by id."""
        return self.record["domains"]


def write_report(run_folder: Union[str, Path], split: str = "", out: Union[str, Path, None] = None) -> Path:
    """Writes the page and its pictures; returns the page's path.

    Args:
        run_folder: a folder that train.py, or `python -m jclip_fewshot validate`, has made.
        split: the test set to report on, "A" or "B"; by default the one that test.py answered last. A run
            that has answered none is reported without answers.
        out: where to write; by default the folder `report` inside the run's.

    Raises:
        UserError: no such run, no such answers, or a file of the run that is damaged.
    """
    from jclip_fewshot.report import page as report_page
    folder = Path(run_folder)
    target = Path(out) if out else folder / FOLDER
    if (folder / VALIDATE).is_file():
        page, pictures = report_page.validation_page(folder, _read_json(folder / VALIDATE))
    else:
        page, pictures = report_page.run_page(read_run(folder, split))
    for picture in pictures:
        with atomic_write(target / f"{picture.name}.png") as file:
            file.write(picture.png)
    write_text(target / PAGE, page)
    return target / PAGE


def find_run(run: Union[str, Path], runs_folder: Union[str, Path]) -> Path:
    """`run`, or what was trained, tested or validated last under `runs_folder`.

    Raises:
        UserError: there is none.
    """
    if run:
        return Path(run) if Path(run, VALIDATE).is_file() else runs.find_run(run, runs_folder)
    folders = [path.parent for path in Path(runs_folder).glob(f"*/{runs.RECORD}")]
    records = [path for folder in folders for path in (folder / runs.RECORD, *folder.glob("test_*.json"))]
    records += Path(runs_folder).glob(f"*/{VALIDATE}")
    if not records:
        raise UserError(f"no finished run under {runs_folder}: python train.py makes one")
    return max(records, key=lambda path: path.stat().st_mtime).parent


def read_run(folder: Path, split: str = "") -> Run:
    """Reads a run's record, arrays and, where test.py has been, its answers.

    Raises:
        UserError: no such run, no answers of `split`, a damaged file.
    """
    record = runs.load_record(runs.find_run(folder, ""))
    tests = sorted(folder.glob("test_*.json"), key=lambda path: path.stat().st_mtime)
    if split and not (folder / f"test_{split}.json").is_file():
        raise UserError(f"{folder} has not answered test set {split}: "
                        f"python test.py --run {folder} --split {split} does")
    answers, root = None, record["config"]["data"]
    if split or tests:
        answers = _read_answers(folder, record, split or tests[-1].stem[len("test_"):])
        root = answers.record["config"].get("data") or root
    shots = [Path(root, path) for path in record["shots"]["files"]]
    return Run(folder, record, load_arrays(folder / runs.MODEL),
               [path if path.is_file() else None for path in shots], answers)


def _read_answers(folder: Path, record: dict, split: str) -> Answers:
    tested, arrays = _read_json(folder / f"test_{split}.json"), load_arrays(folder / f"test_{split}.npz")
    readable = arrays["readable"].astype(np.int64)
    names = [str(name) for name in arrays["names"][readable]]
    root = tested["config"].get("data") or record["config"]["data"]
    paths, truth = _images_and_truth(root, record, split, names)
    if "truth" in arrays:  # what the scores were taken with
        truth = arrays["truth"][readable]
    return Answers(split, tested, names, paths, arrays["probs"], arrays["before"], truth,
                   arrays["features"][readable] if "features" in arrays else None, bool(tested["refinement"]))


def _images_and_truth(root: str, record: dict, split: str,
                      names: Sequence[str]) -> Tuple[List[Optional[Path]], Optional[np.ndarray]]:
    """Where the test images lie and their answers, as far as the data set is still there and the same."""
    try:
        tests = test_images(root, split)
        where = dict(zip(tests.names, tests.paths))
        contest = read_contest(root, record["config"]["board"])
        labels = read_labels(contest, split) if contest.class_names == record["classes"] else None
        truth = None if labels is None else truth_of(labels, names)
    except UserError:
        return [None] * len(names), None
    return [where.get(name) for name in names], truth


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})")


@lru_cache(maxsize=512)
def thumbnail(path: Path, size: int) -> Optional[str]:
    """The square of an image that CLIP sees, at most `size` pixels wide, as a data: URI; None if unreadable."""
    try:
        with Image.open(path) as image:
            true_size = image.size
            image.draft("RGB", (size, size))  # lets JPEG decode at a fraction of its size
            square = resize_and_crop(image, min(size, *true_size), true_size)
            buffer = io.BytesIO()
            square.save(buffer, "JPEG", quality=78, optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes, the rows of images of the first read as the second, and of the second read as the first."""

    first: int
    second: int
    as_second: np.ndarray
    as_first: np.ndarray

    @property
    def total(self) -> int:
        return len(self.as_second) + len(self.as_first)


def confused_pairs(truth: np.ndarray, guess: np.ndarray, most: int = 20) -> List[ConfusedPair]:
    """The pairs of classes that are taken for each other most often, both directions together, most first.

    truth, guess: (N,) class ids. In a pair the first class is the one that is misread more often.
    """
    wrong = np.flatnonzero(truth != guess)
    counts = Counter(tuple(sorted((int(truth[i]), int(guess[i])))) for i in wrong)
    pairs = []
    for (a, b), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]:
        ab = np.flatnonzero((truth == a) & (guess == b))
        ba = np.flatnonzero((truth == b) & (guess == a))
        pairs.append(ConfusedPair(a, b, ab, ba) if len(ab) >= len(ba) else ConfusedPair(b, a, ba, ab))
    return pairs


def class_accuracy(truth: np.ndarray, guess: np.ndarray, num_classes: int) -> Tuple[np.ndarray, np.ndarray]:
    """(top-1 of each class in percent, nan where no image is of it; images of each class), both (K,)."""
    counts = np.bincount(truth, minlength=num_classes)
    hits = np.bincount(truth[truth == guess], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return 100 * hits / counts, counts


@dataclass(frozen=True)
class Calibration:
    """How often answers of a certain sureness are right.

    Guo et al. 2017, "On Calibration of Modern Neural Networks". sureness, accuracy (B,) in 0..1, nan for empty
    bins; counts (B,); ece: the mean of |accuracy - sureness|, each bin weighed by its images.
    """

    sureness: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    ece: float


def calibration(probs: np.ndarray, truth: np.ndarray, bins: int = CALIBRATION_BINS) -> Calibration:
    """Bins the first guesses of (N, K) `probs` by their probability, in equal widths."""
    sure = probs.max(axis=1).astype(float)
    right = probs.argmax(axis=1) == truth
    place = np.clip((sure * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sureness = np.bincount(place, weights=sure, minlength=bins) / counts
        accuracy = np.bincount(place, weights=right, minlength=bins) / counts
    held = counts > 0
    ece = float((counts * np.abs(accuracy - sureness))[held].sum() / max(len(sure), 1))
    return Calibration(sureness, accuracy, counts, ece)


def mean_sureness(probs: np.ndarray) -> float:
    """Mean probability of the first guess; 0 for no image."""
    return float(probs.max(axis=1).mean()) if len(probs) else 0.0


def surest_mistakes(probs: np.ndarray, truth: np.ndarray, most: int = 12) -> np.ndarray:
    """Rows of wrong first guesses, the surest first."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != truth)
    return wrong[np.argsort(-probs[wrong].max(axis=1), kind="stable")][:most]


def least_sure(probs: np.ndarray, most: int = 50) -> np.ndarray:
    """Rows whose first guess has the least probability, the least sure first."""
    return np.argsort(probs.max(axis=1), kind="stable")[:most]


def changed_rows(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rows whose first guess the refinement changed, the largest change first."""
    rows = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    return rows[np.argsort(-np.abs(after[rows] - before[rows]).sum(axis=1), kind="stable")]


def parameter_count(run: Run) -> Tuple[List[Tuple[str, Optional[int]]], int]:
    """(part, numbers in it) of all that answers an image, and their sum; None where it is not recorded.

    Counted strictly: the whole encoder, image and text, and every number that a head or the ensemble keeps,
    stored shots included. Copies of the text rows, which the encoder makes, are not counted again.
    """
    parts: List[Tuple[str, Optional[int]]] = [("encoder", run.record["encoder"].get("parameters"))]
    sizes: Dict[str, int] = {}
    for key, array in run.arrays.items():
        part, _, rest = key.partition("/")
        name, _, field = rest.partition("/")
        if array.dtype.kind != "f" or (part == "heads" and field == "text_"):
            continue
        if part in ("heads", "ensemble"):
            group = name if part == "heads" else "ensemble"
            sizes[group] = sizes.get(group, 0) + int(array.size)
    parts += list(sizes.items())
    return parts, sum(number for _, number in parts if number)


@dataclass(frozen=True)
class AlphaBetaMap:
    """Tip-Adapter's held-out top-1 in percent, (A, B), over its weight α and sharpness β; what was chosen.

    chosen: (domain, or "" for all; α; β). shots: how many were answered.
    """

    alphas: np.ndarray
    betas: np.ndarray
    top1: np.ndarray
    chosen: List[Tuple[str, float, float]]
    shots: int


def alpha_beta_map(run: Run) -> Optional[AlphaBetaMap]:
    """None where the run has no Tip-Adapter, or no class has two shots."""
    from jclip_fewshot.heads.tip_adapter import TipAdapter
    from jclip_fewshot.task import Task
    settings = run.record["settings"].get("tip_adapter")
    counts = np.bincount(run.shot_labels) if len(run.shot_labels) else np.zeros(1, int)
    if not settings or counts.max() < 2 or "alpha" not in settings or "beta" not in settings:
        return None
    names = list(dict.fromkeys(run.domains))
    values = settings["alpha"] if isinstance(settings["alpha"], list) else [settings["alpha"]]
    labels = names if len(values) == len(names) > 1 else [""]
    shots = Task(*(run.arrays[f"shots/{key}"] for key in ("features", "labels", "text", "domains")))
    chosen = [(label, float(value), float(settings["beta"])) for label, value in zip(labels, values)]
    found = TipAdapter().held_out_map(shots, ALPHAS, BETAS)
    return AlphaBetaMap(ALPHAS, BETAS, found, chosen, int(counts[counts > 1].sum()))
