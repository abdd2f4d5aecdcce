"""2SFS: the norms of both towers first, then a classifier on the tuned image tower.

Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", 2025 (arXiv:2503.11609).

    stage 1   min over the blocks' norms    CE(s · cos(f, t), y),   t = text tower's rows, again in each step
    stage 2   min over C (K, D)             CE(s · cos(f, C), y),   C starts at the tuned text rows, f fixed

300 × shots steps, 60 % of them in stage 1; both AdamW, lr 2e-4, weight decay 1e-2, cosine by step to 1e-6; s the
model's scale. The authors' code names ln_pre, ln_post and ln_final as well, and freezes them again: they stay.
Classes without shots are answered by the tuned text tower's rows.

S shots · K classes · D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.clip.replace import part, replaced
from jclip_fewshot.methods.towers.lora import LEAST_LR, LR, WEIGHT_DECAY
from jclip_fewshot.methods.towers.towers import blocks_of, norm_names
from jclip_fewshot.methods.training import Adam, Arrays, Vars, Watch, cosine, descend, mean_cross_entropy

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

STEPS_A_SHOT, FIRST_SHARE = 300, 0.6  # the authors'


def norms(model: CLIP) -> list[str]:
    """What stage 1 trains: the norms of every block of both towers."""
    return [name for tower in ("visual.", "") for name in norm_names(model, tower, blocks_of(model, tower))]


def start_of(model: CLIP) -> Arrays:
    """The norms before training."""
    return {name: part(model, name).float32().numpy() for name in norms(model)}


def train_norms(start: Arrays, model: CLIP, rows: Callable[[int], jt.Var], text: Callable[[], jt.Var],
                labels: Sequence[np.ndarray], scale: float, lr: float = LR, watch: Watch | None = None,
                stage: str = "") -> Arrays:
    """Stage 1: a step an entry of `labels`; `rows(step)` and `text()` are asked with the norms in place."""
    def loss(p: Vars, step: int) -> jt.Var:
        with replaced(model, p):
            return mean_cross_entropy(scale * product(rows(step), text()), labels[step])
    return descend(start, loss, Adam(WEIGHT_DECAY), cosine(lr, len(labels), LEAST_LR), watch, stage)


def train_classifier(start: np.ndarray, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray], scale: float,
                     lr: float = LR, watch: Watch | None = None, stage: str = "") -> np.ndarray:
    """Stage 2: the classifier (K, D), started at the tuned text rows; `rows(step)` are fixed unit rows."""
    def loss(p: Vars, step: int) -> jt.Var:
        return mean_cross_entropy(scale * product(rows(step), unit_var(p["classifier"])), labels[step])
    trained = descend({"classifier": start}, loss, Adam(WEIGHT_DECAY), cosine(lr, len(labels), LEAST_LR), watch, stage)
    return trained["classifier"]
