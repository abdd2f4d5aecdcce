"""layers.cpp and its gradients against the same in Jittor's own operators and against float64."""

import math

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import var


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_gradients(function, arrays, weights):
    """Values and the gradients of Σ weights · values."""
    given = [var(array) for array in arrays]
    out = function(*given)
    return [one.numpy() for one in (out, *jt.grad((out * var(weights)).sum(), given))]


@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 5, 48), (3, 50, 768), (7, 33)])
def test_layer_norm(shape, monkeypatch):
    from jclip_fewshot.clip import layers  # starts Jittor
    arrays = [3 * drawn(*shape) + 2, 1 + drawn(shape[-1], seed=1), drawn(shape[-1], seed=2)]
    fused = with_gradients(layers.layer_norm, arrays, drawn(*shape, seed=3))
    monkeypatch.setattr(layers, "fused", lambda x: False)
    plain = with_gradients(layers.layer_norm, arrays, drawn(*shape, seed=3))
    x = arrays[0].astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * arrays[1] + arrays[2]
    np.testing.assert_allclose(fused[0], expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(fused, plain):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)


def normal_share(x):
    """The standard normal distribution function in float64."""
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


EXPECTED = {"quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)), "gelu": lambda x: x * normal_share(x),
            "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))}


@pytest.mark.parametrize("activation", list(EXPECTED))
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 65)])
def test_activations(shape, activation, monkeypatch):
    from jclip_fewshot.clip import layers  # starts Jittor
    x = 4 * drawn(*shape)
    fused = with_gradients(lambda given: layers.activate(given, activation), [x], drawn(*shape, seed=3))
    monkeypatch.setattr(layers, "fused", lambda given: False)
    plain = with_gradients(lambda given: layers.activate(given, activation), [x], drawn(*shape, seed=3))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(fused[0], EXPECTED[activation](wide), rtol=1e-5, atol=1e-6)
    slope = (EXPECTED[activation](wide + 1e-5) - EXPECTED[activation](wide - 1e-5)) / 2e-5
    np.testing.assert_allclose(fused[1], slope * drawn(*shape, seed=3), rtol=1e-4, atol=1e-5)
    for one, other in zip(fused, plain):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_same_twice():
    from jclip_fewshot.clip.layers import layer_norm
    arrays, weights = [drawn(4, 50, 96), drawn(96, seed=1), drawn(96, seed=2)], drawn(4, 50, 96, seed=3)
    for one, other in zip(*(with_gradients(layer_norm, arrays, weights) for _ in range(2))):
        np.testing.assert_array_equal(one, other)
