"""Which test rows a transductive method is given at once: pure functions from labels to row indices.

N test rows.  Every function takes the labels (N,) and a seed, and answers indices into the rows.
"""

from __future__ import annotations

import numpy as np


def draw_tasks(labels, num_classes: int, tasks: int, classes: int, queries: int,
               seed: int = 0) -> list[np.ndarray]:
    """Return every task's rows, after the protocol of Martin et al. 2024.

    A task draws `classes` classes at random among those of the `num_classes` that have a test row, then
    `queries` rows from them without replacement, or all where there are fewer.
    Raise ValueError for impossible numbers.
    """
    labels = _checked(labels)
    present = np.unique(labels)
    if present[-1] >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}")
    if tasks < 1 or queries < 1 or not 1 <= classes <= len(present):
        raise ValueError(f"need a task, a query, and 1 to {len(present)} classes: those with test rows")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(tasks):
        rows = np.flatnonzero(np.isin(labels, rng.choice(present, classes, replace=False)))
        drawn.append(rng.permutation(rows)[:queries])
    return drawn


def long_tail(labels, seed: int = 0, ratio: float = 50.0, size: int | None = None) -> np.ndarray:
    """Return rows whose class counts fall off exponentially from the first class to 1/ratio of it at the last.

    The order of the classes is drawn. Without `size` every class keeps its share of its own rows, at least
    one; with it `size` rows are drawn with replacement, so that rows repeat.
    """
    labels = _checked(labels)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(labels))
    shares = float(ratio) ** (-np.arange(len(order)) / max(len(order) - 1, 1))
    rows = [rng.permutation(np.flatnonzero(labels == label)) for label in order]
    if size is None:
        return np.sort(np.concatenate([r[:max(1, round(len(r) * s))] for r, s in zip(rows, shares)]))
    counts = rng.multinomial(size, shares / shares.sum())
    return np.sort(np.concatenate([rng.choice(r, count) for r, count in zip(rows, counts)]))


def some_classes(labels, seed: int = 0, share: float = 0.25) -> np.ndarray:
    """Return all rows of a random `share` of the classes that have any, at least one class."""
    labels = _checked(labels)
    present = np.unique(labels)
    count = max(1, round(share * len(present)))
    chosen = np.random.default_rng(seed).choice(present, count, replace=False)
    return np.flatnonzero(np.isin(labels, chosen))


def quarter_classes(labels, seed: int = 0) -> np.ndarray:
    """Return all rows of a quarter of the classes."""
    return some_classes(labels, seed, 0.25)


def rows_per_class(labels, rows: int, seed: int = 0) -> np.ndarray:
    """Return at most `rows` rows of every class, drawn at random."""
    labels = _checked(labels)
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:rows]
                                   for label in np.unique(labels)]))


def _checked(labels) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.min() < 0:
        raise ValueError("labels must be one axis of at least one class index, none negative")
    return labels
