"""layers.cpp and its gradients against the same in Jittor's own operators and against float64."""

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
def test_layer_norm(shape):
    from jclip_fewshot.clip.layers import layer_norm, layer_norm_plainly  # starts Jittor
    arrays = [3 * drawn(*shape) + 2, 1 + drawn(shape[-1], seed=1), drawn(shape[-1], seed=2)]
    fused, plain = (with_gradients(function, arrays, drawn(*shape, seed=3))
                    for function in (layer_norm, layer_norm_plainly))
    x = arrays[0].astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * arrays[1] + arrays[2]
    np.testing.assert_allclose(fused[0], expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(fused, plain):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 65)])
def test_quick_gelu(shape):
    from jclip_fewshot.clip.layers import quick_gelu, quick_gelu_plainly  # starts Jittor
    x = 4 * drawn(*shape)
    fused, plain = (with_gradients(function, [x], drawn(*shape, seed=3))
                    for function in (quick_gelu, quick_gelu_plainly))
    np.testing.assert_allclose(fused[0], x / (1 + np.exp(-1.702 * x.astype(np.float64))), rtol=1e-5, atol=1e-6)
    for one, other in zip(fused, plain):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_same_twice():
    from jclip_fewshot.clip.layers import layer_norm
    arrays, weights = [drawn(4, 50, 96), drawn(96, seed=1), drawn(96, seed=2)], drawn(4, 50, 96, seed=3)
    for one, other in zip(*(with_gradients(layer_norm, arrays, weights) for _ in range(2))):
        np.testing.assert_array_equal(one, other)
