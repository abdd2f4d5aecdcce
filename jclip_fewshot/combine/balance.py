"""Whether a test set has about as many images of every class, and answers that then say so.

An unsure classifier favours some classes, so that its answers look unbalanced where the set is not. How much, the
shots left out show: of them there are as many of every class.

    r_k  = m_k / mean m,  m_k = sum_n p_nk        how often a class is answered; of the seen classes alone
    V    = var_k r_k                              what the images show: a^2 (variance of the true shares) + V_0
    V_0  = s + nu K / N                           what a balanced set of N images would show: s the variance between
                                                  classes, nu that between single images of one, both from the shots
    a    = (mean p_sy - 1/K) / (1 - 1/K)          how much of a class's surplus the answers show; y_s a shot's label
    beta = clip(1 - (V + E - V_0) / (a^2 V_0), 0, 1)   0 where the shares may vary more than the answers err;
                                                  E = V_0 sqrt(2 / K) is V's standard error
    share_k ~ r_k^(1 - beta),  p'_nk ~ p_nk v_k   v such that sum_n p'_nk = N share_k (Sinkhorn and Knopp)

The shots are answered without the ensemble's class bias, which is fitted to them: with it s came out as zero, without
it as what balanced test rows show (docs/refinement.md).

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jclip_fewshot.combine.held_out import HeldOutFold

ROUNDS = 30
TINY = 1e-9
CLOSE = 1e-3  # of the share that is wanted
LEAST_CLASSES = 20  # a dozen cannot show how much their shares vary
CAUTION = 1.0  # standard errors
LEAST_IMAGES = 0.99  # a class: with fewer, some have none
SMOOTH = 0.5  # images added to every class: one that is hardly answered at all is not drawn up for good


class BalancedSet(NamedTuple):
    """What a balanced set's answers look like: s, nu and a of the file's head, by so many classes."""

    between: float
    single: float
    shown: float
    classes: int

    def spread(self, images: float) -> float:
        """V_0 for so many images a class."""
        return self.between + self.single / images


def balanced_shares(probs: np.ndarray, folds: Sequence[HeldOutFold], seen: np.ndarray
                    ) -> tuple[np.ndarray | None, dict]:
    """How large a share of the images each class should have, (K,), None: as it comes; and what was found.

    probs (N, K). seen (K,): the classes that have shots; the others keep their share.
    """
    mass = probs.sum(axis=0, dtype=np.float64)
    images = mass[seen].sum() / max(seen.sum(), 1)  # a class
    balanced = balanced_set(folds, len(seen)) if images >= LEAST_IMAGES else None
    if balanced is None or balanced.classes < seen.sum() / 2:
        return None, {"beta": 0.0}
    relative = mass[seen] / images
    spread, expected = float(relative.var()), max(balanced.spread(images), TINY)
    most = spread + CAUTION * expected * np.sqrt(2 / balanced.classes)
    beta = float(np.clip(1 - (most - expected) / (balanced.shown ** 2 * expected), 0, 1))
    found = {"beta": beta, "spread": spread ** 0.5, "spread_if_balanced": expected ** 0.5}
    if beta == 0:
        return None, found
    drawn = relative ** (1 - beta)
    shares = mass / mass.sum()
    shares[seen] = drawn / drawn.sum() * shares[seen].sum()
    return shares, found


def balanced_set(folds: Sequence[HeldOutFold], num_classes: int) -> BalancedSet | None:
    """By the shots left out: of the classes of which some are, and the folds that leave out some of all these.

    None where these are fewer than two folds or `LEAST_CLASSES` classes.
    """
    given = np.stack([np.bincount(fold.labels, minlength=num_classes) for fold in folds]) if folds else np.zeros((0, 1))
    columns = given.any(axis=0)
    whole = [number for number in range(len(folds)) if given[number, columns].all()]
    if len(whole) < 2 or columns.sum() < LEAST_CLASSES:
        return None
    shots = given[whole][:, columns].mean()  # of a class in a fold
    surplus, own = [], []
    for number in whole:
        fold = folds[number]
        probs = fold.own_answers * np.exp(-np.asarray(fold.class_bias, np.float64))
        probs /= probs.sum(axis=1, keepdims=True)
        surplus.append((probs.sum(axis=0) - given[number])[columns] / shots)
        own.append(probs[np.arange(len(fold.labels)), fold.labels])
    of_a_fold = float(np.var(surplus, axis=0, ddof=1).mean())
    between = float(np.mean(surplus, axis=0).var()) - of_a_fold / len(whole)
    chance = 1 / columns.sum()
    shown = (float(np.concatenate(own).mean()) - chance) / (1 - chance)
    return BalancedSet(max(between, 0.0), of_a_fold * shots, max(shown, TINY), int(columns.sum()))


def balancing_weights(probs: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """ln v (K,) float32 with sum_n p_nk v_k / sum_j p_nj v_j = N share_k, nearly."""
    probs = np.asarray(probs, np.float32)
    wanted = len(probs) * shares + SMOOTH
    weights = np.ones(probs.shape[1])
    for _ in range(ROUNDS):
        scaled = 1 / (probs @ weights.astype(np.float32))
        missing = wanted / (weights * (scaled @ probs) + SMOOTH)
        weights *= missing
        weights /= weights.max()
        if np.abs(missing - 1).max() < CLOSE:
            break
    return np.log(weights).astype(np.float32)
