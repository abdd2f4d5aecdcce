"""ProLIP: the image tower's last projection alone trains.

Fahes et al., "Fine-Tuning CLIP's Last Visual Projector: A Few-Shot Cornucopia", 2025 (arXiv:2410.05270).

    min_W  CE(scale · cos(x₀ W, t), y) + λ ‖W − W⁰‖²_F

x₀ are the numbers before the projection, t the classes' text rows. Adam, eps 1e-4, no decay, cosine to 0, full
batches, another view in each step (the first is skipped at the start). λ = 1/shots or 1/shots².

S shots · V views · W width of the image tower · D feature width · K classes
"""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.heads.training import product, unit_var
from jclip_fewshot.tuning.training import Adam, Arrays, Vars, Watch, cosine, descend, mean_cross_entropy

NAME = "visual.proj"  # in OpenAI's checkpoints
EPS, STEPS = 1e-4, 300  # the authors'


def distance(proj: "jt.Var", start: "jt.Var") -> "jt.Var":
    """‖W − W⁰‖²_F"""
    return ((proj - start) * (proj - start)).sum()


def logits(proj: "jt.Var", unprojected: "jt.Var", text: "jt.Var", scale: float) -> "jt.Var":
    """scale · cos(x₀ W, t): (B, W) -> (B, K)."""
    return scale * product(unit_var(jt.matmul(unprojected, proj)), text)


def train(start: np.ndarray, views: np.ndarray, labels: np.ndarray, text: np.ndarray, penalty: float, lr: float,
          scale: float, steps: int = STEPS, order: Optional[Sequence[int]] = None,
          watch: Optional[Watch] = None, stage: str = "") -> np.ndarray:
    """The projection (W, D) after training.

    views (V, S, W): x₀ of each view. penalty: λ. order: the view of each step; by default the next one, from the
    second.
    """
    order = [(1 + step) % len(views) for step in range(steps)] if order is None else order
    first, rows = jt.array(np.ascontiguousarray(start)), jt.array(np.ascontiguousarray(text))
    inputs = [jt.array(np.ascontiguousarray(view)) for view in views]

    def loss(p: Vars, step: int) -> "jt.Var":
        answered = logits(p["proj"], inputs[order[step]], rows, scale)
        return mean_cross_entropy(answered, labels) + penalty * distance(p["proj"], first)
    trained: Arrays = descend({"proj": start}, loss, Adam(eps=EPS), cosine(lr, len(order)), watch, stage)
    return trained["proj"]
