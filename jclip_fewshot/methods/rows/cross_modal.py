"""Cross-modal linear probe. Lin et al., "Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with
Multimodal Models", CVPR 2023 (https://arxiv.org/abs/2301.06267), equation 4.

    loss = ½ CE(W f / T, y) + ½ CE(W t_c / T, c),   logits = W x / T

Symbols: W (K, D), one row a class, started at the text rows t; f image row of class y; T = 0.01.

Classes without shots are trained too, by their text alone. Deviation: W is not renormalised in answering either.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import product
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.rows.trained import Arrays, TrainedMethod, Vars
from jclip_fewshot.task import Task


class CrossModal(TrainedMethod):
    """text_weight: of the text rows' loss against the images' (1: the paper)."""

    name, title, paper = "cross_modal", "Cross-modal", "Lin et al. 2023"
    default = NEVER
    lr, weight_decay, text_weight = 3e-4, 0.01, 1.0

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        return {"text": task.text}, {"weight": task.text}

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        return self.scale_ * product(x, p["weight"])

    def penalty(self, p: Vars, x: jt.Var, logits: jt.Var, rng: np.random.Generator) -> jt.Var:
        classes = jt.array(rng.permutation(p["text"].shape[0])[:self.batch].astype(np.int32))
        return self.text_weight * cross_entropy(self.scale_ * product(p["text"][classes], p["weight"]), classes)
