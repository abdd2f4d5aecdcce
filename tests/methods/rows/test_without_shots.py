"""CLIP+DN, CALIP and SuS-X: by property, CALIP against float64 NumPy."""

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods.rows import sus_x
from jclip_fewshot.methods.rows.tip_x import TipX
from jclip_fewshot.methods.unlabelled.calip import calip_logits
from jclip_fewshot.methods.unlabelled.clip_dn import clip_dn_logits
from jclip_fewshot.pipeline import with_support
from jclip_fewshot.task import Task, zero_shot_logits

RNG = np.random.default_rng(5)
TEXT = unit_rows(RNG.standard_normal((30, 16)))
ROWS = unit_rows(RNG.standard_normal((9, 16)))
PATCHES = unit_rows(RNG.standard_normal((9, 7, 16)))


def test_clip_dn_is_zero_shot_at_strength_zero_and_a_class_bias_else():
    mean = ROWS.mean(0)
    np.testing.assert_allclose(clip_dn_logits(ROWS, TEXT, mean, 0), zero_shot_logits(ROWS, TEXT), atol=1e-4)
    moved = clip_dn_logits(ROWS, TEXT, mean, 0.25) - zero_shot_logits(ROWS, TEXT)
    bias = moved - moved.mean(1, keepdims=True)  # what is common to all classes of a row changes no order
    np.testing.assert_allclose(bias, np.repeat(bias[:1], len(ROWS), 0), atol=1e-3)
    expected = -25 * (TEXT @ mean)
    np.testing.assert_allclose(bias[0], expected - expected.mean(), atol=1e-3)


def test_calip_is_zero_shot_without_attention():
    np.testing.assert_allclose(calip_logits(ROWS, PATCHES, TEXT, 0, 0), zero_shot_logits(ROWS, TEXT), atol=1e-4)


def test_calip_against_numpy():
    expected = []
    for x, F in zip(ROWS.astype(float), PATCHES.astype(float)):
        A = np.exp(2 * F @ TEXT.T)
        F_a = A / A.sum(1, keepdims=True) @ TEXT
        t_a = (A / A.sum(0)).T @ F
        expected.append(100 * (TEXT @ x + 0.3 * t_a @ x + 0.2 * TEXT @ (F_a.mean(0) + F_a.max(0))))
    np.testing.assert_allclose(calip_logits(ROWS, PATCHES, TEXT, 0.3, 0.2), expected, atol=1e-3)


def test_calip_does_not_care_for_the_order_of_patches():
    np.testing.assert_allclose(calip_logits(ROWS, PATCHES[:, ::-1], TEXT), calip_logits(ROWS, PATCHES, TEXT), atol=1e-4)


def test_support_of_another_thing_is_left_out():
    labels = np.repeat(np.arange(30), 2)
    rows = unit_rows(TEXT[labels] + 0.05 * RNG.standard_normal((60, 16)))
    rows[::10] = -TEXT[labels[::10]]  # as far from their class as can be
    kept = sus_x.keep_support(rows, labels, TEXT)
    assert not kept[::10].any() and kept.sum() == 54


def test_support_becomes_shots_of_the_classes_that_it_is_for():
    shots = Task(ROWS[:2], [0, 1], TEXT)
    rows = TEXT[[0, 5, 5, 7]]
    task, kept = with_support(shots, rows, [0, 5, 5, 20])
    assert kept.tolist() == [True, True, True, False] and task.labels.tolist() == [0, 1, 0, 5, 5]
    task, kept = with_support(shots, rows, [0, 5, 5, 20], unseen_only=True)
    assert kept.tolist() == [False, True, True, False] and task.labels.tolist() == [0, 1, 5, 5]
    none, kept = with_support(Task(np.zeros((0, 16)), [], TEXT), rows[:0], [])
    assert len(none) == 0 and len(kept) == 0


def test_sus_x_searches_nothing_and_uses_the_support():
    task, _ = with_support(Task(np.zeros((0, 16)), [], TEXT), TEXT, np.arange(30))
    head = sus_x.SusX().fit(task)
    settings = head.settings_
    assert (settings["alpha"], settings["gamma"], settings["beta"]) == (sus_x.ALPHA, sus_x.GAMMA, sus_x.BETA)
    assert np.abs(head.logits(ROWS) - zero_shot_logits(ROWS, TEXT)).max() > 0.1
    assert isinstance(head, TipX) and head.temperature_ == sus_x.TEMPERATURE
    trained = sus_x.SusXF().fit(task)
    assert trained.settings_["epoch"] == trained.epochs  # the last epoch
