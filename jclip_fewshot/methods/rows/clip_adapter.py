"""CLIP-Adapter. Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024
(https://arxiv.org/abs/2110.04544), equations 2 to 4, image side.

    A(f) = ReLU(ReLU(f W₁) W₂),   f' = R A(f) + (1 − R) f, renormalised,   logits = 100 f' tᵀ

Symbols: f image row (D,); W₁ (D, D/4), W₂ (D/4, D); R residual ratio, 0.2 in the paper.

Deviations: 20 epochs instead of 200, stopped where the held-out shots say; R in answering by the same score.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.rows.trained import Arrays, TrainedMethod, Vars
from jclip_fewshot.methods.training import uniform
from jclip_fewshot.task import Task


class ClipAdapter(TrainedMethod):
    """ratio: R in training. bottleneck: width of the middle layer, D/4 where None."""

    name, title, paper = "clip_adapter", "CLIP-Adapter", "Gao et al. 2021"
    default = NEVER
    ratio, bottleneck = 0.2, None
    ratios = {"ratio": (0.1, 0.15, 0.2, 0.25)}

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        width = task.text.shape[1]
        middle = self.bottleneck or max(1, width // 4)
        return ({"text": task.text, "ratio": np.array([self.ratio], np.float32)},
                {"into": uniform(rng, (width, middle), width), "out": uniform(rng, (middle, width), middle)})

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        adapted = jt.nn.relu(jt.matmul(jt.nn.relu(jt.matmul(x, p["into"])), p["out"]))
        return self.scale_ * product(unit_var(p["ratio"] * adapted + (1 - p["ratio"]) * x), p["text"])
