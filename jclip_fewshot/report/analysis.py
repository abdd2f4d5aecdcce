"""The numbers of a report, taken out of a run's answers: pure functions on arrays.

Letters: N test images that could be read, S shots, K classes, D feature width. probs (N, K): rows sum to 1; truth,
guess (N,): class ids. The confidence of an answer is the probability of its first guess.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jclip_fewshot.records import HeldOut, Record
from jclip_fewshot.task import Task

CALIBRATION_BINS = 15  # as Guo et al. 2017, "On Calibration of Modern Neural Networks"
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)  # round numbers for the table of rejections
MAP = ("alphas", "betas", "top1")  # the arrays that Tip-Adapter leaves for the report


class ConfusedPair(NamedTuple):
    """Two classes, the rows of images of the first read as the second, those of the second as the first, their sum."""

    first: int
    second: int
    as_second: np.ndarray
    as_first: np.ndarray
    total: int


def confused_pairs(truth: np.ndarray, guess: np.ndarray, most: int = 20) -> list[ConfusedPair]:
    """Return the pairs of classes most often taken for each other, in each the one that is misread more often first."""
    wrong = np.flatnonzero(truth != guess)
    counts = Counter(tuple(sorted((int(truth[i]), int(guess[i])))) for i in wrong)
    pairs = []
    for (a, b), total in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]:
        ab = np.flatnonzero((truth == a) & (guess == b))
        ba = np.flatnonzero((truth == b) & (guess == a))
        pairs.append(ConfusedPair(*((a, b, ab, ba) if len(ab) >= len(ba) else (b, a, ba, ab)), total))
    return pairs


def domain_confusion(truth: np.ndarray, guess: np.ndarray, domains: Sequence[str]) -> dict[str, dict[str, int]]:
    """{domain of the true class: {domain of the first guess: images}}; `domains` names each class's domain."""
    true, guessed, names = np.array(domains)[truth], np.array(domains)[guess], list(dict.fromkeys(domains))
    return {name: {other: int(((true == name) & (guessed == other)).sum()) for other in names} for name in names}


