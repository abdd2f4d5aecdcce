"""CLIP-PR: pseudo-labels, and a prior on how many images each class has.

Kahana et al., "Improving Zero-Shot Models with Label Distribution Priors", 2022 (arXiv:2212.00784).

    L = CE(h(f), argmax zero-shot) + α KL(prior ‖ mean share),   h: D → 128 → LeakyReLU → 128 → LeakyReLU → K

Three stages, each with a new Adam (L2 3e-4 in the gradient): the head at 1e-3, the whole image tower at 1e-6, the head
at 1e-4. The share is the mean over the last batches' softmax, the older ones without gradient. As in the authors' code,
the head's gradients of stage 2 pile up and enter stage 3's first step.

Deviations: constant rates, fewer epochs, and α = 1 instead of 100: nobody has checked that the prior is uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, softmax_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.methods.base import Given, Unlabelled
from jclip_fewshot.methods.towers.base import image_flops
from jclip_fewshot.methods.towers.towers import CLIP, image_rows, in_batches
from jclip_fewshot.methods.training import Adam, Arrays, Vars, as_vars, batches, descend, mean_cross_entropy, uniform
from jclip_fewshot.methods.unlabelled.base import LabelFree, LabelFreeByImages, pixels_of, scale_to, tensors_of
from jclip_fewshot.task import Task

L2, SLOPE = 3e-4, 0.01  # the authors'
TINY = 1e-12


def head(p: Vars, rows: jt.Var) -> jt.Var:
    """h: unit rows (B, D) -> logits (B, K)."""
    for layer in ("0", "3"):
        rows = product(rows, p[f"{layer}.weight"]) + p[f"{layer}.bias"]
        rows = jt.ternary(rows > 0, rows, SLOPE * rows)
    return product(rows, p["6.weight"])


def random_head(rng: np.random.Generator, width: int, hidden: int, classes: int) -> Arrays:
    """h as PyTorch starts it."""
    return {"0.weight": uniform(rng, (hidden, width), width), "0.bias": uniform(rng, (hidden,), width),
            "3.weight": uniform(rng, (hidden, hidden), hidden), "3.bias": uniform(rng, (hidden,), hidden),
            "6.weight": uniform(rng, (classes, hidden), hidden)}


class Objective:
    """L of a step's logits (B, K); prior (K,), weight: α, memory: batches that the mean share is of."""

    def __init__(self, prior: np.ndarray, weight: float, memory: int) -> None:
        self.prior, self.weight = prior, weight
        self.old = [np.full(len(prior), 1 / len(prior), np.float32)] * (memory - 1)

    def __call__(self, logits: jt.Var, labels: np.ndarray) -> jt.Var:
        loss, probs = mean_cross_entropy(logits, labels), softmax_var(logits)
        total = newest = probs.sum(0) / float(probs.shape[0])
        for old in self.old:
            total = total + jt.array(old)
        share = total / float(len(self.old) + 1)
        if self.old:
            self.old = [*self.old[1:], newest.numpy()]
        entropy = float((self.prior * np.log(self.prior + TINY)).sum())
        divergence = entropy - (jt.array(self.prior.astype(np.float32)) * jt.log(share + TINY)).sum()
        return loss + self.weight * divergence


def train(start: Arrays, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray], objective: Objective,
          rates: Sequence[float], carried: Arrays | None = None, **told: Any) -> Arrays:
    """A stage of the head on each step's unit rows and pseudo-labels; carried: stage 2's gradients, for step 0."""
    def loss(p: Vars, step: int) -> jt.Var:
        found = objective(head(p, rows(step)), labels[step])
        if step == 0 and carried:
            found = found + sum((p[name] * jt.array(value)).sum() for name, value in carried.items()) \
                - float(sum((start[name] * value).sum() for name, value in carried.items()))
        return found
    return descend(start, loss, Adam(l2=L2), rates, **told)


