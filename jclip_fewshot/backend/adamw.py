"""AdamW. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.

On the CPU a step is one operator (adamw.cpp) instead of a dozen passes by one thread; on CUDA it is Jittor's operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.cpp import source


class AdamW:
    """Optimise a list of float32 parameters; eps is added to the root of the second moment, betas are the moments'."""

    def __init__(self, weight_decay: float, eps: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.weight_decay, self.eps, self.betas = weight_decay, eps, betas
        self.steps = 0
        self.means: list[jt.Var] = []  # first moments
        self.squares: list[jt.Var] = []  # second moments

    def step(self, values: Sequence[jt.Var], gradients: Sequence[jt.Var], lr: float) -> list[jt.Var]:
        if not self.means:
            self.means = [jt.zeros_like(value) for value in values]
            self.squares = [jt.zeros_like(value) for value in values]
        self.steps += 1
        b1, b2 = self.betas
        # rate: learning rate over the first moment's bias. debias: 1 / root of the second moment's bias.
        step = {"b1": b1, "b2": b2, "rate": lr / (1 - b1 ** self.steps),
                "debias": float(1 / np.sqrt(1 - b2 ** self.steps)), "decay": 1 - lr * self.weight_decay,
                "eps": self.eps}
        move = plain_move if jt.flags.use_cuda else fused_move
        moved = [move(step, *four) for four in zip(values, self.means, self.squares, gradients)]
        new, self.means, self.squares = ([one.detach() for one in column] for column in zip(*moved))
        return new


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
