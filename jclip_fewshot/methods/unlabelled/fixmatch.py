"""FixMatch with CoOp's prompts: shots with labels, other images by what the model says of their weak views.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", 2020 (arXiv:2001.07685);
the shots are among the unlabelled images too, as in Dassl's version.

    loss = CE(p(weak x), y) + w mean_u 1[max p(weak u) >= τ_c] CE(p(strong u), argmax p(weak u)),   u over x and all u

The mean runs over all u, kept or not. τ: 0.95 for every class as published (`paper`). With CLIP that keeps few images
of hard classes and all of easy ones, so by default τ_c is a quantile of the images read as c (`class_thresholds`).

B images a step · K classes · U unlabelled images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, product, softmax, unit_rows
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import NEVER, SHOTS, TEXT, TOWER, UNLABELLED, Method, Unlabelled
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.methods.towers import coop
from jclip_fewshot.methods.training import SGD, Arrays, Vars, Watch, batches, cosine, descend, mean_cross_entropy
from jclip_fewshot.methods.unlabelled import views
from jclip_fewshot.methods.unlabelled.base import pixels_of
from jclip_fewshot.task import Task


@dataclass(frozen=True)
class Settings:
    """threshold: one for all; 0 takes the quantile `keep` of each class. weight: w. batches: rows a step."""

    threshold: float = 0.0
    keep: float = 0.5
    weight: float = 1.0
    context: int = 4
    epochs: int = 50
    batch_x: int = 32
    batch_u: int = 96
    lr: float = coop.LR


def paper() -> Settings:
    """Sohn et al.'s threshold, weight and ratio of batches; context and rate CoOp's."""
    return Settings(threshold=0.95, context=16, epochs=200, batch_x=64, batch_u=448)


def schedule(epochs: int, steps: int, lr: float) -> np.ndarray:
    """A cosine by epoch, without CoOp's warm-up."""
    return np.repeat(cosine(lr, epochs), steps)


def class_thresholds(probs: np.ndarray, keep: float) -> np.ndarray:
    """τ (K,): of the images (U, K) read as c the most confident share `keep` is kept, of each class at least one."""
    labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
    found = np.ones(probs.shape[1], np.float32)
    for k in np.unique(labels):
        inside = np.sort(confidence[labels == k])[::-1]
        found[k] = inside[max(1, int(np.ceil(keep * len(inside)))) - 1]
    return found


def masked(weak: np.ndarray, threshold: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, K) of weak views -> pseudo-labels (B,), and which are kept (B,) float32; threshold: one, or (K,)."""
    probs = softmax(weak)
    labels = probs.argmax(axis=1)
    wanted = np.broadcast_to(np.asarray(threshold, np.float32), probs.shape[1:])[labels]
    return labels, (probs.max(axis=1) >= wanted).astype(np.float32)


def consistency(strong: jt.Var, labels: np.ndarray, mask: np.ndarray) -> jt.Var:
    """Mean over all rows of mask · CE(strong (B, K), labels)."""
    target = np.zeros(tuple(strong.shape), np.float32)
    target[np.arange(len(labels)), labels] = mask
    shifted = strong - strong.max(1, keepdims=True).stop_grad()
    return ((jt.log(jt.exp(shifted).sum(1)) * jt.array(mask)).sum() - (shifted * jt.array(target)).sum()) / len(labels)


def train(start: Arrays, prompts: coop.Prompts, x: tuple[np.ndarray, np.ndarray, np.ndarray],
          u: tuple[np.ndarray, np.ndarray], steps_x: Sequence[np.ndarray], steps_u: Sequence[np.ndarray],
          rates: Sequence[float], scale: float, threshold: float | np.ndarray, weight: float = 1.0,
          watch: Watch | None = None, on_parts: Callable[..., None] | None = None, stage: str = "") -> Arrays:
    """x: (weak rows, strong rows, labels) of the shots, u: (weak, strong) rows of the others; steps: rows of each step.

    on_parts: told (CE, consistency, mask of the u) of each step.
    """
    def loss(p: Vars, step: int) -> jt.Var:
        a, b = steps_x[step], steps_u[step]
        text = prompts.rows(p["ctx"])
        weak = scale * product(jt.array(np.concatenate([x[0][a], u[0][b]])), text)
        strong = scale * product(jt.array(np.concatenate([x[1][a], u[1][b]])), text)
        labels, mask = masked(weak.numpy(), threshold)
        labelled = mean_cross_entropy(weak[:len(a)], x[2][a])
        other = consistency(strong, labels, mask)
        if on_parts is not None:
            on_parts(labelled, other, mask[len(a):])
        return labelled + weight * other
    return descend(start, loss, SGD(coop.MOMENTUM, coop.WEIGHT_DECAY), rates, watch, stage)


def learn(prompts: coop.Prompts, x: tuple[np.ndarray, np.ndarray, np.ndarray], u: tuple[np.ndarray, np.ndarray],
          zero_shot: np.ndarray, scale: float, width: int, settings: Settings, seed: int, stage: str) -> np.ndarray:
    """Return text rows (K, D). x: rows of weak and strong views and labels; u: rows of both views; zero_shot (U, K).

    prompts: sentences with room for `settings.context` vectors; width: of the text tower.
    """
    rng = np.random.default_rng(seed)
    labelled, count = len(x[2]), len(u[0])
    steps_x = batches(np.stack([rng.permutation(labelled) for _ in range(settings.epochs)]), settings.batch_x)
    steps_u = [rng.permutation(count)[:settings.batch_u] for _ in steps_x]
    threshold = settings.threshold or class_thresholds(softmax(zero_shot), settings.keep)
    rates = schedule(settings.epochs, len(steps_x) // settings.epochs, settings.lr)
    start = {"ctx": coop.random_context(rng, settings.context, width)}
    final = train(start, prompts, x, u, steps_x, steps_u, rates, scale, threshold, settings.weight, stage=stage)
    return prompts.rows(jt.array(final["ctx"])).numpy()


class FixMatch(Method):
    """Text rows learned from the shots and the unlabelled images, again without each fold's shots."""

    name, title, paper = "fixmatch", "FixMatch", "Sohn et al. 2020"
    needs = frozenset({TEXT, SHOTS, TOWER, UNLABELLED})
    trains = True
    default = NEVER
    state_names = ("learned_text_",)
    settings = Settings()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, task: Task, tower: Activations, unlabelled: Unlabelled) -> FixMatch:
        self._given = tower, unlabelled
        try:
            return super().fit(task)
        finally:
            del self._given

    def _fit(self, task: Task) -> None:
        tower, unlabelled = self._given
        encoder, rng = tower.encoder, np.random.default_rng([self.seed, 1])
        x, u = ([unit_rows(views.in_batches(encoder.images, view)) for view in (weak, views.strong_views(weak, rng))]
                for weak in (tower.pixels(), pixels_of(unlabelled, self.name)))
        prompts = coop.prompts_for(encoder, unlabelled.names, self.settings.context)
        width, zero_shot = encoder.model.transformer.width, task.zero_shot(u[0])
        fits, self.fold_logits_ = fits_of(task), task.zero_shot(task.features)
        for number, fit in enumerate(fits, 1):
            text = learn(prompts, (x[0][fit.kept], x[1][fit.kept], fit.task.labels), tuple(u), zero_shot, task.scale,
                         width, self.settings, self.seed, f"{self.name} {number}/{len(fits)}")
            self.fold_logits_[fit.left_out] = matmul(self.scale_ * task.features[fit.left_out], text.T)
        self.learned_text_ = text
        self.settings_ = {"chosen_by": "fixed"}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.scale_ * features, self.learned_text_.T)
