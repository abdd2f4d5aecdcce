"""ProLIP: the image tower's last projection alone trains.

Fahes et al., "Fine-Tuning CLIP's Last Visual Projector: A Few-Shot Cornucopia", 2025 (arXiv:2410.05270).

    min_W  CE(scale · cos(x₀ W, t), y) + λ ‖W − W⁰‖²_F

x₀: numbers before the projection; t: text rows; λ = 1/n², n the mean of the shots a class. Adam, eps 1e-4, no decay,
cosine to 0, full batches, another view in each step, in turn (the first is skipped at the start).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.encoders.base import UNPROJECTED
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.towers.base import TowerMethod
from jclip_fewshot.methods.towers.towers import values_of
from jclip_fewshot.methods.training import Adam, Arrays, Vars, cosine, descend, mean_cross_entropy
from jclip_fewshot.task import Fold, Task

NAME = "visual.proj"  # in OpenAI's checkpoints
EPS = 1e-4  # the authors'


def logits(proj: jt.Var, unprojected: jt.Var, text: jt.Var, scale: float) -> jt.Var:
    """scale · cos(x₀ W, t): (B, W) -> (B, K)."""
    return scale * product(unit_var(jt.matmul(unprojected, proj)), text)


def train(start: np.ndarray, views: Sequence[np.ndarray], labels: np.ndarray, text: np.ndarray, penalty: float,
          lr: float, scale: float, order: Sequence[int], **told: Any) -> np.ndarray:
    """The projection (W, D) after training. views: x₀ (S, W) of each. penalty: λ. order: each step's view."""
    first, rows, inputs = jt.array(start), jt.array(text), [jt.array(view) for view in views]

    def loss(p: Vars, step: int) -> jt.Var:
        distance = ((p["proj"] - first) * (p["proj"] - first)).sum()
        return mean_cross_entropy(logits(p["proj"], inputs[order[step]], rows, scale), labels) + penalty * distance
    return descend({"proj": start}, loss, Adam(eps=EPS), cosine(lr, len(order)), **told)["proj"]


class ProLIP(TowerMethod):
    """lr, steps: of the training; the authors report about the same top-1 for rates of 1e-5 to 1e-2 with this λ."""

    name, title, paper = "prolip", "ProLIP", "Fahes et al. 2025"
    at = UNPROJECTED
    lr, steps, power = 1e-3, 300, 2.0  # λ = 1 / shots ** power
    constants = ("lr", "steps", "power")

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        width, features = tower.model.visual.proj.shape
        return self.steps * 3 * 2.0 * len(task) * features * (width + task.num_classes)

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        task, kept, views = fit.task, fit.kept, tower.at(UNPROJECTED)
        seen, labels = task.seen_labels()
        penalty = max(1.0, float(task.counts[seen].mean())) ** -self.power
        inputs = [views.take(kept, np.full(len(kept), view)) for view in range(views.count)]
        order = [(1 + step) % len(inputs) for step in range(self.steps)]
        return {NAME: train(values_of(tower.model, [NAME])[NAME], inputs, labels, task.text[seen], penalty,
                            self.lr, task.scale, order, stage=stage)}
