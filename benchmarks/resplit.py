"""Fresh draws of a suite's shots, and test sets of every shape that a method must survive."""

import numpy as np

from jclip_fewshot.evaluation.tasks import draw_tasks, long_tail, quarter_classes, rows_per_class, some_classes
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


def test_sets(labels, num_classes, seeds, tasks):
    """(name, list of row indices) of every setting."""
    rng = np.random.default_rng(0)
    yield "whole", [np.arange(len(labels))]
    for rows in (1, 2, 3, 5):
        yield f"{rows} a class", [rows_per_class(labels, rows, seed) for seed in range(seeds)]
    yield "long tail", [long_tail(labels, seed) for seed in range(seeds)]
    yield "long tail, drawn", [long_tail(labels, seed, size=len(labels)) for seed in range(seeds)]
    yield "half the classes", [some_classes(labels, seed, 0.5) for seed in range(seeds)]
    yield "quarter", [quarter_classes(labels, seed) for seed in range(seeds)]
    yield "75 random rows", [rng.permutation(len(labels))[:75] for _ in range(max(tasks // 4, 1))]
    yield "tasks 5 x 75", draw_tasks(labels, num_classes, tasks, 5, 75)
