"""CLIP-PR: pseudo-labels, and a prior on how many images each class has.

Kahana et al., "Improving Zero-Shot Models with Label Distribution Priors", 2022 (arXiv:2212.00784).

    L = CE(h(f), argmax zero-shot) + α KL(prior ‖ mean share),   h: D → 128 → LeakyReLU → 128 → LeakyReLU → K

Three stages, each with a new Adam (L2 3e-4 in the gradient): the head at 1e-3, the whole image tower at 1e-6, the head
at 1e-4. The share is the mean over the last batches' softmax, the older ones without gradient ("over time"), or over
batches gathered for one step ("gathered"). Quirks of the authors' code that are kept: the rate falls by 0.3 after
every step in the reference runs, and the head's gradients of stage 2 pile up and enter stage 3's first step.

By default constant rates and α = 1 (`Settings`): a uniform prior is a claim about the test set that nobody has
checked. Below zero-shot on 11 of 12 sets of LaFTer's table.

B images a step · K classes · D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, softmax_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.methods.base import Given, Unlabelled
from jclip_fewshot.methods.towers.base import image_flops
from jclip_fewshot.methods.towers.towers import image_rows
from jclip_fewshot.methods.training import Adam, Arrays, Vars, Watch, batches, descend, mean_cross_entropy
from jclip_fewshot.methods.unlabelled.base import LabelFree, LabelFreeByImages, pixels_of, scale_to
from jclip_fewshot.methods.unlabelled.views import in_batches
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

L2, SLOPE = 3e-4, 0.01  # the authors'
TOWER = "tower."  # of the names of the image tower's tensors
TINY = 1e-12


@dataclass(frozen=True)
class Settings:
    """epochs, rates: of the head's stages. weight: α. hidden: width of h. memory: batches whose shares are averaged.

    tower_epochs, tower_rate: of the image tower's stage.
    """

    epochs: Sequence[int] = (60, 20)
    rates: Sequence[float] = (1e-3, 1e-4)
    tower_epochs: int = 10
    tower_rate: float = 1e-6
    weight: float = 1.0
    hidden: int = 128
    batch: int = 64
    memory: int = 3


def paper() -> Settings:
    """The authors' weight and stages."""
    return Settings(epochs=(50, 50), weight=100.0, memory=300, tower_epochs=50)


def head(p: Vars, rows: jt.Var) -> jt.Var:
    """h: unit rows (B, D) -> logits (B, K)."""
    for layer in ("0", "3"):
        rows = product(rows, p[f"{layer}.weight"]) + p[f"{layer}.bias"]
        rows = jt.ternary(rows > 0, rows, SLOPE * rows)
    return product(rows, p["6.weight"])


def random_head(rng: np.random.Generator, width: int, hidden: int, classes: int) -> Arrays:
    """Uniform within 1/√inputs, as PyTorch starts a linear layer."""
    def uniform(shape: Sequence[int], inputs: int) -> np.ndarray:
        return (rng.uniform(-1, 1, shape) / np.sqrt(inputs)).astype(np.float32)
    return {"0.weight": uniform((hidden, width), width), "0.bias": uniform((hidden,), width),
            "3.weight": uniform((hidden, hidden), hidden), "3.bias": uniform((hidden,), hidden),
            "6.weight": uniform((classes, hidden), hidden)}


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


def objective(logits: jt.Var, labels: np.ndarray, prior: np.ndarray, shares: Shares, weight: float,
              on_parts: Callable[[jt.Var, jt.Var], None] | None = None) -> jt.Var:
    """L of a step. on_parts: told its two parts."""
    labelled, share = mean_cross_entropy(logits, labels), prior_loss(shares.mean(softmax_var(logits)), prior)
    if on_parts is not None:
        on_parts(labelled, share)
    return labelled + weight * share


def train(start: Arrays, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray], prior: np.ndarray,
          shares: Shares, weight: float, rates: Sequence[float], watch: Watch | None = None,
          carried: Arrays | None = None, on_parts: Callable | None = None, stage: str = "") -> Arrays:
    """A stage of the head: rows(step) are unit rows, labels[step] their pseudo-labels.

    carried: gradients left over from stage 2, added to the first step's.
    """
    def loss(p: Vars, step: int) -> jt.Var:
        found = objective(head(p, rows(step)), labels[step], prior, shares, weight, on_parts)
        if step == 0 and carried:
            found = found + sum((p[name] * jt.array(value)).sum() for name, value in carried.items()) \
                - float(sum((start[name] * value).sum() for name, value in carried.items()))
        return found
    return descend(start, loss, Adam(l2=L2), rates, watch, stage)


def train_tower(start: Arrays, h: Arrays, model: CLIP, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray],
                prior: np.ndarray, shares: Shares, weight: float, rates: Sequence[float],
                watch: Watch | None = None, on_parts: Callable | None = None, stage: str = ""
                ) -> tuple[Arrays, Arrays]:
    """The stage of the image tower: (its tensors, sum of the head's gradients over the stage).

    start: {"tower." + name: tensor}, in the model's layout. rows(step): asked with the tensors in place.
    """
    fixed = {name: jt.array(value) for name, value in h.items()}
    piled = {name: np.zeros_like(value) for name, value in h.items()}

    def loss(p: Vars, step: int) -> jt.Var:
        with replaced(model, tensors_of(p)):
            found = objective(head(fixed, rows(step)), labels[step], prior, shares, weight, on_parts)
        for name, value in zip(fixed, jt.grad(found, list(fixed.values()), retain_graph=True)):
            piled[name] += value.numpy()
        return found
    return descend(start, loss, Adam(l2=L2), rates, watch, stage), piled


