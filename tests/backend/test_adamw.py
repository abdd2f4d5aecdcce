"""AdamW against its formula in float64, as one operator and in Jittor's own."""

import numpy as np
import pytest

from jclip_fewshot.backend import adamw
from jclip_fewshot.backend.adamw import Adam, fused_move, plain_move
from jclip_fewshot.backend.numerics import var


@pytest.mark.parametrize("move", [fused_move, plain_move])
@pytest.mark.parametrize("shape", [(3, 4), (300, 100)])
def test_adamw_against_numpy(move, shape, monkeypatch):
    monkeypatch.setattr(adamw, "fused_move", move)
    rng = np.random.default_rng(0)
    value = rng.standard_normal(shape).astype(np.float32)
    ours, x = Adam(weight_decay=0.1), {"x": var(value)}
    theirs, m, v = value.astype(np.float64), 0, 0
    for step in range(1, 6):
        gradient = rng.standard_normal(shape).astype(np.float32)
        x = ours.step(x, {"x": var(gradient)}, 0.005)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient ** 2
        theirs = theirs * (1 - 0.005 * 0.1) - 0.005 * (m / (1 - 0.9 ** step)) / (
            np.sqrt(v / (1 - 0.999 ** step)) + 1e-8)
    np.testing.assert_allclose(x["x"].numpy(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("move", [fused_move, plain_move])
def test_a_gradient_whose_square_is_subnormal_moves_nothing(move, monkeypatch):
    """A class without shots that its text is sure of has such gradients; -Ofast makes NaN of their square's root."""
    monkeypatch.setattr(adamw, "fused_move", move)
    gradient = np.geomspace(1e-24, 1e-14, 50_000).astype(np.float32)
    value = np.ones_like(gradient)
    moved = Adam().step({"x": var(value)}, {"x": var(gradient)}, 0.003)["x"].numpy()
    np.testing.assert_allclose(moved, value, atol=1e-7)
