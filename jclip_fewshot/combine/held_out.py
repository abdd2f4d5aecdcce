"""How strongly to refine a test set: what its shots say when they are put among the images without their labels.

For each fold of the shots, every image and every shot left out is answered by fits that did not see the fold. The
shots left out, guests among the images, are then refined as the images would be; their labels tell what that is worth.
The images must be answered without the fold, too: answered by a fit on all shots, those that resemble a guest carry
its label already and hand it back, which made refining look four to nine times better than it was.

    gain_s(c, r) = score(start_s + c e_s + r a_s) - score(start_s),   score = ln((1 - ε) p(y_s) + ε / K)
    v_s          = images that seem to be of y_s's class / guests of that class

Where no candidate's mean gain exceeds its standard error, nothing is refined. Else the candidates count as good that
gain and lie within a standard error (of the paired difference) of the best, and the one nearest to the standard
setting is taken. ε = 0.05 is a log-loss that one wrong label in twenty cannot rule. v weighs the guests as the test
set does: a class that fills a quarter of the images counts for as much. Measurements: docs/refinement.md.

Letters: G guests, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jclip_fewshot.backend.numerics import softmax, temperature
from jclip_fewshot.task import Task

STRENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # c: D correlated dimensions count for a tenth of independent ones
AGREEMENTS = (0.0, 1.5, 3.0)  # r / c
STANDARD = 0.1, 3.0  # c and r / c where the shots leave a choice
WRONG = 0.05  # ε
CAUTION = 1.0  # standard errors
LEAST_GAIN = 1e-4  # nats: less is none


@dataclass(frozen=True)
class HeldOutFold:
    """Shots left out, and the answers of fits that did not see them."""

    task: Task  # with the kept shots
    features: np.ndarray  # (G, D) of the shots left out
    labels: np.ndarray  # (G,)
    answer: Callable[[np.ndarray], np.ndarray]  # (N, D) rows -> (N, K) probabilities, without the shots left out
    class_bias: np.ndarray | float = 0.0  # (K,) that ln of these answers carries, fitted to the other shots

    @cached_property
    def own_answers(self) -> np.ndarray:
        """(G, K): to the shots left out themselves."""
        return self.answer(self.features)


@dataclass(frozen=True)
class Choice:
    """c, r and T of the refinement."""

    distances: float
    agreement: float
    temperature: float


# (features (N, D), fold) -> start, e, a of the guests, each (G, K)
Guests = Callable[[np.ndarray, HeldOutFold], tuple[np.ndarray, np.ndarray, np.ndarray]]


def choose(features: np.ndarray, mass: np.ndarray, folds: Iterable[HeldOutFold], force: bool, guests: Guests
           ) -> tuple[Choice | None, dict]:
    """(c, r, T) for a test set, and the decision for the record; None: nothing to check by.

    features (N, D): the images that guests are put among. mass (K,): how many images seem to be of each class.

    force: the best candidate, whether or not it gains.
    """
    parts, labels, weights = [], [], []
    for fold in folds:
        parts.append(np.stack(guests(features, fold)))
        labels.append(fold.labels)
        weights.append(mass[fold.labels] / np.bincount(fold.labels)[fold.labels])
    if not parts:
        return None, {"why": "no image is compared with others: no shot can be left out to check a refinement by"}
    start, e, a = np.concatenate(parts, axis=1)
    labels, weights = np.concatenate(labels), np.concatenate(weights)
    weights = weights / max(weights.mean(), 1e-9)

    before = score(start, labels)
    candidates = [(c, ratio) for c in STRENGTHS for ratio in (AGREEMENTS if a.any() else (0.0,))]
    gains = np.stack([score(start + np.float32(c) * e + np.float32(c * ratio) * a, labels) - before
                      for c, ratio in candidates])
    means, errors = mean_and_error(gains, weights)
    safe = np.arange(len(means)) if force else np.flatnonzero(means > np.maximum(CAUTION * errors, LEAST_GAIN))
    if not len(safe):
        return Choice(0.0, 0.0, 1.0), {
            "distances": 0.0, "agreement": 0.0, "guests": len(labels),
            "why": f"no image is compared with others: {len(labels)} shots put among the images without their labels"
                   " were not answered better by looking at the other images"}
    best = safe[means[safe].argmax()]
    behind, noise = mean_and_error(gains[best] - gains, weights)
    chosen = min(np.flatnonzero((behind <= CAUTION * noise) & (means >= min(means[best], 0))), key=lambda i: (
        abs(np.log(candidates[i][0] / STANDARD[0])), abs(candidates[i][1] - STANDARD[1])))
    c, r = candidates[chosen][0], candidates[chosen][0] * candidates[chosen][1]
    mean, error = float(means[chosen]), float(errors[chosen])
    refined = start + np.float32(c) * e + np.float32(r) * a
    # two digits: what float32 sums in another order agree on
    warmer = round(temperature(start, labels, weights) / temperature(refined, labels, weights), 2)
    return Choice(c, r, warmer), {
        "distances": c, "agreement": r, "temperature": warmer, "gain": mean, "error": error, "guests": len(labels),
        "why": f"strength {c:g}, neighbours {r:g}: put among the images without their labels, {len(labels)} shots find "
               f"their class {100 * mean:.1f} ± {100 * error:.1f} % more probable"}


def mean_and_error(gains: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of (C, G) gains and its standard error, (C,); weights (G,) have mean 1."""
    means = (weights * gains).mean(axis=1)
    return means, np.sqrt((weights ** 2 * (gains - means[:, None]) ** 2).sum(axis=1)) / gains.shape[1]


def score(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """ln((1 - ε) p(label) + ε / K) of each row, (G,)."""
    own = softmax(logits)[np.arange(len(labels)), labels]
    return np.log((1 - WRONG) * own + WRONG / logits.shape[1])
