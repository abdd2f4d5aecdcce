"""UPL: CoOp on the images of each class that zero-shot is most confident about; no label takes part.

Huang et al., "Unsupervised Prompt Learning for Vision-Language Models", 2022 (arXiv:2204.03649).

    of each class k the n images with the largest max softmax among those whose argmax is k
    CoOp on them from different starts; logits are averaged

A class may get fewer than n, or none. The pseudo-labels are never renewed. Averaging the logits of CoOp's fits is
averaging their text rows: what is kept is one matrix (K, D).

Deviations by default, for a dozen images a class (`Settings`): 4 of them a class instead of 16, 4 members of 4 vectors
instead of 16 of 16, full batches (as `coop` says).

K classes · N unlabelled images · D feature width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, softmax
from jclip_fewshot.methods.base import TEXT, TOWER, UNLABELLED, Unlabelled
from jclip_fewshot.methods.towers import coop
from jclip_fewshot.methods.training import Arrays, batches, cosine_by_epoch
from jclip_fewshot.methods.unlabelled.base import LabelFree
from jclip_fewshot.task import Task


@dataclass(frozen=True)
class Settings:
    """per_class: images a class. members: starts. context: M. batch: 0 takes all images in each step."""

    per_class: int = 4
    members: int = 4
    context: int = 4
    epochs: int = 50
    batch: int = 0
    lr: float = coop.LR


def paper() -> Settings:
    """The authors' settings."""
    return Settings(per_class=16, members=16, context=16, epochs=50, batch=32)


def confident(logits: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zero-shot logits (N, K) -> (rows, pseudo-labels, confidences) of the chosen, in the order of the rows."""
    probs = softmax(logits.astype(np.float64))
    labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    rows = np.sort(np.concatenate([order[labels[order] == k][:per_class] for k in range(logits.shape[1])]))
    return rows, labels[rows], confidence[rows]


def mean_text(members: Sequence[np.ndarray]) -> np.ndarray:
    """The text rows whose logits are the mean of the members': (K, D), not unit."""
    return np.mean(members, axis=0)


def learn(prompts: coop.Prompts, rows: np.ndarray, logits: np.ndarray, scale: float, width: int,
          settings: Settings = Settings(), seed: int = 0) -> np.ndarray:
    """The whole method on unlabelled unit rows (N, D) with zero-shot logits (N, K): mean text rows (K, D).

    prompts: sentences with room for `settings.context` vectors; width: of the text tower.
    """
    chosen, labels, _ = confident(logits, settings.per_class)
    found = []
    for member in range(settings.members):
        rng = np.random.default_rng([seed, member])
        order = np.stack([rng.permutation(len(chosen)) for _ in range(settings.epochs)])
        steps = batches(order, settings.batch or len(chosen))
        rates = cosine_by_epoch(settings.lr, settings.epochs, len(steps) // settings.epochs)
        start = {"ctx": coop.random_context(rng, settings.context, width)}
        trained = coop.train(start, prompts, rows[chosen], labels, steps, rates, scale,
                             stage=f"upl {member + 1}/{settings.members}")
        found.append(prompts.rows(jt.array(trained["ctx"])).numpy())
    return mean_text(found)


class Upl(LabelFree):
    """The text rows that UPL learns, in the place of CLIP's."""

    name, title, paper = "upl", "UPL", "Huang et al. 2022"
    needs = frozenset({TEXT, UNLABELLED, TOWER})
    trains = True
    settings = Settings()

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        encoder = unlabelled.encoder
        prompts = coop.prompts_for(encoder, unlabelled.names, self.settings.context)
        width = encoder.model.transformer.width
        return {"text": learn(prompts, unlabelled.rows, task.zero_shot(unlabelled.rows), task.scale, width,
                              self.settings, self.seed)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.scale_ * features, self.learned_["text"].T)
