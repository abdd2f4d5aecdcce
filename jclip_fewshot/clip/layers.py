"""The layers that both of CLIP's image towers and its text tower are made of.

On the CPU each is one operator with a gradient of its own (layers.cpp, attention.cpp), elsewhere several of Jittor's.

B sequences · Q queries · L tokens · W width · H heads
"""

from __future__ import annotations

import math

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.cpp import source
from jclip_fewshot.backend.numerics import fused, softmax_var
from jclip_fewshot.clip.checkpoint.architecture import ACTIVATIONS

HEAD = 64  # width of a head in attention.cpp, that of nearly every CLIP's transformer


def normal(shape: tuple[int, ...], std: float) -> jt.Var:
    return jt.randn(shape) * std


def activate(x: jt.Var, activation: str = "quick_gelu") -> jt.Var:
    """x by one of ACTIVATIONS."""
    if fused(x):
        return _Activate.apply(x, ACTIVATIONS.index(activation))
    if activation == "quick_gelu":
        return x * jt.sigmoid(1.702 * x)
    y = x.float32()  # x ** 3 is beyond float16's numbers at 40
    if activation == "gelu_tanh":
        y = y * jt.sigmoid(2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y))
    else:
        y = y * (1 + jt.erf(y * math.sqrt(0.5))) * 0.5
    return y.cast(x.dtype)


def layer_norm(x: jt.Var, weight: jt.Var, bias: jt.Var, eps: float = 1e-5) -> jt.Var:
    """Over the last axis, in float32 whatever the input is."""
    if all(map(fused, (x, weight, bias))):
        return _LayerNorm.apply(x, weight, bias, eps)
    y = x.float32()
    y = y - y.mean(-1, keepdims=True)
    y = y / jt.sqrt((y * y).mean(-1, keepdims=True) + eps)
    return (y * weight.float32() + bias.float32()).cast(x.dtype)


def attend(q: jt.Var, kv: jt.Var, heads: int, seen: jt.Var | None = None) -> jt.Var:
    """softmax(q kᵀ / √(W/H)) v: q (B, Q, W), kv (B, L, 2W), keys first -> (B, Q, W); query i sees seen[b, i] keys."""
    if fused(q) and q.shape[2] == heads * HEAD:
        if seen is None:
            seen = jt.ones(q.shape[:2], "int32") * kv.shape[1]
        return _Attend.apply(q, kv, seen)
    return attend_plainly(q, kv, heads, seen)


def attend_plainly(q: jt.Var, kv: jt.Var, heads: int, seen: jt.Var | None = None) -> jt.Var:
    def split(x: jt.Var, parts: int) -> list:
        """(B, L, parts·W) -> parts times (B, H, L, W/H)."""
        x = x.reshape((batch, -1, parts, heads, width // heads)).transpose(2, 0, 3, 1, 4)
        return [x[part] for part in range(parts)]

    batch, queries, width = q.shape
    q, (k, v) = split(q, 1)[0], split(kv, 2)
    scores = jt.matmul(q * (width // heads) ** -0.5, k.transpose(0, 1, 3, 2))  # (B, H, Q, L)
    if seen is not None:
        hidden = jt.arange(k.shape[2]).reshape((1, 1, 1, -1)) >= seen.reshape((batch, 1, queries, 1))
        scores = jt.ternary(hidden.broadcast(scores.shape),
                            jt.float32(-1e4).cast(scores.dtype).broadcast(scores.shape), scores)
    return jt.matmul(softmax_var(scores), v).transpose(0, 2, 1, 3).reshape((batch, queries, width))


class LayerNorm(jt.nn.Module):
    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.weight = jt.ones((width,))
        self.bias = jt.zeros((width,))

    def execute(self, x):
        return layer_norm(x, self.weight, self.bias, self.eps)


class Linear(jt.nn.Module):
    """y = x W + b with W (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, std: float):
        self.weight = normal((inputs, outputs), std)
        self.bias = jt.zeros((outputs,))

    def execute(self, x):
        return jt.matmul(x, self.weight) + self.bias


def _code(shapes: list, inputs: list[jt.Var], call: str, library: str = "layers.cpp") -> list[jt.Var]:
    return jt.code(shapes, ["float32"] * len(shapes), inputs,
                   cpu_header=source(__file__, "product.cpp", "tower.cpp", library), cpu_src=f"jclip::{call};")


class _LayerNorm(jt.Function):
    def execute(self, x, weight, bias, eps):
        rows = x.numel() // weight.shape[0]
        y, moments = _code([x.shape, (rows, 2)], [x, weight, bias],
                           f"norm_all(out1_shape0, in1_shape0, in0_p, in1_p, in2_p, out0_p, out1_p, {eps!r}f)")
        self.saved = [x, weight, moments]
        return y

    def grad(self, gradient):
        x, weight, _ = self.saved
        return (*_code([x.shape, weight.shape, weight.shape], [*self.saved, gradient],
                       "norm_back(in2_shape0, in1_shape0, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p)"), None)


class _Activate(jt.Function):
    def execute(self, x, kind):
        self.x, self.kind = x, kind
        return _code([x.shape], [x], f"activate_all({kind}, in0->num, in0_p, out0_p)")[0]

    def grad(self, gradient):
        call = f"activate_back({self.kind}, in0->num, in0_p, in1_p, out0_p)"
        return _code([self.x.shape], [self.x, gradient], call)[0], None


_SIZES = "in0_shape0, in0_shape2 / jclip::HEAD, in0_shape1, in1_shape1"


class _Attend(jt.Function):
    def execute(self, q, kv, seen):
        batch, queries, width = q.shape
        out, probs = _code([q.shape, (batch, width // HEAD, queries, kv.shape[1])], [q, kv, seen],
                           f"attend_all({_SIZES}, in0_p, in1_p, in2_p, out0_p, out1_p)", "attention.cpp")
        self.saved = [q, kv, probs]
        return out

    def grad(self, gradient):
        q, kv, _ = self.saved
        return (*_code([q.shape, kv.shape], [*self.saved, gradient],
                       f"attend_back({_SIZES}, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p)", "attention.cpp"), None)
