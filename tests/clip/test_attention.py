"""attention.cpp and its gradient against the same in Jittor's own operators and against float64."""

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import softmax, var

# batch, queries, tokens, heads; odd sizes leave part of a vector register empty
SHAPES = [(1, 1, 1, 1), (2, 5, 5, 2), (3, 1, 50, 1), (2, 17, 33, 2)]


def drawn(batch, queries, length, heads):
    rng = np.random.default_rng(0)
    width = 64 * heads
    return [rng.standard_normal(shape).astype(np.float32) for shape in (
        (batch, queries, width), (batch, length, 2 * width), (batch, queries, width))]


def reference(q, kv, heads, seen):
    """softmax(q kᵀ / 8) v in float64."""
    (batch, queries, width), length = q.shape, kv.shape[1]
    split = lambda x: x.reshape(batch, -1, heads, 64).transpose(0, 2, 1, 3).astype(np.float64)  # noqa: E731
    k, v = split(kv[:, :, :width]), split(kv[:, :, width:])
    scores = split(q) @ k.transpose(0, 1, 3, 2) / 8
    scores[np.broadcast_to(np.arange(length) >= seen[:, None, :, None], scores.shape)] = -1e4
    return (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(batch, queries, width)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_and_gradients(shape, masked):
    from jclip_fewshot.clip.layers import attend, attend_plainly  # starts Jittor
    batch, queries, length, heads = shape
    q, kv, weights = drawn(*shape)
    rng = np.random.default_rng(1)
    seen = rng.integers(1, length + 1, (batch, queries)) if masked else np.full((batch, queries), length)
    found = []
    for function in (attend, attend_plainly):
        a, b = var(q), var(kv)
        out = function(a, b, heads, jt.array(seen.astype(np.int32)) if masked else None)
        gradients = jt.grad((out * var(weights)).sum(), [a, b])
        found.append([out.numpy(), *(one.numpy() for one in gradients)])
    np.testing.assert_allclose(found[0][0], reference(q, kv, heads, seen), rtol=1e-3, atol=1e-5)
    for fused, plain in zip(*found):
        np.testing.assert_allclose(fused, plain, rtol=2e-3, atol=2e-5)
