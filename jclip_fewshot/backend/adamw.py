"""Adam and AdamW. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.

On the CPU a step is one operator (adamw.cpp) instead of a dozen passes by one thread; on CUDA it is Jittor's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.cpp import source


class Adam:
    """Adam on named float32 parameters, with weight decay in the gradient (`l2`) or apart from it (`weight_decay`).

    decays: which parameters have weight decay, by name; None: all. eps is added to the root of the second moment.
    lr_factors: of the learning rate, by name, else 1. betas: of the moments.
    """

    def __init__(self, weight_decay: float = 0.0, l2: float = 0.0, eps: float = 1e-8,
                 decays: Callable[[str], bool] | None = None, lr_factors: Mapping[str, float] = MappingProxyType({}),
                 betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.weight_decay, self.l2, self.eps, self.decays = weight_decay, l2, eps, decays
        self.lr_factors, self.betas = lr_factors, betas
        self.steps = 0
        self._moments: dict[str, list[jt.Var]] = {}  # first and second, of each parameter

    def step(self, values: dict[str, jt.Var], gradients: dict[str, jt.Var], lr: float) -> dict[str, jt.Var]:
        self.steps += 1
        b1, b2 = self.betas
        move, moved = plain_move if jt.flags.use_cuda else fused_move, {}
        for name, value in values.items():
            decayed, own_lr = self.decays is None or self.decays(name), lr * self.lr_factors.get(name, 1.0)
            gradient = gradients[name] + self.l2 * value if self.l2 and decayed else gradients[name]
            # rate: learning rate over the first moment's bias. debias: 1 / root of the second moment's bias.
            step = {"b1": b1, "b2": b2, "rate": own_lr / (1 - b1 ** self.steps),
                    "debias": float(1 / np.sqrt(1 - b2 ** self.steps)),
                    "decay": 1 - own_lr * (self.weight_decay if decayed else 0.0), "eps": self.eps}
            mean, square = self._moments.get(name) or (jt.zeros_like(value), jt.zeros_like(value))
            moved[name], *self._moments[name] = (one.detach() for one in move(step, value, mean, square, gradient))
        return moved

    def state(self) -> list[jt.Var]:
        return [moment for moments in self._moments.values() for moment in moments]


def plain_move(step: dict[str, float], value: jt.Var, mean: jt.Var, square: jt.Var, gradient: jt.Var) -> list[jt.Var]:
    """Return value, first moment and second moment after a step, in Jittor's operators."""
    b1, b2 = step["b1"], step["b2"]
    mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient * gradient
    change = step["rate"] * mean / (jt.sqrt(square) * step["debias"] + step["eps"])
    return [value * step["decay"] - change, mean, square]


def fused_move(step: dict[str, float], value: jt.Var, mean: jt.Var, square: jt.Var, gradient: jt.Var) -> list[jt.Var]:
    """Return the same as `plain_move`, by one operator of the CPU."""
    return jt.code([value.shape] * 3, ["float32"] * 3, [value, mean, square, gradient],
                   cpu_header=source(__file__, "adamw.cpp"), data=step, cpu_src="""
        jclip::Step step{(float)data["b1"], (float)data["b2"], (float)data["rate"], (float)data["debias"],
                         (float)data["decay"], (float)data["eps"]};
        jclip::adamw(in0->num, step, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p);
    """)
