"""The refinement of a whole test set from class names alone: no shot and no label takes part.

A Gaussian mixture whose class means are known beforehand from the text, as far as text tells where images lie:

    m_k ~ N(mu_k, V / kappa),  mu_k = x̄ + s (t_k - t̄),  t̄ = sum_k pi_k t_k      V  covariance within classes, pooled
    e_nk = ln N(x_n; posterior mean of m_k without x_n, V (1 + 1/n_k)) - ln N(x_n; mu_k, V (1 + 1/kappa))
    ln u_nk = ln p_nk + c e_nk + r a_nk + const                                  (rows sum to 1)

    N images · K classes · D feature width       p  zero-shot (N, K)     u  refined (N, K)      x (N, D)      t (K, D)
    pi_k  mean of u_k      n_k  kappa + images of k but x_n      a_nk  sum of cos(x_n, x_m) u_mk over nearest others m

x̄ - t̄ closes the gap between images and text for the classes that are present, not for the mean of all; s shrinks
the text's differences to the images' (least squares over soft class means). What makes it safe where nothing can be
checked: ln p stays in the sum; e is what the *images* add to the text, exactly 0 for a class without any; no image
votes for itself; an image asks no more neighbours than its class can have. kappa, c, r and the ridge are fixed: see
docs/nolabels.md. Related: TransCLIP and StatA (Zanella et al. 2024, 2025), which anchor u and the means to the text.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np

from jclip_fewshot.backend.numerics import log_softmax, matmul, softmax
from jclip_fewshot.combine.refinement import Refinement, blocks, distinct, keep_ranking
from jclip_fewshot.task import Task

MIN_IMAGES = 10  # fewer have nothing to tell each other
KAPPA = 1.0  # images that the text's guess at a class's mean is worth; measured 0.9 to 1.7 (docs/nolabels.md)
EVIDENCE = 0.1  # c: D correlated dimensions count for a tenth of independent ones
AGREEMENT = 0.3  # r
NEIGHBOURS = 5  # at most
RIDGE = 3.0  # times the mean variance, added to V
ROUNDS = 5
TINY = 1e-12


def refine_zero_shot(probs: np.ndarray, features: np.ndarray, task: Task) -> Refinement:
    """Refines a whole set's zero-shot probabilities.

    probs (N, K): rows summing to 1. features (N, D): unit rows. Of `task` the text rows and domains alone are read.
    Raises:
        ValueError: shapes that do not fit.
    """
    probs, features = np.asarray(probs, np.float32), np.asarray(features, np.float32)
    num_classes, width = task.text.shape
    if probs.ndim != 2 or probs.shape[1] != num_classes or features.shape != (len(probs), width):
        raise ValueError(f"probs {probs.shape} and features {features.shape} do not fit text {task.text.shape}")
    first, copy_of = distinct(features)  # copies of an image count once
    if len(first) < MIN_IMAGES:
        why = f"{len(first)} images are too few to learn from each other; the answers stay as they are"
        return _result(probs, probs, task, {"size": {"why": why}})
    refined, decision = _rounds(np.log(probs[first] + np.float32(TINY)), features[first], task.text)
    refined = keep_ranking(probs[first], refined)
    return _result(refined if copy_of is None else refined[copy_of], probs, task, {"names alone": decision})


def _rounds(start: np.ndarray, features: np.ndarray, text: np.ndarray) -> Tuple[np.ndarray, dict]:
    """The fixed point's rounds from ln p (N, K): u (N, K), and what was found on the way."""
    assignments, moved = softmax(start), []
    for _ in range(ROUNDS):
        mixture = TextMixture(features, text, assignments)
        logits = np.empty_like(start)
        for rows in blocks(len(start)):
            logits[rows] = start[rows] + np.float32(EVIDENCE) * mixture.evidence(rows)
            logits[rows] += np.float32(AGREEMENT) * mixture.agreement(rows)
        previous, assignments = assignments, softmax(logits)
        moved.append(float(np.abs(assignments - previous).sum(axis=1).mean() / 2))
    return assignments, {
        "text_scale": round(mixture.scale, 3), "neighbours": mixture.neighbours, "moved": moved,
        "why": f"about {mixture.present:.0f} of {len(text)} classes seem to have an image here; images differ by "
               f"{mixture.scale:.2f} of what their names differ"}


