"""CLAP: class-adaptive linear probe. Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2024 (https://arxiv.org/abs/2312.12730), equations 6 and 8.

    logits = 100 x w_c / ‖w_c‖,   loss = CE + Σ_c λ_c ‖w_c − t_c‖² / K,   λ_c = mean zero-shot p(c) of c's shots

w_c (D,): row of class c, started at the text row t_c. No held-out shot chooses anything, as the paper asks.

Deviations: AdamW for 20 epochs where the paper takes SGD for 300. The pull is solved in each step instead of descended,
w ← (w + ρ λ_c t) / (1 + ρ λ_c), ρ the rate: any λ is stable, and λ → ∞ is zero-shot.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, softmax, unit_var
from jclip_fewshot.methods.rows.trained import TrainedMethod
from jclip_fewshot.methods.training import Adam, Arrays, Vars, as_vars
from jclip_fewshot.task import Task


def trust_in_text(task: Task) -> np.ndarray:
    """λ (K, 1): mean zero-shot probability of its class over a class's shots; the largest where it has none."""
    p = softmax(task.zero_shot(task.features))[np.arange(len(task)), task.labels]
    sums = np.bincount(task.labels, weights=p, minlength=task.num_classes)
    trust = sums / np.maximum(task.counts, 1)
    return np.where(task.seen, trust, trust.max()).astype(np.float32)[:, None]


class CLAP(TrainedMethod):
    """strength: multiplies every λ_c."""

    name, title, paper = "clap", "CLAP", "Silva-Rodríguez et al. 2024"
    lr, choose_epoch, strength = 3e-4, False, 100.0

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        return {"text": task.text, "trust": trust_in_text(task)}, {"weight": task.text}

    def optimiser(self, constants: list[Arrays]) -> Adam:
        return Pulled(self, [as_vars(one) for one in constants])

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        return self.scale_ * product(x, unit_var(p["weight"]))


class Pulled(Adam):
    """AdamW, and the pull after each step; constants: of each fit, t (K, D) and λ (K, 1)."""

    def __init__(self, method: CLAP, constants: list[Vars]) -> None:
        super().__init__(method.weight_decay, eps=method.eps)
        self.strength, self.constants = method.strength, constants

    def step(self, values: Vars, gradients: Vars, lr: float) -> Vars:
        moved = super().step(values, gradients, lr)
        for m, p in enumerate(self.constants):
            pull = lr * self.strength * p["trust"]
            moved[f"{m}/weight"] = ((moved[f"{m}/weight"] + pull * p["text"]) / (1 + pull)).detach()
        return moved
