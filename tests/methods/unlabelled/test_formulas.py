"""CLIP+DN and CALIP: by property, CALIP against float64 NumPy."""

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods.unlabelled.calip import calip_logits
from jclip_fewshot.methods.unlabelled.clip_dn import clip_dn_logits
from jclip_fewshot.task import zero_shot_logits

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