class TextMixture:
    """The mixture of one round, of rows assigned to classes by u (N, K); everything whitened by V and a ridge."""

    def __init__(self, features: np.ndarray, text: np.ndarray, assignments: np.ndarray) -> None:
        self.assignments = assignments
        self.mass = assignments.sum(axis=0, dtype=np.float64)
        shares = self.mass / len(features)
        self.present = float(np.exp(-(shares * np.log(shares + TINY)).sum()))  # classes, by the entropy of pi
        self.neighbours = int(np.clip(round(len(features) / self.present) - 1, 0, min(NEIGHBOURS, len(features) - 1)))
        x = features - features.mean(axis=0)
        t = (text - shares @ text).astype(np.float32)
        sums = matmul(assignments.T, x).astype(np.float64)
        self.scale = float(np.clip((sums * t).sum() / max((self.mass[:, None] * t * t).sum(), TINY), 0, 1))
        prior = self.scale * t
        self.counts = KAPPA + self.mass
        means = (KAPPA * prior + sums) / self.counts[:, None]
        cross = means.T @ sums
        covariance = (matmul(x.T, x) - cross - cross.T + (means * self.mass[:, None]).T @ means) / len(x)
        width = len(covariance)
        ridge = RIDGE * np.trace(covariance) / width + TINY
        precision = np.linalg.inv(covariance + ridge * np.eye(width))
        self.freedom = float((precision * covariance).sum())  # dimensions that are left of D
        whiten = np.linalg.cholesky(precision).astype(np.float32)
        self.x, self.means, self.prior = matmul(x, whiten), matmul(means, whiten), matmul(prior, whiten)
        self.squares = (self.x ** 2).sum(axis=1, keepdims=True)

    def evidence(self, rows: slice) -> np.ndarray:
        """e (n, K)."""
        others = np.maximum(self.counts - self.assignments[rows], KAPPA).astype(np.float32)
        # x - mean without x = (x - mean) counts / others
        new = self._squared(rows, self.means) * (self.counts.astype(np.float32) / others) ** 2
        # what a class has above the mean of all is not counted: frequent classes would win by being certain
        known = 1 + 1 / np.minimum(others, np.float32(KAPPA + self.mass.mean()))
        guessed = np.float32(1 + 1 / KAPPA)
        return 0.5 * (self._squared(rows, self.prior) / guessed - new / known
                      + np.float32(self.freedom) * (np.log(guessed) - np.log(known)))

    def agreement(self, rows: slice) -> np.ndarray:
        """a (n, K); 0 where a class has one image."""
        found = np.zeros((len(self.x[rows]), self.assignments.shape[1]), np.float32)
        if not self.neighbours:
            return found
        unit = self.x / np.sqrt(np.maximum(self.squares, TINY))
        numbers = np.arange(len(unit))[rows]
        for block in blocks(len(numbers), max(1, 2 ** 24 // len(unit))):
            cosines = matmul(unit[numbers[block]], unit.T)
            own = np.arange(len(cosines))
            cosines[own, numbers[block]] = -np.inf  # not itself
            nearest = np.argpartition(-cosines, self.neighbours - 1, axis=1)[:, :self.neighbours]
            for column in nearest.T:
                found[block] += np.maximum(cosines[own, column], 0)[:, None] * self.assignments[column]
        return found

    def _squared(self, rows: slice, means: np.ndarray) -> np.ndarray:
        """Squared distances (n, K)."""
        return np.maximum(self.squares[rows] - 2 * matmul(self.x[rows], means.T) + (means ** 2).sum(axis=1), 0)


def _result(refined: np.ndarray, probs: np.ndarray, task: Task, decisions: dict) -> Refinement:
    balance = refined.mean(axis=0, dtype=np.float64)
    changed = np.flatnonzero(refined.argmax(axis=1) != probs.argmax(axis=1))
    return Refinement(refined.astype(np.float32), changed, balance, np.bincount(task.domains, weights=balance),
                      ROUNDS, True, [], decisions)
