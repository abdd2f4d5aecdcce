"""The layers that both of CLIP's image towers and its text tower are made of.

Jittor takes a LayerNorm or a QuickGELU and their gradients through memory many times, by one thread. On the CPU each
is one operator here (layers.cpp) with a gradient of its own; elsewhere it is written in Jittor's operators. Tests hold
the two to each other.
"""

from __future__ import annotations

from jclip_fewshot.backend import jt
from jclip_fewshot.clip import cpu

nn = jt.nn


def normal(shape: tuple[int, ...], std: float) -> jt.Var:
    return jt.randn(shape) * std


def quick_gelu(x: jt.Var) -> jt.Var:
    """x · sigmoid(1.702 x)"""
    return _QuickGelu.apply(x) if _fused(x) else quick_gelu_plainly(x)


def quick_gelu_plainly(x: jt.Var) -> jt.Var:
    return x * jt.sigmoid(1.702 * x)


def layer_norm(x: jt.Var, weight: jt.Var, bias: jt.Var) -> jt.Var:
    """Over the last axis, in float32 whatever the input is."""
    if _fused(x) and _fused(weight) and _fused(bias):
        return _LayerNorm.apply(x, weight, bias)
    return layer_norm_plainly(x, weight, bias)


def layer_norm_plainly(x: jt.Var, weight: jt.Var, bias: jt.Var) -> jt.Var:
    y = x.float32()
    y = y - y.mean(-1, keepdims=True)
    y = y / jt.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    return (y * weight.float32() + bias.float32()).cast(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, width: int):
        self.weight = jt.ones((width,))
        self.bias = jt.zeros((width,))

    def execute(self, x):
        return layer_norm(x, self.weight, self.bias)


class Linear(nn.Module):
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
    def execute(self, x, weight, bias):
        rows = x.numel() // weight.shape[0]
        y, moments = _code([x.shape, (rows, 2)], [x, weight, bias],
                           "norm_all(out1_shape0, in1_shape0, in0_p, in1_p, in2_p, out0_p, out1_p)")
        self.saved = [x, weight, moments]
        return y

    def grad(self, gradient):
        x, weight, _ = self.saved
        return tuple(_code([x.shape, weight.shape, weight.shape], [*self.saved, gradient],
                           "norm_back(in2_shape0, in1_shape0, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p)"))


class _QuickGelu(jt.Function):
    def execute(self, x):
        self.x = x
        return _code([x.shape], [x], "gelu_all(in0->num, in0_p, out0_p)")[0]

    def grad(self, gradient):
        return _code([self.x.shape], [self.x, gradient], "gelu_back(in0->num, in0_p, in1_p, out0_p)")[0]
