"""Tip-Adapter-F: Tip-Adapter with trained keys. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for
Few-shot Classification", ECCV 2022 (https://arxiv.org/abs/2207.09519), section 3.2.

    A = exp(−β (1 − x Fᵀ)),   logits = 100 x tᵀ + α A L

F (S, D), the cache's keys, starts at the shots' features and is trained; the rest as in `tip_adapter`.

Deviations: α = 2, β = 3.5 and borrowed residuals (`trained`) in training, where the paper has α = 1, β = 5.5: a shot
then is not its own key; afterwards α and β by the held-out shots.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.rows.tip_adapter import affinity, capped_cache, class_mean_values, keys_a_class
from jclip_fewshot.methods.rows.trained import Arrays, TrainedMethod, Vars
from jclip_fewshot.task import Task


class TipAdapterF(TrainedMethod):
    """alpha, beta: in training. cap: keys kept a class."""

    name, title, paper = "tip_adapter_f", "Tip-Adapter-F", "Zhang et al. 2022"
    default = NEVER
    eps, weight_decay, augment = 1e-4, 0.01, 1.0
    alpha, beta, cap = 2.0, 3.5, 16
    ratios = {"alpha": (1.0, 1.5, 2.0, 2.5), "beta": (2.5, 3.5, 5.0)}

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        keys, labels = capped_cache(task.features, task.labels, self.cap)
        values = class_mean_values(labels, task.num_classes) * np.float32(keys_a_class(task, self.cap))
        return ({"text": task.text, "values": values, "alpha": np.array([self.alpha], np.float32),
                 "beta": np.array([self.beta], np.float32)}, {"keys": keys})

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        cache = jt.matmul(affinity(x, p["keys"], p["beta"]), p["values"])  # (B, K)
        return self.scale_ * product(x, p["text"]) + p["alpha"] * cache
