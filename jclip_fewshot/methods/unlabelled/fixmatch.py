"""FixMatch with CoOp's prompts: shots with labels, other images by what the model says of their weak views.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", 2020 (arXiv:2001.07685);
the shots are among the unlabelled images too, as in Dassl's version.

    loss = CE(p(weak x), y) + w mean_u 1[max p(weak u) >= τ_c] CE(p(strong u), argmax p(weak u)),   u over x and all u

The mean runs over all u, kept or not. Deviation: τ is 0.95 for every class as published. With CLIP that keeps few
images of hard classes and all of easy ones, so here τ_c is a quantile of the U images read as c (`class_thresholds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, product, softmax, unit_rows
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import NEVER, SHOTS, TEXT, TOWER, UNLABELLED, Method, Unlabelled
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.methods.towers import coop
from jclip_fewshot.methods.towers.towers import in_batches
from jclip_fewshot.methods.training import SGD, Arrays, Vars, batches, cosine, descend, mean_cross_entropy
from jclip_fewshot.methods.unlabelled.base import pixels_of
from jclip_fewshot.methods.unlabelled.views import strong_views
from jclip_fewshot.task import Task


def class_thresholds(probs: np.ndarray, keep: float) -> np.ndarray:
    """τ (K,): of the images (U, K) read as c the most confident share `keep` is kept, of each class at least one."""
    labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
    found = np.ones(probs.shape[1], np.float32)
    for k in np.unique(labels):
        inside = np.sort(confidence[labels == k])[::-1]
        found[k] = inside[max(1, int(np.ceil(keep * len(inside)))) - 1]
    return found


def masked(weak: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, K) of weak views -> pseudo-labels (B,), and which are kept (B,) float32; threshold: τ (K,)."""
    probs = softmax(weak)
    labels = probs.argmax(axis=1)
    return labels, (probs.max(axis=1) >= threshold[labels]).astype(np.float32)


def consistency(strong: jt.Var, labels: np.ndarray, mask: np.ndarray) -> jt.Var:
    """Mean over all rows of mask · CE(strong (B, K), labels)."""
    target = np.zeros(tuple(strong.shape), np.float32)
    target[np.arange(len(labels)), labels] = mask
    shifted = strong - strong.max(1, keepdims=True).stop_grad()
    return ((jt.log(jt.exp(shifted).sum(1)) * jt.array(mask)).sum() - (shifted * jt.array(target)).sum()) / len(labels)


def train(start: Arrays, prompts: coop.Prompts, x: Sequence[np.ndarray], u: Sequence[np.ndarray],
          steps: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], scale: float, threshold: np.ndarray, weight: float,
          **descent: Any) -> Arrays:
    """x: (weak rows, strong rows, labels) of the shots, u: (weak, strong) rows of the others; steps: of x and of u."""
    def loss(p: Vars, step: int) -> jt.Var:
        a, b = steps[0][step], steps[1][step]
        text = prompts.rows(p["ctx"])
        weak = scale * product(jt.array(np.concatenate([x[0][a], u[0][b]])), text)
        strong = scale * product(jt.array(np.concatenate([x[1][a], u[1][b]])), text)
        labels, mask = masked(weak.numpy(), threshold)
        return mean_cross_entropy(weak[:len(a)], x[2][a]) + weight * consistency(strong, labels, mask)
    return descend(start, loss, SGD(coop.MOMENTUM, coop.WEIGHT_DECAY), **descent)


class FixMatch(Method):
    """keep: the share of each class's images that is kept. weight: w. batch_x, batch_u: rows a step."""

    name, title, paper = "fixmatch", "FixMatch", "Sohn et al. 2020"
    needs = frozenset({TEXT, SHOTS, TOWER, UNLABELLED})
    trains = True
    default = NEVER
    state_names = ("learned_text_",)
    keep, weight, context, epochs, batch_x, batch_u, lr = 0.5, 1.0, 4, 50, 32, 96, coop.LR

    def _fit(self, task: Task, tower: Activations, unlabelled: Unlabelled) -> None:
        encoder, rng = unlabelled.encoder, np.random.default_rng([self.seed, 1])
        x, u = ([unit_rows(in_batches(encoder.images, view)) for view in (weak, strong_views(weak, rng))]
                for weak in (tower.pixels(), pixels_of(unlabelled, self.name)))
        prompts = coop.prompts_for(encoder, unlabelled.names, self.context)
        threshold = class_thresholds(softmax(task.zero_shot(u[0])), self.keep)
        fits, self.fold_logits_ = fits_of(task), task.zero_shot(task.features)
        for number, fit in enumerate(fits, 1):
            rng, labels = np.random.default_rng(self.seed), fit.task.labels
            steps_x = batches(np.stack([rng.permutation(len(labels)) for _ in range(self.epochs)]), self.batch_x)
            steps_u = [rng.permutation(len(u[0]))[:self.batch_u] for _ in steps_x]
            rates = np.repeat(cosine(self.lr, self.epochs), len(steps_x) // self.epochs).tolist()
            start = coop.random_context(rng, self.context, encoder.model)
            final = train(start, prompts, (x[0][fit.kept], x[1][fit.kept], labels), u, (steps_x, steps_u), task.scale,
                          threshold, self.weight, rates=rates, stage=f"{self.name} {number}/{len(fits)}")
            text = prompts.rows(jt.array(final["ctx"])).numpy()
            self.fold_logits_[fit.left_out] = matmul(self.scale_ * task.features[fit.left_out], text.T)
        self.learned_text_ = text
        self.settings_ = {"chosen_by": "fixed"}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.scale_ * features, self.learned_text_.T)
