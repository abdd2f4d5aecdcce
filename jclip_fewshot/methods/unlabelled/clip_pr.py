"""CLIP-PR: pseudo-labels, and a prior on how many images each class has.

Kahana et al., "Improving Zero-Shot Models with Label Distribution Priors", 2022 (arXiv:2212.00784).

    L = CE(h(f), argmax zero-shot) + α KL(prior ‖ mean share),   h: D → 128 → LeakyReLU → 128 → LeakyReLU → K

Three stages, each with a new Adam (L2 3e-4 in the gradient): the head at 1e-3, the whole image tower at 1e-6, the head
at 1e-4. The share is the mean over the last batches' softmax, the older ones without gradient ("over time"), or over
batches gathered for one step ("gathered"). Quirks of the authors' code that are kept: the rate falls by 0.3 after
every step in the reference runs, and the head's gradients of stage 2 pile up and enter stage 3's first step.

Deviations: constant rates, fewer epochs, and α = 1 instead of 100: a uniform prior is a claim about the test set that
nobody has checked. Below zero-shot on 11 of 12 sets of LaFTer's table.

B images a step · K classes · D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, softmax_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.methods.base import Given, Unlabelled
from jclip_fewshot.methods.towers.base import image_flops
from jclip_fewshot.methods.towers.towers import CLIP, image_rows
from jclip_fewshot.methods.training import Adam, Arrays, Vars, as_vars, batches, descend, mean_cross_entropy, uniform
from jclip_fewshot.methods.unlabelled.base import LabelFree, LabelFreeByImages, pixels_of, scale_to, tensors_of
from jclip_fewshot.methods.unlabelled.views import in_batches
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


class Shares:
    """The mean share of each class over the newest batch, with gradient, and `memory` - 1 older ones, without."""

    def __init__(self, classes: int, memory: int) -> None:
        self.old: list[np.ndarray] = [np.full(classes, 1 / classes, np.float32)] * (memory - 1)

    def mean(self, probs: jt.Var) -> jt.Var:
        """(B, K) -> (K,); the batch is remembered."""
        newest = probs.sum(0) / float(probs.shape[0])
        total = newest
        for old in self.old:
            total = total + jt.array(old)
        count = len(self.old) + 1
        if self.old:
            self.old = self.old[1:] + [newest.numpy()]
        return total / float(count)


def prior_loss(share: jt.Var, prior: np.ndarray) -> jt.Var:
    """KL(prior ‖ share) in nats."""
    entropy = float((prior * np.log(prior + TINY)).sum())
    return entropy - (jt.array(prior.astype(np.float32)) * jt.log(share + TINY)).sum()


def objective(logits: jt.Var, labels: np.ndarray, prior: np.ndarray, shares: Shares, weight: float) -> jt.Var:
    """L of a step."""
    return mean_cross_entropy(logits, labels) + weight * prior_loss(shares.mean(softmax_var(logits)), prior)


def train(start: Arrays, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray], prior: np.ndarray,
          shares: Shares, weight: float, rates: Sequence[float], carried: Arrays | None = None, **told: Any) -> Arrays:
    """A stage of the head: rows(step) are unit rows, labels[step] their pseudo-labels.

    carried: gradients left over from stage 2, added to the first step's. told: `descend`'s watch and stage.
    """
    def loss(p: Vars, step: int) -> jt.Var:
        found = objective(head(p, rows(step)), labels[step], prior, shares, weight)
        if step == 0 and carried:
            found = found + sum((p[name] * jt.array(value)).sum() for name, value in carried.items()) \
                - float(sum((start[name] * value).sum() for name, value in carried.items()))
        return found
    return descend(start, loss, Adam(l2=L2), rates, **told)


def train_tower(h: Arrays, model: CLIP, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray], prior: np.ndarray,
                shares: Shares, weight: float, rates: Sequence[float], **told: Any) -> tuple[Arrays, Arrays]:
    """The stage of the image tower: (its tensors, sum of the head's gradients over the stage).

    rows(step): asked with the tensors in place.
    """
    fixed, piled = as_vars(h), {name: np.zeros_like(value) for name, value in h.items()}

    def loss(p: Vars, step: int) -> jt.Var:
        with replaced(model, p):
            found = objective(head(fixed, rows(step)), labels[step], prior, shares, weight)
        for name, value in zip(fixed, jt.grad(found, list(fixed.values()), retain_graph=True)):
            piled[name] += value.numpy()
        return found
    start = {f"visual.{name}": value.float32().numpy() for name, value in model.visual.state_dict().items()}
    return descend(start, loss, Adam(l2=L2), rates, **told), piled


def answer(p: Arrays, rows: np.ndarray) -> np.ndarray:
    """Logits (N, K) of unit rows (N, D)."""
    return head({name: jt.array(value) for name, value in p.items()}, jt.array(rows)).numpy()


class Stages:
    """The stages of one training, in turn: `head`, `tower`, `head`; by zero-shot logits (N, K) and a uniform prior."""

    def __init__(self, method: ClipPr, zero_shot: np.ndarray) -> None:
        self.method, self.rng, classes = method, np.random.default_rng(method.seed), zero_shot.shape[1]
        self.p = random_head(self.rng, method.text_.shape[1], method.hidden, classes)
        self.labels, self.prior = zero_shot.argmax(axis=1), np.full(classes, 1 / classes)
        self.shares = Shares(classes, method.memory)
        self.carried: Arrays = {}  # the head's gradients of the tower's stage

    def head(self, rows: np.ndarray, number: int) -> None:
        """Train the head in its stage `number`, 0 or 1, on unit rows (N, D)."""
        steps = self._steps(self.method.epochs[number])
        self.p = train(self.p, lambda step: jt.array(rows[steps[step]]), [self.labels[step] for step in steps],
                       self.prior, self.shares, self.method.weight, [self.method.rates[number]] * len(steps),
                       self.carried, stage=f"clip-pr, head, stage {number + 1}")

    def tower(self, model: CLIP, images: Callable[[np.ndarray], jt.Var]) -> Arrays:
        """Return the image tower's tensors after training; images(rows): some of them, (B, 3, R, R)."""
        steps = self._steps(self.method.tower_epochs)
        tensors, self.carried = train_tower(
            self.p, model, lambda step: image_rows(model, images(steps[step])), [self.labels[step] for step in steps],
            self.prior, self.shares, self.method.weight, [self.method.tower_rate] * len(steps), stage="clip-pr, tower")
        return tensors

    def _steps(self, epochs: int) -> list[np.ndarray]:
        count = len(self.labels)
        return batches(np.stack([self.rng.permutation(count) for _ in range(epochs)]), self.method.batch)


class ClipPr(LabelFree):
    """The head's two stages, brought to CLIP's scale on the unlabelled images.

    epochs, rates: of the head's stages. tower_epochs, tower_rate: of the image tower's. weight: α. hidden: width of h.
    memory: batches whose shares are averaged.
    """

    name, title, paper = "clip_pr", "CLIP-PR", "Kahana et al. 2022"
    trains = True
    epochs, rates, tower_epochs, tower_rate = (60, 20), (1e-3, 1e-4), 10, 1e-6
    weight, hidden, batch, memory = 1.0, 128, 64, 3

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        rows, zero_shot = unlabelled.rows, task.zero_shot(unlabelled.rows)
        stages = Stages(self, zero_shot)
        stages.head(rows, 0)
        stages.head(rows, 1)
        return {**stages.p, "spread": scale_to(answer(stages.p, rows), zero_shot)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return self.learned_["spread"] * answer(self.learned_, features)


class ClipPrTower(LabelFreeByImages, ClipPr):
    """All three stages. A run keeps the whole image tower: as many numbers as that has."""

    name, title = "clip_pr_tower", "CLIP-PR, tower"

    def flops(self, task: Task, given: Given) -> float:
        return 3 * self.tower_epochs * given.images * image_flops(given.tower.model)

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        encoder, pixels = unlabelled.encoder, pixels_of(unlabelled, self.name)
        model, zero_shot = encoder.model, task.zero_shot(unlabelled.rows)
        stages = Stages(self, zero_shot)
        stages.head(unlabelled.rows, 0)
        tower = stages.tower(model, lambda rows: encoder.prepared(pixels[rows]))
        with replaced(model, as_vars(tower)):
            rows = in_batches(lambda some: image_rows(model, encoder.prepared(some)).numpy(), pixels)
        stages.head(rows, 1)
        return {**stages.p, **tower, "spread": scale_to(answer(stages.p, rows), zero_shot)}

    def ask(self, model: CLIP, p: Vars, images: jt.Var) -> jt.Var:
        with replaced(model, tensors_of(p)):
            return p["spread"] * head(p, image_rows(model, images))