def tensors_of(p: Vars) -> Vars:
    """The image tower's tensors among `p`, under OpenAI's names."""
    return {"visual." + name[len(TOWER):]: value for name, value in p.items() if name.startswith(TOWER)}


def tower_of(model: CLIP) -> Arrays:
    """Every tensor of the image tower, in the model's layout."""
    return {TOWER + name: value.float32().numpy() for name, value in model.visual.state_dict().items()}


@dataclass
class Stages:
    """The stages of one training, in turn: `head_stage`, `tower_stage`, `head_stage`.

    labels (N,): pseudo-labels of the unlabelled images. prior (K,).
    """

    labels: np.ndarray
    prior: np.ndarray
    settings: Settings
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.shares = Shares(len(self.prior), self.settings.memory)
        self.carried: Arrays = {}  # the head's gradients of the tower's stage

    def head_stage(self, p: Arrays, rows: np.ndarray, number: int) -> Arrays:
        """The head after its stage `number`, 0 or 1, on unit rows (N, D)."""
        steps, rate = self._steps(self.settings.epochs[number]), self.settings.rates[number]
        carried, self.carried = self.carried, {}
        return train(p, lambda step: jt.array(rows[steps[step]]), [self.labels[step] for step in steps], self.prior,
                     self.shares, self.settings.weight, [rate] * len(steps), carried=carried,
                     stage=f"clip-pr, head, stage {number + 1}")

    def tower_stage(self, p: Arrays, model: CLIP, images: Callable[[np.ndarray], jt.Var]) -> Arrays:
        """The image tower's tensors after training under the head p; images(rows): some of them, (B, 3, R, R)."""
        steps = self._steps(self.settings.tower_epochs)
        tower, self.carried = train_tower(
            tower_of(model), p, model, lambda step: image_rows(model, images(steps[step])),
            [self.labels[step] for step in steps], self.prior, self.shares, self.settings.weight,
            [self.settings.tower_rate] * len(steps), stage="clip-pr, tower")
        return tower

    def _steps(self, epochs: int) -> list[np.ndarray]:
        count = len(self.labels)
        return batches(np.stack([self.rng.permutation(count) for _ in range(epochs)]), self.settings.batch)


def begun(zero_shot: np.ndarray, width: int, settings: Settings, seed: int) -> tuple[Stages, Arrays]:
    """The stages by zero-shot logits (N, K) and a uniform prior, and a head at random."""
    classes, rng = zero_shot.shape[1], np.random.default_rng(seed)
    p = random_head(rng, width, settings.hidden, classes)
    return Stages(zero_shot.argmax(axis=1), np.full(classes, 1 / classes), settings, rng), p


def answer(p: Arrays, rows: np.ndarray) -> np.ndarray:
    """Logits (N, K) of unit rows (N, D)."""
    return head({name: jt.array(value) for name, value in p.items()}, jt.array(rows)).numpy()


class ClipPr(LabelFree):
    """The head's two stages, brought to CLIP's scale on the unlabelled images."""

    name, title, paper = "clip_pr", "CLIP-PR", "Kahana et al. 2022"
    trains = True
    settings = Settings()

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        rows, zero_shot = unlabelled.rows, task.zero_shot(unlabelled.rows)
        stages, p = begun(zero_shot, rows.shape[1], self.settings, self.seed)
        p = stages.head_stage(stages.head_stage(p, rows, 0), rows, 1)
        return {**p, "spread": scale_to(answer(p, rows), zero_shot)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return self.learned_["spread"] * answer(self.learned_, features)


class ClipPrTower(LabelFreeByImages):
    """All three stages. A run keeps the whole image tower: as many numbers as that has."""

    name, title, paper = "clip_pr_tower", "CLIP-PR, tower", "Kahana et al. 2022"
    trains = True
    settings = Settings()

    def flops(self, task: Task, given: Given) -> float:
        images = self.settings.tower_epochs * len(given.unlabelled.rows)
        return 3 * images * image_flops(given.tower.encoder.model)

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        encoder, pixels = unlabelled.encoder, pixels_of(unlabelled, self.name)
        model, zero_shot = encoder.model, task.zero_shot(unlabelled.rows)
        stages, p = begun(zero_shot, unlabelled.rows.shape[1], self.settings, self.seed)
        p = stages.head_stage(p, unlabelled.rows, 0)
        tower = stages.tower_stage(p, model, lambda rows: encoder.prepared(pixels[rows]))
        with replaced(model, tensors_of({name: jt.array(value) for name, value in tower.items()})):
            rows = in_batches(lambda some: image_rows(model, encoder.prepared(some)).numpy(), pixels)
        p = stages.head_stage(p, rows, 1)
        return {**p, **tower, "spread": scale_to(answer(p, rows), zero_shot)}

    def ask(self, model: CLIP, p: Vars, images: jt.Var) -> jt.Var:
        with replaced(model, tensors_of(p)):
            return p["spread"] * head(p, image_rows(model, images))
