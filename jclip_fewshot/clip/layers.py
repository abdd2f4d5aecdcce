"""The layers that both of CLIP's image towers and its text tower are made of."""

from __future__ import annotations

from typing import Tuple

from jclip_fewshot.backend import jt

nn = jt.nn


def normal(shape: Tuple[int, ...], std: float) -> "jt.Var":
    return jt.randn(shape) * std


def quick_gelu(x: "jt.Var") -> "jt.Var":
    return x * jt.sigmoid(1.702 * x)


class LayerNorm(nn.Module):
    """Over the last axis, in float32 whatever the input is."""

    def __init__(self, width: int):
        self.weight = jt.ones((width,))
        self.bias = jt.zeros((width,))

    def execute(self, x):
        y = x.float32()
        y = y - y.mean(-1, keepdims=True)
        y = y / jt.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
        return (y * self.weight.float32() + self.bias.float32()).cast(x.dtype)


class Linear(nn.Module):
    """y = x W + b with W (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, std: float):
        self.weight = normal((inputs, outputs), std)
        self.bias = jt.zeros((outputs,))

    def execute(self, x):
        return jt.matmul(x, self.weight) + self.bias
