"""Transductive refinement: better probabilities for a whole test set than for each image by itself.

    ln u_nk = ln p_nk + w_nk + C e_nk + const                     (rows sum to 1; a few fixed-point steps)

    e_nk  = g(x_n; mu_k without x_n, c_k - u_nk) - TAKEN_BACK g(x_n; mu_k of the shots alone, their number)
    g     = -(d2(x, mu) / (1 + 1/c) + LOG_DET D' ln(1 + 1/c)) / 2 D'    predictive Gaussian, its mean known by c rows
    mu_k  = (KAPPA m_k + shots of k + sum_n u_nk x_n) / c_k         c_k the rows in it, counted as an average class's
    m_k   = x̄ + s (t_k - t̄)                                        the text's guess at the mean, s by least squares
    d2    Mahalanobis, one covariance pooled within classes with a ridge;   D' the dimensions that the ridge leaves
    w, C  class weights and strength: see `strength`.   Without shots nothing is taken back

    N images · S shots · K classes · D feature width     p  start    u  refined (N, K)    x  images    t  text rows

ln p stays in the sum for good, no image votes for itself, and copies count once. Related to EM-Dirichlet, TransCLIP and
StatA (Zanella et al. 2024, 2025), and ADAPT (2025). What each part gives: docs/refinement.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend.numerics import blocks, matmul, softmax
from jclip_fewshot.combine.ensemble import text_explains
from jclip_fewshot.combine.strength import SAMPLE, TINY, ClassWeights, HeldOutFold, by_images, by_shots, class_weights
from jclip_fewshot.task import Task, class_sums

MIN_IMAGES = 10  # fewer have nothing to tell each other
KAPPA = 1.0  # images that the text's guess at a class's mean is worth
TAKEN_BACK = 0.5  # of the shots' own evidence: p holds it already
LOG_DET = 0.5  # of the log-determinant: without it, classes without images win; whole, it is too careful
RIDGE = 1.0  # times the mean variance, added to the pooled covariance
STEPS = 3, 5  # with shots that check them; without: the names alone start further away
LEAST_TEXT = 0.5  # of `text_explains`, where shots cannot check the refinement


@dataclass(frozen=True)
class Refinement:
    probs: np.ndarray  # (N, K) float32
    changed: np.ndarray  # images whose first answer is another than before
    classes_present: int  # that seem to have an image
    decisions: dict[str, dict]  # in numbers and, under "why", in words

    def record(self) -> dict:
        return {"changed": len(self.changed), "queries": len(self.probs), "classes_present": self.classes_present,
                "decisions": self.decisions}

    def report(self) -> str:
        first = f"refinement: the first answer of {len(self.changed)} of {len(self.probs)} images changed"
        return "\n".join([first, *(f"  {name}: {decision['why']}" for name, decision in self.decisions.items())])


def refine(probs: np.ndarray, features: np.ndarray, task: Task, folds: Iterable[HeldOutFold] = (),
           force: bool = False) -> Refinement:
    """Return the refinement of a whole set's probabilities.

    probs (N, K): calibrated, rows summing to 1. features (N, D): unit rows. folds: held-out shots and fits without
    them, which choose the strength; without any, the images choose it. force: refine whatever these say.
    Raise ValueError if the shapes do not fit.
    """
    probs, features = np.asarray(probs, np.float32), np.asarray(features, np.float32)
    num_classes, width = task.text.shape
    if probs.ndim != 2 or probs.shape[1] != num_classes or features.shape != (len(probs), width):
        raise ValueError(f"probs {probs.shape} and features {features.shape} do not fit text {task.text.shape}")
    given, (first, copy_of) = probs, distinct(features)
    if copy_of is not None:
        probs, features = probs[first], features[first]
    if len(probs) < MIN_IMAGES:
        copies = f", {len(probs)} without copies," if copy_of is not None else ""
        images = "1 image is" if len(given) == 1 else f"{len(given)} images{copies} are"
        why = f"{images} too few to learn from each other; the answers stay as they are"
        return result_of(given, given, num_classes, {"size": {"why": why}})
    folds = list(folds)
    if not folds and not force and len(task) and text_explains(task) < LEAST_TEXT:
        why = "each image keeps its own answer: the text says too little about the shots"
        return result_of(given, given, num_classes, {"features": {"why": why}})
    weights, decisions = class_weights(probs, folds, task.seen)
    u = weights.apply(probs)
    if folds:
        # the held-out shots do not see each other: they may outnumber the images
        found = by_shots(probs, features, folds, weights, force, lambda rows, assignments, fold: (
            Mixture(rows, assignments, fold.task).evidence(fold.features, np.float32(0))))
    else:
        some = np.random.default_rng(0).permutation(len(probs))[:SAMPLE]
        e = Mixture(features, u, task).evidence(features[some], u[some])
        found = by_images(probs[some], e, len(probs), weights.present, force)
    decisions["features"] = found
    if found["weight"]:
        u = fixed_point(probs, features, task, u, found["weight"], weights, STEPS[not folds])
        u **= np.float32(1 / found["temperature"])
        u /= u.sum(axis=1, keepdims=True)
    elif not weights.sparse and weights.shares is None:
        return result_of(given, given, round(weights.present), decisions)
    refined = keep_ranking(probs, u, 0.5 if folds else 0.0)
    return result_of(refined if copy_of is None else refined[copy_of], given, round(weights.present), decisions)


def fixed_point(probs: np.ndarray, features: np.ndarray, task: Task, assignments: np.ndarray, strength: float,
                weights: ClassWeights, steps: int) -> np.ndarray:
    """Return u (N, K) after so many steps from `assignments` (N, K)."""
    for _ in range(steps):
        mixture, updated = Mixture(features, assignments, task), np.empty_like(probs)
        for rows in blocks(len(probs)):
            evidence = mixture.evidence(features[rows], assignments[rows])
            updated[rows] = softmax(np.log(probs[rows] + np.float32(TINY)) + np.float32(strength) * evidence)
        assignments = weights.apply(updated)
    return assignments


class Mixture:
    """The Gaussians of rows (N, D) that are assigned to classes by u (N, K), and of the shots and text of `task`."""

    def __init__(self, features: np.ndarray, assignments: np.ndarray, task: Task) -> None:
        mass = assignments.sum(axis=0, dtype=np.float64)
        rows = mass + task.counts
        self.centre = (features.sum(axis=0, dtype=np.float64) + task.features.sum(axis=0)) / (len(features) + len(task))
        x, shots = features - self.centre.astype(np.float32), task.features - self.centre.astype(np.float32)
        shot_sums = class_sums(shots, task.labels, task.num_classes)
        sums = matmul(assignments.T, x) + shot_sums
        text = task.text - rows / rows.sum() @ task.text
        scale = (sums * text).sum() / max((rows[:, None] * text ** 2).sum(), TINY)
        self.text_scale = float(np.clip(scale, 0, 1))
        self.least, self.counts = np.float32(KAPPA) + task.counts.astype(np.float32), (KAPPA + rows).astype(np.float32)
        means = (KAPPA * self.text_scale * text + sums) / self.counts[:, None]
        cross = means.T @ sums
        scatter = matmul(x.T, x).astype(np.float64) + shots.T @ shots - cross - cross.T
        covariance = (scatter + (means * rows[:, None]).T @ means) / rows.sum()
        ridge = RIDGE * np.trace(covariance) / len(covariance) + TINY
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        self.freedom = max(float((precision * covariance).sum()), 1.0)
        self.whiten = np.linalg.cholesky(precision).astype(np.float32)
        self.means = matmul(means.astype(np.float32), self.whiten)
        of_shots = (KAPPA * self.text_scale * text + shot_sums) / self.least[:, None]
        self.shot_means = matmul(of_shots.astype(np.float32), self.whiten) if len(task) else None
        self.most = self.least + np.float32(mass.mean())

    def evidence(self, features: np.ndarray, own: np.ndarray | np.float32) -> np.ndarray:
        """Return e (n, K) of rows (n, D), which take part in the means with assignments `own` (n, K)."""
        x = matmul(features - self.centre.astype(np.float32), self.whiten)
        others = np.maximum(self.counts - own, self.least)
        # x - mean without x = (x - mean) counts / others. A class counts no more rows than the average one, or frequent
        # classes would win by being certain
        found = self._predictive(x, self.means, np.minimum(others, self.most), (self.counts / others) ** 2)
        if self.shot_means is not None:
            found -= TAKEN_BACK * self._predictive(x, self.shot_means, self.least)
        return found

    def _predictive(self, x: np.ndarray, means: np.ndarray, counts: np.ndarray, stretch: np.ndarray | int = 1
                    ) -> np.ndarray:
        """g (n, K) of whitened rows, whose squared distances to means of so many rows are stretched."""
        squared = (x ** 2).sum(axis=1, keepdims=True) - 2 * matmul(x, means.T) + (means ** 2).sum(axis=1)
        unsure = 1 + 1 / counts
        return -0.5 * (np.maximum(squared, 0) * stretch / unsure / np.float32(self.freedom)
                       + np.float32(LOG_DET) * np.log(unsure))


def distinct(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the first row of each distinct image, in order, and which of them each row copies (None: no copies)."""
    rows = np.ascontiguousarray(features).view(np.dtype((np.void, features.dtype.itemsize * features.shape[1])))
    _, first, inverse = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    if len(first) == len(features):
        return np.arange(len(features)), None
    order = np.argsort(first)
    return first[order], np.argsort(order)[inverse.reshape(-1)]


def keep_ranking(start: np.ndarray, refined: np.ndarray, trust: float) -> np.ndarray:
    """Return rows (N, K) with the refined first answer and its probability, behind it start^(1 - trust) refined^trust:
    refined rows are too sure to rank the rest by themselves."""
    result = np.empty_like(refined)
    for rows in blocks(len(refined)):
        share = refined[rows].max(axis=1)
        at = np.arange(len(share)), refined[rows].argmax(axis=1)
        fused = start[rows] ** np.float32(1 - trust) * refined[rows] ** np.float32(trust)
        fused[at] = 0
        fused *= ((1 - share) / np.maximum(fused.sum(axis=1), TINY))[:, None]
        # behind the first, in their own order
        fused *= np.minimum(1, 0.999 * share / np.maximum(fused.max(axis=1), TINY))[:, None]
        fused[at] = share
        result[rows] = fused / fused.sum(axis=1, keepdims=True)
    return result


def result_of(refined: np.ndarray, probs: np.ndarray, present: int, decisions: dict) -> Refinement:
    return Refinement(refined, np.flatnonzero(refined.argmax(axis=1) != probs.argmax(axis=1)), present, decisions)
