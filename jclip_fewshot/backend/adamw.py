"""AdamW. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.

On the CPU a step is one operator (adamw.cpp) instead of a dozen passes by one thread; on CUDA it is written in
Jittor's operators, and tests hold the two to each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.cpp import source


class AdamW:
    """Steps a list of float32 parameters.

    lr: learning rate. weight_decay: apart from the gradient. eps: added to the root of the second moment. betas: of
    the two moments.
    """

    def __init__(self, lr: float, weight_decay: float = 0.0, eps: float = 1e-8,
                 betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.lr, self.weight_decay, self.eps, self.betas = lr, weight_decay, eps, betas
        self.steps = 0
        self.means: list[jt.Var] = []  # first moments
        self.squares: list[jt.Var] = []  # second moments

    def step(self, values: Sequence[jt.Var], gradients: Sequence[jt.Var], pace: float) -> list[jt.Var]:
        """The new values; `pace` in 0..1 is the schedule's factor on the learning rate."""
        if not self.means:
            self.means = [jt.zeros_like(value) for value in values]
            self.squares = [jt.zeros_like(value) for value in values]
        self.steps += 1
        b1, b2 = self.betas
        rate, debias = self.lr * pace / (1 - b1 ** self.steps), 1 / np.sqrt(1 - b2 ** self.steps)
        pace_of = {"b1": b1, "b2": b2, "rate": rate, "debias": debias,
                   "shrink": 1 - self.lr * pace * self.weight_decay, "eps": self.eps}
        move = plain_move if jt.flags.use_cuda else fused_move
        moved = [move(*four, **pace_of) for four in zip(values, self.means, self.squares, gradients)]
        values, self.means, self.squares = ([one.detach() for one in column] for column in zip(*moved))
        return values


def plain_move(value: jt.Var, mean: jt.Var, square: jt.Var, gradient: jt.Var, *, b1: float, b2: float,
               rate: float, debias: float, shrink: float, eps: float) -> tuple[jt.Var, jt.Var, jt.Var]:
    """(value, first moment, second moment) after a step, in Jittor's operators."""
    mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient * gradient
    return value * shrink - rate * mean / (jt.sqrt(square) * debias + eps), mean, square


def fused_move(value: jt.Var, mean: jt.Var, square: jt.Var, gradient: jt.Var,
               **pace: float) -> list[jt.Var]:
    """`plain_move` as one operator of the CPU."""
    return jt.code([value.shape] * 3, ["float32"] * 3, [value, mean, square, gradient],
                   cpu_header=source(__file__, "adamw.cpp"),
                   data={name: float(number) for name, number in pace.items()}, cpu_src="""
        jclip::Pace pace{(float)data["b1"], (float)data["b2"], (float)data["rate"], (float)data["debias"],
                         (float)data["shrink"], (float)data["eps"]};
        jclip::adamw(in0->num, pace, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p);
    """)
