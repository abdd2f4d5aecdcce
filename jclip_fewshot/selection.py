"""Which k training images of a class serve as its shots.

The contest lets each class have any k of its images, and it has hundreds. A random draw may hold a drawing, a crowd
or a mislabelled photo, or the same scene twice. Representative choice is k-medoids (Kaufman and Rousseeuw 1987, PAM)
in CLIP's feature space: the k images for which the sum of each image's distance 1 - x·x' to the nearest of them is
least, so that they cover what the class looks like. The rows that lie farthest from the rest, or are read as another
class, may not be chosen and need not be covered.

Of the rules tried on re-split suites (benchmarks/selection.py), choosing the rows nearest to the class's mean was
worse than a random draw: shots that look alike say little of the class, and leave-one-shot-out takes it for easier
than it is.

Letters: m images of one class's pool, k shots, K classes, D feature width.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from .competition import Contest, choose_shots, draw_pool

KEPT = 0.9  # share of a pool that counts as typical: a tenth may be wrong labels and odd pictures


def medoids(distance: np.ndarray, k: int) -> List[int]:
    """Indices of k medoids under an (m, m) distance matrix: greedy start, then swaps while they help."""
    m = len(distance)
    if m <= k:
        return list(range(m))
    chosen: List[int] = []
    nearest = np.full(m, np.inf)
    for _ in range(k):
        cost = np.minimum(distance, nearest[:, None]).sum(axis=0)
        cost[chosen] = np.inf
        chosen.append(int(cost.argmin()))
        nearest = np.minimum(nearest, distance[:, chosen[-1]])
    improved = True
    while improved:
        improved = False
        for place in range(k):
            others = chosen[:place] + chosen[place + 1:]
            reach = distance[:, others].min(axis=1) if others else np.full(m, np.inf)
            cost = np.minimum(distance, reach[:, None]).sum(axis=0)
            cost[others] = np.inf
            best = int(cost.argmin())
            if cost[best] < cost[chosen[place]] - 1e-9:
                chosen[place] = best
                improved = True
    return sorted(chosen)


def representative(rows: np.ndarray, k: int, text: np.ndarray, label: int) -> List[int]:
    """k of a class's (m, D) unit rows that stand for it, as sorted indices.

    text (K, D): every class's text row, to tell rows that are read as another class than `label`.
    """
    rows = np.asarray(rows, np.float64)
    if len(rows) <= k:
        return list(range(len(rows)))
    # Near the pool's own mean, and nearer to its own text than to the most similar other one.
    similarity = rows @ text.T.astype(np.float64)
    rival = np.delete(similarity, label, axis=1).max(axis=1) if len(text) > 1 else 0.0
    typical = standard(rows @ rows.mean(axis=0)) + standard(similarity[:, label] - rival)
    kept = np.sort(np.argsort(-typical, kind="stable")[:max(k, int(np.ceil(KEPT * len(rows))))])
    return [int(kept[i]) for i in medoids(1 - rows[kept] @ rows[kept].T, k)]


def standard(values: np.ndarray) -> np.ndarray:
    """Values with mean 0 and spread 1; zeros where all are equal."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def choose_representative(labelled: Sequence[Tuple[str, int]], rows: np.ndarray, text: np.ndarray,
                          k: int) -> List[Tuple[str, int]]:
    """k images of each class from a pool: `labelled` (path, class id) with their (n, D) unit rows."""
    labels = np.array([label for _, label in labelled], np.int64)
    chosen: List[Tuple[str, int]] = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        chosen += [labelled[inside[i]] for i in representative(rows[inside], k, text, int(label))]
    return chosen


def rule(settings) -> str:
    """How the shots of a run were chosen, for its record."""
    if settings.shot_list:
        return f"list {settings.shot_list}"
    if settings.select == "representative":
        return f"representative: k-medoids, {settings.shots} of {settings.pool} a class, seed {settings.seed}"
    return f"random: {settings.shots} a class, seed {settings.seed}"


def choose(contest: Contest, settings, source, text: np.ndarray) -> List[Tuple[str, int]]:
    """The shots of a run as the settings ask: a list, a seeded draw, or representative of a larger pool.

    text (K, D): the classes' text rows. The pool is a seeded draw too, encoded once and cached.
    Raises:
        UserError: fewer images than shots, or a shot list that does not fit the data set.
    """
    if settings.shot_list or settings.select == "random":
        return choose_shots(contest, settings.shots, settings.seed, settings.shot_list or None)
    choose_shots(contest, settings.shots, settings.seed)  # complains of classes that are too small
    pool = draw_pool(contest, max(settings.pool, settings.shots), settings.seed)
    rows, bad = source.images(contest.root, [path for path, _ in pool], stage="pool")
    readable = [index for index in range(len(pool)) if index not in bad]
    return choose_representative([pool[i] for i in readable], rows[readable], text, settings.shots)
