"""SuS-X: which support images stay, whose shots they become, and that nothing is searched."""

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods.rows import sus_x
from jclip_fewshot.methods.rows.tip_x import TipX
from jclip_fewshot.problem import with_support
from jclip_fewshot.task import Task, zero_shot_logits

RNG = np.random.default_rng(5)
TEXT = unit_rows(RNG.standard_normal((30, 16)))
ROWS = unit_rows(RNG.standard_normal((9, 16)))


def images(labels):
    return [(f"{number}.jpg", label) for number, label in enumerate(labels)]


def test_support_of_another_thing_is_left_out():
    labels = np.repeat(np.arange(30), 2)
    rows = unit_rows(TEXT[labels] + 0.05 * RNG.standard_normal((60, 16)))
    rows[::10] = -TEXT[labels[::10]]  # as far from their class as can be
    kept = sus_x.keep_support(rows, labels, TEXT)
    assert not kept[::10].any() and kept.sum() == 54


def test_support_becomes_shots_of_the_classes_that_it_is_for():
    shots = Task(ROWS[:2], [0, 1], TEXT)
    rows, given = TEXT[[0, 5, 5, 7]], images([0, 5, 5, 20])
    task, kept = with_support(shots, rows, given)
    assert kept == given[:3] and task.labels.tolist() == [0, 1, 0, 5, 5] and len(shots) == 2
    task, kept = with_support(shots, rows, given, unseen_only=True)
    assert kept == given[1:3] and task.labels.tolist() == [0, 1, 5, 5]
    nothing = Task(np.zeros((0, 16)), [], TEXT)
    assert with_support(nothing, rows[:0], []) == (nothing, [])


def test_sus_x_searches_nothing_and_uses_the_support():
    task, _ = with_support(Task(np.zeros((0, 16)), [], TEXT), TEXT, images(range(30)))
    method = sus_x.SusX().fit(task)
    settings = method.settings_
    assert (settings["alpha"], settings["gamma"], settings["beta"]) == (1.0, 0.1, 5.5)
    assert np.abs(method.logits(ROWS) - zero_shot_logits(ROWS, TEXT)).max() > 0.1
    assert isinstance(method, TipX) and method.temperature_ == sus_x.SusX.temperature
    trained = sus_x.SusXF().fit(task)
    assert trained.settings_["epoch"] == trained.epochs  # the last epoch
