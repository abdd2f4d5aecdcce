"""The refinement of a whole test set from class names alone: no shot and no label takes part.

    m_k ~ N(mu_k, V / kappa),  mu_k = x̄ + s (t_k - t̄),  t̄ = sum_k pi_k t_k         V  pooled within classes
    e_nk = ln N(x_n; posterior mean of m_k without x_n, V (1 + 1/n_k)) - ln N(x_n; mu_k, V (1 + 1/kappa))
    ln u_nk = ln p_nk + C / D' e_nk + r a_nk - b_k + const                          (rows sum to 1)

    N images · K classes · D feature width      p  zero-shot (N, K)     u  refined (N, K)     x  images     t  text
    m_k  mean of class k's images    pi_k  mean of u_k    n_k  kappa + images of k but x_n    D'  what the ridge leaves
    of D    a_nk  sum of cos(x_n, x_m) u_mk over nearest others m    b  bias; 0 unless all classes are there alike

x̄ - t̄ closes the gap between images and text for the classes that are present; s shrinks the text's differences to
the images'; kappa says how well text then tells where class means lie. s and kappa follow from the images, C, r and the
ridge are fixed. Safe where nothing can be checked: ln p stays in the sum; e is what the images add to the text, 0 for a
class without any; no image votes for itself, or asks more neighbours than its class can have; with one or two images a
class nothing is done; behind the first answer zero-shot's order stays. Related to TransCLIP and StatA (Zanella et al.
2024, 2025). Why, and what it gives: docs/nolabels.md.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend.numerics import matmul, softmax
from jclip_fewshot.combine.refinement import (
    MIN_IMAGES,
    Refinement,
    agreement,
    blocks,
    checked,
    choose_concentration,
    distinct,
    result_of,
    too_few,
    unrefined,
)
from jclip_fewshot.task import Task

KAPPA = 0.5  # before the first round: images that the text's guess at a class's mean is worth
KAPPAS = 0.25, 2.0  # bounds of what later rounds find
EVIDENCE = 9.0  # C, in nats: what an image's distances weigh, however many dimensions they have
AGREEMENT = 0.3  # r
NEIGHBOURS = 5  # at most
LEAST_NEIGHBOURS = 2  # that a class's images must be able to have for anything to be learned
RIDGE = 3.0  # times the mean variance, added to V
ROUNDS = 5
BALANCE = 0.9  # rho
IMAGES_TO_BALANCE = 4  # a class; fewer cannot show that classes differ
BIAS_ROUNDS = 8
TINY = 1e-12


def refine_zero_shot(probs: np.ndarray, features: np.ndarray, task: Task, least_images: float = 0.0) -> Refinement:
    """Refines a whole set's zero-shot probabilities.

    probs (N, K): rows summing to 1. features (N, D): unit rows. Of `task` the text rows and domains alone are read.
    least_images: of a class that is present; with fewer nothing is done.
    Raises:
        ValueError: shapes that do not fit.
    """
    probs, features = checked(probs, features, task)
    first, copy_of = distinct(features)  # copies of an image count once
    if len(first) < MIN_IMAGES:
        return too_few(probs, len(first), task)
    refined, decision = _rounds(np.log(probs[first] + np.float32(TINY)), features[first], task.text, least_images)
    if refined is None:
        return unrefined(probs, task, {"images": decision})
    refined = ranked_behind(probs[first], refined)
    present = round(decision["present"])
    return result_of(refined if copy_of is None else refined[copy_of], probs, task, present, {"images": decision})


def _rounds(start: np.ndarray, features: np.ndarray, text: np.ndarray,
            least_images: float = 0.0) -> tuple[np.ndarray | None, dict]:
    """The fixed point's rounds from ln p (N, K): u (N, K), None where nothing is done; and what was found."""
    assignments, moved, kappa = softmax(start), [], KAPPA
    # half of the images gain nothing from the proportions of the other half: all classes are there alike
    alike = not np.isfinite(choose_concentration(assignments)[0])
    balanced = alike and len(start) >= IMAGES_TO_BALANCE * len(text)
    for _ in range(ROUNDS):
        present = float(min(start.shape)) if alike else classes_present(assignments)
        mixture = TextMixture(features, text, assignments, kappa, present)
        if mixture.neighbours < LEAST_NEIGHBOURS:
            return None, _too_few(len(features), present)
        logits = np.empty_like(start)
        for rows in blocks(len(start)):
            logits[rows] = start[rows] + np.float32(EVIDENCE / mixture.freedom) * mixture.evidence(rows)
            logits[rows] += np.float32(AGREEMENT) * mixture.agreement(rows)
        if balanced:
            logits -= balancing_bias(logits)
        previous, assignments = assignments, softmax(logits)
        moved.append(float(np.abs(assignments - previous).sum(axis=1).mean() / 2))
        kappa = mixture.found_kappa
    if len(features) < least_images * present:
        return None, _too_few(len(features), present)
    why = (f"about {present:.0f} of {len(text)} classes seem to have an image here; images differ by "
           f"{mixture.scale:.2f} of what their names differ"
           + ("; classes are drawn to equal shares" if balanced else ""))
    return assignments, {"present": present, "text_scale": round(mixture.scale, 3), "kappa": round(mixture.kappa, 2),
                         "neighbours": mixture.neighbours, "balanced": balanced, "moved": moved, "why": why}