def class_accuracy(truth: np.ndarray, guess: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(top-1 of each class in percent, nan where no image is of it; images of each class), both (K,)."""
    counts = np.bincount(truth, minlength=num_classes)
    hits = np.bincount(truth[truth == guess], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return 100 * hits / counts, counts


class Calibration(NamedTuple):
    """How often answers of a certain confidence are right, after Guo et al. 2017."""

    confidence: np.ndarray  # (B,) means in 0..1, nan for empty bins
    accuracy: np.ndarray  # (B,) likewise
    counts: np.ndarray  # (B,) images
    ece: float  # the mean of |accuracy - confidence|, each bin weighed by its images


def calibration(probs: np.ndarray, truth: np.ndarray) -> Calibration:
    """Sort the first guesses into CALIBRATION_BINS bins of equal width by their probability."""
    first = probs.max(axis=1).astype(float)
    right = probs.argmax(axis=1) == truth
    place = np.clip((first * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    counts, confidences, hits = (np.bincount(place, weights=weights, minlength=CALIBRATION_BINS)
                                 for weights in (None, first, right))
    with np.errstate(invalid="ignore"):
        confidence, accuracy = confidences / counts, hits / counts
    held = counts > 0
    ece = float((counts * np.abs(accuracy - confidence))[held].sum() / max(len(first), 1))
    return Calibration(confidence, accuracy, counts, ece)


class Rejection(NamedTuple):
    """What it costs to answer "None of these" below a confidence; all in percent, the last two None without truth."""

    threshold: float
    rejected: float  # of all images
    accuracy: float | None  # of the rest; nan where all are rejected
    lost: float | None  # right answers that are rejected, of all images


def rejection(probs: np.ndarray, truth: np.ndarray | None, thresholds: Sequence[float]) -> list[Rejection]:
    """Return the cost of each threshold, in 0..1; at least one image."""
    confidence, rows = probs.max(axis=1), []
    right = None if truth is None else probs.argmax(axis=1) == truth
    for threshold in thresholds:
        low, accuracy, lost = confidence < threshold, None, None
        if right is not None:
            accuracy = 100 * float(right[~low].mean()) if not low.all() else float("nan")
            lost = 100 * float((right & low).mean())
        rows.append(Rejection(100 * threshold, 100 * float(low.mean()), accuracy, lost))
    return rows


def held_out_estimate(probs: np.ndarray, labels: np.ndarray, domains: Sequence[str],
                      guess: np.ndarray) -> HeldOut | None:
    """Return what a test set should score, by its first guesses `guess` (N,), which weigh the domains, and by shots.

    probs (S, K): of fits without the shot; labels (S,). Only shots with another one of their class count; None if none.
    """
    of_class = np.array(domains)
    usable = np.bincount(labels, minlength=len(domains))[labels] > 1
    right = probs.argmax(axis=1) == labels
    top1 = variance = weights = 0.0
    for domain in dict.fromkeys(domains):
        hits = right[usable & (of_class[labels] == domain)]
        weight = float((of_class[guess] == domain).mean()) if len(guess) else 0.0
        if len(hits) and weight:
            top1, weights = top1 + weight * hits.mean(), weights + weight
            share = (hits.sum() + 1) / (len(hits) + 2)  # Laplace: an error of 0 would claim too much
            variance += weight ** 2 * share * (1 - share) / len(hits)
    if not weights:
        return None
    return HeldOut(100 * top1 / weights, 100 * variance ** 0.5 / weights, int(usable.sum()))


def changed_rows(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the rows whose first guess the refinement changed, the largest change first."""
    rows = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    return rows[np.argsort(-np.abs(after[rows] - before[rows]).sum(axis=1), kind="stable")]


def nearest_shots(rows: np.ndarray, probs: np.ndarray, truth: np.ndarray | None, task: Task) -> dict[str, np.ndarray]:
    """Return the shot nearest to each unit row (N, D), of the class answered and, where it is known, of the true one.

    As {"nearest_guess": (N,) which shot, -1 for none; "nearest_guess_cosine"; and of "truth"}.
    """
    arrays = {}
    for kind, classes in {"guess": probs.argmax(axis=1), **({} if truth is None else {"truth": truth})}.items():
        index, cosine = np.full(len(rows), -1, np.int32), np.zeros(len(rows), np.float32)
        for label in np.unique(classes):
            here, inside = np.flatnonzero(classes == label), np.flatnonzero(task.labels == label)
            if len(inside):
                near = rows[here] @ task.features[inside].T
                index[here], cosine[here] = inside[near.argmax(axis=1)], near.max(axis=1)
        arrays.update({f"nearest_{kind}": index, f"nearest_{kind}_cosine": cosine})
    return arrays


def parameter_count(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Return {method, or "ensemble": how many numbers it keeps}, of stored shots too, but not of copied text rows."""
    sizes = Counter[str]()
    for key, array in arrays.items():
        part, _, rest = key.partition("/")
        name, _, field = rest.partition("/")
        if array.dtype.kind == "f" and (part == "ensemble" or part == "methods" and field != "text_"):
            sizes[name if part == "methods" else part] += array.size
    return sizes


class AlphaBetaMap(NamedTuple):
    """Tip-Adapter's held-out top-1 over its weight α and sharpness β, and what was chosen."""

    alphas: np.ndarray  # (A,)
    betas: np.ndarray  # (B,)
    top1: np.ndarray  # (A, B), in percent
    chosen: list[tuple[str, float, float]]  # domain, or "" for all; α; β
    shots: int  # how many were answered

    def said(self) -> str:
        return "; ".join(f"{domain + ': ' if domain else ''}α {alpha:.3g}, β {beta:.3g}"
                         for domain, alpha, beta in self.chosen)


def alpha_beta_map(record: Record, arrays: dict[str, np.ndarray]) -> AlphaBetaMap | None:
    """Return the map that train.py left in the run's arrays; None where it left none."""
    settings = record.settings.get("tip_adapter", {})
    if any(f"alpha_beta/{key}" not in arrays for key in MAP) or not {"alpha", "beta"} <= settings.keys():
        return None
    names, values = list(dict.fromkeys(record.domains)), np.ravel(settings["alpha"]).tolist()
    labels = names if len(values) == len(names) > 1 else [""] * len(values)
    chosen = [(label, float(value), float(settings["beta"])) for label, value in zip(labels, values)]
    counts = np.bincount(arrays["shots/labels"])
    alphas, betas, top1 = (arrays[f"alpha_beta/{key}"].astype(float) for key in MAP)
    return AlphaBetaMap(alphas, betas, top1, chosen, int(counts[counts > 1].sum()))