def train_tower(h: Arrays, model: CLIP, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray],
                objective: Objective, rates: Sequence[float], **told: Any) -> tuple[Arrays, Arrays]:
    """The stage of the image tower: (its tensors, sum of the head's gradients); rows(step) are asked with these."""
    fixed, piled = as_vars(h), {name: np.zeros_like(value) for name, value in h.items()}

    def loss(p: Vars, step: int) -> jt.Var:
        with replaced(model, p):
            found = objective(head(fixed, rows(step)), labels[step])
        for name, value in zip(fixed, jt.grad(found, list(fixed.values()), retain_graph=True)):
            piled[name] += value.numpy()
        return found
    start = {f"visual.{name}": value.float32().numpy() for name, value in model.visual.state_dict().items()}
    return descend(start, loss, Adam(l2=L2), rates, **told), piled


def answer(p: Arrays, rows: np.ndarray) -> np.ndarray:
    """Logits (N, K) of unit rows (N, D)."""
    return head(as_vars(p), jt.array(rows)).numpy()


class ClipPr(LabelFree):
    """The head's two stages (`epochs`, `rates`), brought to CLIP's scale on the unlabelled images. weight: α."""

    name, title, paper = "clip_pr", "CLIP-PR", "Kahana et al. 2022"
    trains = True
    epochs, rates, tower_epochs, tower_rate = (60, 20), (1e-3, 1e-4), 10, 1e-6
    weight, hidden, batch, memory = 1.0, 128, 64, 3

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        rows, zero_shot, rng = unlabelled.rows, task.zero_shot(unlabelled.rows), np.random.default_rng(self.seed)
        labels, classes = zero_shot.argmax(axis=1), task.num_classes
        objective = Objective(np.full(classes, 1 / classes), self.weight, self.memory)

        def stage(trained: Callable, epochs: int, rate: float, rows: Callable[[np.ndarray], jt.Var], said: str) -> Any:
            steps = batches(np.stack([rng.permutation(len(labels)) for _ in range(epochs)]), self.batch)
            return trained(lambda step: rows(steps[step]), [labels[step] for step in steps], objective,
                           [rate] * len(steps), stage=f"clip-pr, {said}")

        def by_rows(some: np.ndarray) -> jt.Var:
            return jt.array(rows[some])

        h, tensors, carried = random_head(rng, rows.shape[1], self.hidden, classes), Arrays(), Arrays()
        h = stage(partial(train, h), self.epochs[0], self.rates[0], by_rows, "head, stage 1")
        if self.asks_images:
            encoder, pixels = unlabelled.encoder, pixels_of(unlabelled, self.name)

            def by_tower(some: np.ndarray) -> jt.Var:
                return image_rows(encoder.model, encoder.prepared(pixels[some]))
            tensors, carried = stage(partial(train_tower, h, encoder.model), self.tower_epochs, self.tower_rate,
                                     by_tower, "tower")
            with replaced(encoder.model, as_vars(tensors)):
                rows = in_batches(lambda some: by_tower(some).numpy(), np.arange(len(pixels)))
        h = stage(partial(train, h, carried=carried), self.epochs[1], self.rates[1], by_rows, "head, stage 2")
        return {**h, **tensors, "spread": scale_to(answer(h, rows), zero_shot)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return self.learned_["spread"] * answer(self.learned_, features)


class ClipPrTower(LabelFreeByImages, ClipPr):
    """All three stages. A run keeps the whole image tower: as many numbers as that has."""

    name, title = "clip_pr_tower", "CLIP-PR, tower"

    def flops(self, task: Task, given: Given) -> float:
        return 3 * self.tower_epochs * given.images * image_flops(given.tower.model)

    def ask(self, model: CLIP, p: Vars, images: jt.Var) -> jt.Var:
        with replaced(model, tensors_of(p)):
            return p["spread"] * head(p, image_rows(model, images))
