"""The fused losses of the CPU against float64 and against Jittor's own operators."""

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.backend import losses as module
from jclip_fewshot.backend.losses import cross_entropy, label_losses, softmax_kl
from jclip_fewshot.backend.numerics import log_softmax, softmax, var

SHAPES = [(1, 1), (1, 5), (7, 2), (40, 397), (300, 33)]


@pytest.fixture(params=["fused", "plain"], autouse=True)
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(module, "fused", lambda logits: False)


def drawn(shape, spread=5.0):
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape) * spread, rng.integers(shape[1], size=shape[0]), rng.standard_normal(shape[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_label_losses_and_their_gradient(shape):
    z, labels, weights = drawn(shape)
    rows, y, scale = np.arange(shape[0]), jt.array(labels.astype(np.int32)), 3.0
    logits = var(z)
    found = label_losses(logits, y, scale)
    np.testing.assert_allclose(found.numpy(), -log_softmax(scale * z)[rows, labels], rtol=1e-4, atol=1e-5)
    gradient = jt.grad((found * var(weights)).sum(), logits).numpy()
    expected = scale * (softmax(scale * z) - np.eye(shape[1])[labels]) * weights[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(cross_entropy(logits, y).item(), -log_softmax(z)[rows, labels].mean(), rtol=1e-4,
                               atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_kl_and_its_gradient(shape):
    target, other = drawn(shape, 2.0)[0], np.random.default_rng(1).standard_normal(shape)
    logits, goal = var(other), var(target)
    found = softmax_kl(goal, logits)
    expected = (softmax(target) * (log_softmax(target) - log_softmax(other))).sum(1).mean()
    np.testing.assert_allclose(found.item(), expected, rtol=1e-4, atol=1e-6)
    by_logits, by_target = (gradient.numpy() for gradient in jt.grad(found, [logits, goal]))
    np.testing.assert_allclose(by_logits, (softmax(other) - softmax(target)) / shape[0], rtol=1e-3, atol=1e-6)
    assert not by_target.any()


def test_logits_of_any_size_stay_finite():
    z = np.array([[1e4, -1e4, 0], [-3e4, -3e4, -3e4]])
    labels = jt.array(np.array([1, 2], np.int32))
    logits = var(z)
    found = label_losses(logits, labels)
    np.testing.assert_allclose(found.numpy(), [2e4, np.log(3)], rtol=2e-3)  # 3e4 has no digits left for more
    assert np.isfinite(jt.grad(found.sum(), logits).numpy()).all()
    # a class that takes no part
    closed = label_losses(var([[0.0, -1e9, 1.0]]), jt.array(np.array([0], np.int32)))
    np.testing.assert_allclose(closed.item(), np.log(1 + np.e), rtol=1e-5)