def _too_few(images: int, present: float) -> dict:
    return {"why": f"{images} images of about {present:.0f} classes: too few of a class to learn from each other; the "
                   "answers stay as they are"}


def ranked_behind(start: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """Refined rows: the first answer, with its probability; behind it the start's order and ratios."""
    at = np.arange(len(refined)), refined.argmax(axis=1)
    share, rest = refined[at], start.copy()
    rest[at] = 0
    rest *= ((1 - share) / np.maximum(rest.sum(axis=1), TINY))[:, None]
    rest *= np.minimum(1, 0.999 * share / np.maximum(rest.max(axis=1), TINY))[:, None]  # behind, in their own order
    rest[at] = share
    return rest / rest.sum(axis=1, keepdims=True)


def classes_present(assignments: np.ndarray) -> float:
    """How many classes have an image, by the entropy of their shares."""
    shares = assignments.mean(axis=0, dtype=np.float64)
    return float(np.exp(-(shares * np.log(shares + TINY)).sum()))


def balancing_bias(logits: np.ndarray) -> np.ndarray:
    """b (K,): b_k = rho ln((m_k + 1) / (N / K + 1)), m_k the mass of k under softmax(logits - b), by substitution."""
    bias = np.zeros(logits.shape[1], np.float32)
    for _ in range(BIAS_ROUNDS):
        mass = softmax(logits - bias).sum(axis=0, dtype=np.float64)
        wanted = BALANCE * np.log((mass + 1) / (len(logits) / len(mass) + 1))
        bias += np.float32(0.5) * (wanted - bias).astype(np.float32)
    return bias


class TextMixture:
    """The mixture of one round, of rows assigned to classes by u (N, K); everything whitened by V and a ridge."""

    def __init__(self, features: np.ndarray, text: np.ndarray, assignments: np.ndarray, kappa: float,
                 present: float) -> None:
        self.assignments, self.kappa = assignments, kappa
        self.mass = assignments.sum(axis=0, dtype=np.float64)
        shares = self.mass / len(features)
        self.neighbours = int(np.clip(round(len(features) / present) - 1, 0, min(NEIGHBOURS, len(features) - 1)))
        x = features - features.mean(axis=0)
        t = (text - shares @ text).astype(np.float32)
        sums = matmul(assignments.T, x).astype(np.float64)
        self.scale = float(np.clip((sums * t).sum() / max((self.mass[:, None] * t * t).sum(), TINY), 0, 1))
        prior = self.scale * t
        self.counts = self.kappa + self.mass
        means = (self.kappa * prior + sums) / self.counts[:, None]
        cross = means.T @ sums
        covariance = (matmul(x.T, x) - cross - cross.T + (means * self.mass[:, None]).T @ means) / len(x)
        width = len(covariance)
        ridge = RIDGE * np.trace(covariance) / width + TINY
        precision = np.linalg.inv(covariance + ridge * np.eye(width))
        self.freedom = max(float((precision * covariance).sum()), 1.0)  # D'
        whiten = np.linalg.cholesky(precision).astype(np.float32)
        self.x, self.means, self.prior = matmul(x, whiten), matmul(means, whiten), matmul(prior, whiten)
        # E |mean of k's images - mu_k|² = D' (1 / kappa + 1 / m_k)
        missed = matmul(sums / np.maximum(self.mass, TINY)[:, None], whiten) - self.prior
        spread = (self.mass * (missed ** 2).sum(axis=1)).sum() / self.freedom - (self.mass > 0.5).sum()
        self.found_kappa = float(np.clip(self.mass.sum() / max(spread, TINY), *KAPPAS))
        self.squares = (self.x ** 2).sum(axis=1, keepdims=True)

    def evidence(self, rows: slice) -> np.ndarray:
        """e (n, K)."""
        others = np.maximum(self.counts - self.assignments[rows], self.kappa).astype(np.float32)
        # x - mean without x = (x - mean) counts / others
        new = self._squared(rows, self.means) * (self.counts.astype(np.float32) / others) ** 2
        # what a class has above the mean of all is not counted: frequent classes would win by being certain
        known = 1 + 1 / np.minimum(others, np.float32(self.kappa + self.mass.mean()))
        guessed = np.float32(1 + 1 / self.kappa)
        return 0.5 * (self._squared(rows, self.prior) / guessed - new / known
                      + np.float32(self.freedom) * (np.log(guessed) - np.log(known)))

    def agreement(self, rows: slice) -> np.ndarray:
        """a (n, K); 0 where a class has one image."""
        unit = self.x / np.sqrt(np.maximum(self.squares, TINY))
        return agreement(unit[rows], unit, self.assignments, self.neighbours, np.arange(len(unit))[rows])

    def _squared(self, rows: slice, means: np.ndarray) -> np.ndarray:
        """Squared distances (n, K)."""
        return np.maximum(self.squares[rows] - 2 * matmul(self.x[rows], means.T) + (means ** 2).sum(axis=1), 0)
