"""Fresh draws of a suite's shots, and test sets of every shape that a method must survive."""

import numpy as np

from jclip_fewshot.evaluation.evaluate import draw_tasks
from jclip_fewshot.task import Task


def draw(suite, seed, per_class):
    """(shots, test features, test labels): the suite's own for seed 0, else drawn from all its rows.

    Classes with fewer than `per_class` + 2 rows, and those without a shot in the suite, get none.
    """
    if seed == 0:
        return suite.task, suite.features, suite.labels
    features = np.concatenate([suite.task.features, suite.features])
    labels = np.concatenate([suite.task.labels, suite.labels])
    rng = np.random.default_rng(seed)
    chosen = []
    for c in np.flatnonzero(suite.task.seen):
        rows = rng.permutation(np.flatnonzero(labels == c))
        if len(rows) >= per_class + 2:
            chosen.extend(rows[:per_class])
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    task = Task(features[chosen], labels[chosen], suite.task.text, suite.task.domains, suite.task.scale)
    return task, features[rest], labels[rest]


def long_tail(labels, seed, size=None, ratio=50.0):
    """Rows whose class counts fall off exponentially from the first class to 1/ratio of it at the last.

    The order of the classes is drawn. Without `size` every class keeps its share of its own rows, at least one; with
    it `size` rows are drawn with replacement.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(labels))
    shares = ratio ** (-np.arange(len(order)) / max(len(order) - 1, 1))
    rows = [rng.permutation(np.flatnonzero(labels == label)) for label in order]
    if size is None:
        return np.sort(np.concatenate([r[:max(1, round(len(r) * s))] for r, s in zip(rows, shares)]))
    counts = rng.multinomial(size, shares / shares.sum())
    return np.sort(np.concatenate([rng.choice(r, count) for r, count in zip(rows, counts)]))


def some_classes(labels, seed, share):
    """All rows of a random `share` of the classes that have any, at least one class."""
    present = np.unique(labels)
    chosen = np.random.default_rng(seed).choice(present, max(1, round(share * len(present))), replace=False)
    return np.flatnonzero(np.isin(labels, chosen))


def rows_per_class(labels, rows, seed):
    """At most `rows` rows of every class, drawn at random."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:rows]
                                   for label in np.unique(labels)]))


def test_sets(labels, seeds, tasks):
    """(name, list of row indices) of every setting."""
    rng = np.random.default_rng(0)
    yield "whole", [np.arange(len(labels))]
    for rows in (1, 2, 3, 5):
        yield f"{rows} a class", [rows_per_class(labels, rows, seed) for seed in range(seeds)]
    yield "long tail", [long_tail(labels, seed) for seed in range(seeds)]
    yield "long tail, drawn", [long_tail(labels, seed, size=len(labels)) for seed in range(seeds)]
    yield "half the classes", [some_classes(labels, seed, 0.5) for seed in range(seeds)]
    yield "quarter", [some_classes(labels, seed, 0.25) for seed in range(seeds)]
    yield "75 random rows", [rng.permutation(len(labels))[:75] for _ in range(max(tasks // 4, 1))]
    yield "tasks 5 x 75", draw_tasks(labels, tasks, 5, 75)
