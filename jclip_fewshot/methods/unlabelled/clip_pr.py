"""CLIP-PR: pseudo-labels, and a prior on how many images each class has.

Kahana et al., "Improving Zero-Shot Models with Label Distribution Priors", 2022 (arXiv:2212.00784).

    L = CE(h(f), argmax zero-shot) + α KL(prior ‖ mean share),   h: D → 128 → LeakyReLU → 128 → LeakyReLU → K

Three stages, each with a new Adam (L2 3e-4 in the gradient): the head at 1e-3, the whole image tower at 1e-6, the head
at 1e-4. The share is the mean over the last batches' softmax, the older ones without gradient ("over time"), or over
batches gathered for one step ("gathered"). Quirks of the authors' code that are kept: the rate falls by 0.3 after
every step in the reference runs, and the head's gradients of stage 2 pile up and enter stage 3's first step.

By default, without a tower to train, the head's two stages at a constant rate and α = 1 (`Settings`): a uniform prior
is a claim about the test set that nobody has checked. Below zero-shot on 11 of 12 sets of LaFTer's table.

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
from jclip_fewshot.methods.base import Unlabelled
from jclip_fewshot.methods.towers.training import Adam, Arrays, Vars, Watch, batches, descend, mean_cross_entropy
from jclip_fewshot.methods.unlabelled.base import LabelFree, scale_to
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

L2, SLOPE = 3e-4, 0.01  # the authors'
TOWER = "tower."  # of the names of the image tower's tensors
TINY = 1e-12


@dataclass(frozen=True)
class Settings:
    """epochs, rates: of the head's stages. weight: α. hidden: width of h. memory: batches whose shares are averaged."""

    epochs: Sequence[int] = (60, 20)
    rates: Sequence[float] = (1e-3, 1e-4)
    weight: float = 1.0
    hidden: int = 128
    batch: int = 64
    memory: int = 3


def paper() -> Settings:
    """The authors' weight and stages of the head, without the tower's, which needs pictures (`stage`)."""
    return Settings(epochs=(50, 50), weight=100.0, memory=300)


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
        with replaced(model, {"visual." + name[len(TOWER):]: value for name, value in p.items()}):
            found = objective(head(fixed, rows(step)), labels[step], prior, shares, weight, on_parts)
        for name, value in zip(fixed, jt.grad(found, list(fixed.values()), retain_graph=True)):
            piled[name] += value.numpy()
        return found
    return descend(start, loss, Adam(l2=L2), rates, watch, stage), piled


def tower_of(model: CLIP) -> Arrays:
    """Every tensor of the image tower, in the model's layout."""
    return {TOWER + name: value.float32().numpy() for name, value in model.visual.state_dict().items()}


def learn(rows: np.ndarray, logits: np.ndarray, settings: Settings = Settings(), seed: int = 0,
          prior: np.ndarray | None = None) -> Arrays:
    """The head's stages on unlabelled unit rows (N, D) with zero-shot logits (N, K); a uniform prior by default."""
    classes, labels = logits.shape[1], logits.argmax(axis=1)
    prior = np.full(classes, 1 / classes) if prior is None else prior
    rng = np.random.default_rng(seed)
    p = random_head(rng, rows.shape[1], settings.hidden, classes)
    shares = Shares(classes, settings.memory)
    for number, (epochs, rate) in enumerate(zip(settings.epochs, settings.rates), 1):
        order = np.stack([rng.permutation(len(rows)) for _ in range(epochs)])
        steps = batches(order, settings.batch)
        p = train(p, lambda step, steps=steps: jt.array(rows[steps[step]]), [labels[step] for step in steps], prior,
                  shares, settings.weight, [rate] * len(steps), stage=f"clip-pr, stage {number}")
    return p


def answer(p: Arrays, rows: np.ndarray) -> np.ndarray:
    """Logits (N, K) of unit rows (N, D)."""
    return head({name: jt.array(value) for name, value in p.items()}, jt.array(rows)).numpy()


class ClipPr(LabelFree):
    """The head's two stages, brought to CLIP's scale on the unlabelled images."""

    name, title, paper = "clip_pr", "CLIP-PR", "Kahana et al. 2022"
    trains = True

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        rows, zero_shot = unlabelled.rows, task.zero_shot(unlabelled.rows)
        learned = learn(rows, zero_shot, seed=self.seed)
        return {**learned, "spread": scale_to(answer(learned, rows), zero_shot)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        head_alone = {name: value for name, value in self.learned_.items() if name != "spread"}
        return self.learned_["spread"] * answer(head_alone, features)
