"""Tasks, long tails and classes left out: which rows are drawn."""

import numpy as np
import pytest

from jclip_fewshot.evaluation.tasks import draw_tasks, long_tail, quarter_classes, some_classes

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 30))


def test_tasks_hold_their_classes_and_repeat():
    tasks = draw_tasks(LABELS, 22, tasks=9, classes=5, queries=75, seed=3)
    assert len(tasks) == 9
    for rows in tasks:
        assert len(rows) == 75 and len(np.unique(rows)) == 75
        assert len(np.unique(LABELS[rows])) <= 5
    again = draw_tasks(LABELS, 22, tasks=9, classes=5, queries=75, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(tasks, again))
    other = draw_tasks(LABELS, 22, tasks=9, classes=5, queries=75, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(tasks, other))


def test_tasks_take_all_rows_where_there_are_fewer():
    (rows,) = draw_tasks(np.array([0, 0, 1, 3, 3, 3]), 5, tasks=1, classes=2, queries=75)
    assert len(rows) in (3, 4, 5)
    with pytest.raises(ValueError, match="1 to 3 classes"):
        draw_tasks(np.array([0, 1, 3]), 5, tasks=1, classes=4, queries=75)
    with pytest.raises(ValueError, match="0..2"):
        draw_tasks(np.array([0, 1, 3]), 3, tasks=1, classes=2, queries=75)


def test_long_tail_falls_off_and_keeps_every_class():
    counts = np.bincount(LABELS[long_tail(LABELS, 1, ratio=30)])
    assert counts.min() == 1 and counts.max() == 30 and len(counts) == 20
    drawn = long_tail(LABELS, 1, ratio=30, size=600)
    assert len(drawn) == 600 and len(np.unique(drawn)) < 600
    assert np.array_equal(drawn, long_tail(LABELS, 1, ratio=30, size=600))


def test_some_classes_are_whole():
    rows = quarter_classes(LABELS, 2)
    assert len(rows) == 150 and len(np.unique(LABELS[rows])) == 5
    assert len(some_classes(LABELS, 2, 0.5)) == 300
    assert len(quarter_classes(np.zeros(4, int))) == 4
