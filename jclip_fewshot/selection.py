"""Which k training images of a class serve as its shots.

The contest lets each class have any k of its images, and it has hundreds. A random draw may hold a
drawing, a crowd or a mislabelled photo; a good draw stands for the class. Representative choice is
herding (Welling 2009, "Herding dynamical weights to learn") in CLIP's feature space: images are taken
one after another so that the mean of those taken stays as near as can be to the class's centre, which
is the mean of its pool without the rows that lie far from the rest or are read as another class.

Letters: m images of one class's pool, k shots, K classes, D feature width.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from .competition import Contest, choose_shots, draw_pool

KEPT = 0.8  # share of a pool that counts as typical; fixed in advance, as trimmed means commonly are


def herd(rows: np.ndarray, centre: np.ndarray, k: int) -> List[int]:
    """Indices of k of the (m, D) rows, in the order taken: each brings the mean nearest to `centre` (D,)."""
    taken: List[int] = []
    total = np.zeros(rows.shape[1])
    free = np.ones(len(rows), bool)
    for step in range(1, min(k, len(rows)) + 1):
        distance = np.linalg.norm((total + rows) / step - centre, axis=1)
        distance[~free] = np.inf
        best = int(distance.argmin())
        taken.append(best)
        free[best] = False
        total += rows[best]
    return taken


def representative(rows: np.ndarray, k: int, text: np.ndarray, label: int) -> List[int]:
    """k of a class's (m, D) unit rows that stand for it, as sorted indices.

    text (K, D): every class's text row, to tell rows that are read as another class than `label`.
    """
    rows = np.asarray(rows, np.float64)
    if len(rows) <= k:
        return list(range(len(rows)))
    # Near the pool's own mean, and nearer to its own text than to the most similar other one.
    similarity = rows @ text.T.astype(np.float64)
    rival = np.delete(similarity, label, axis=1).max(axis=1) if text.shape[0] > 1 else 0.0
    typical = standard(rows @ rows.mean(axis=0)) + standard(similarity[:, label] - rival)
    kept = np.argsort(-typical, kind="stable")[:max(k, int(np.ceil(KEPT * len(rows))))]
    kept.sort()
    centre = rows[kept].mean(axis=0)
    return sorted(int(kept[i]) for i in herd(rows[kept], centre, k))


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
        return f"representative: herding, {settings.shots} of {settings.pool} a class, seed {settings.seed}"
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
