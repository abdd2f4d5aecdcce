"""The layers that both of CLIP's image towers and its text tower are made of.

Jittor takes a LayerNorm or an activation and their gradients through memory many times, by one thread. On the CPU each
is one operator here (layers.cpp) with a gradient of its own; elsewhere it is written in Jittor's operators. Tests hold
the two to each other.
"""

from __future__ import annotations

import math

from jclip_fewshot.backend import jt
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import ACTIVATIONS


def normal(shape: tuple[int, ...], std: float) -> jt.Var:
    return jt.randn(shape) * std


def activate(x: jt.Var, activation: str = "quick_gelu") -> jt.Var:
    """x by one of ACTIVATIONS."""
    return _Activate.apply(x, ACTIVATIONS.index(activation)) if _fused(x) else activate_plainly(x, activation)


def activate_plainly(x: jt.Var, activation: str = "quick_gelu") -> jt.Var:
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
    if _fused(x) and _fused(weight) and _fused(bias):
        return _LayerNorm.apply(x, weight, bias, eps)
    return layer_norm_plainly(x, weight, bias, eps)


def layer_norm_plainly(x: jt.Var, weight: jt.Var, bias: jt.Var, eps: float = 1e-5) -> jt.Var:
    y = x.float32()
    y = y - y.mean(-1, keepdims=True)
    y = y / jt.sqrt((y * y).mean(-1, keepdims=True) + eps)
    return (y * weight.float32() + bias.float32()).cast(x.dtype)


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


def _fused(x: jt.Var) -> bool:
    return cpu.available() and str(x.dtype) == "float32"


def _code(shapes: list, inputs: list[jt.Var], call: str) -> list[jt.Var]:
    return jt.code(shapes, ["float32"] * len(shapes), inputs,
                   cpu_header=cpu.header("product.cpp", "tower.cpp", "layers.cpp"), cpu_src=f"jclip::{call};")


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
