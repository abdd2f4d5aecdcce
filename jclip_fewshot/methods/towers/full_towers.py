"""CLIP-LoRA and 2SFS: both towers train, on stored views, from the input of block 0.

CLIP-LoRA: lora.py. 2SFS: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", 2025
(arXiv:2503.11609):

    stage 1   min over the blocks' norms    CE(s · cos(f, t), y),   t = text tower's rows, again in each step
    stage 2   min over C (K, D)             CE(s · cos(f, C), y),   C starts at the tuned text rows, f fixed

300 × shots steps, 60 % of them in stage 1; both AdamW, lr 2e-4, weight decay 1e-2, cosine by step to 1e-6; s the
model's scale. The authors' code names ln_pre, ln_post and ln_final as well, and freezes them again: they stay.

Of both, the text tower trains on one template; what that moves its rows by is added to the rows of all sentences, and
these answer (CLIP-LoRA) or start stage 2. Deviation: the authors answer by the one template's rows. For a GPU: on two
cores a training on the contest takes hours (docs/notes/tuning.md).

S shots · B images a step · L tokens · W width · K classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_rows, unit_var
from jclip_fewshot.clip.replace import part, replaced
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.towers import lora
from jclip_fewshot.methods.towers.base import CLASSIFIER, TowerMethod, image_flops, sentence_flops
from jclip_fewshot.methods.towers.lora import LEAST_LR, LR, WEIGHT_DECAY
from jclip_fewshot.methods.towers.towers import CLIP, blocks_of, in_parts, norm_names, rows_from, text_rows
from jclip_fewshot.methods.training import Adam, Arrays, Vars, cosine, descend, mean_cross_entropy
from jclip_fewshot.task import Task

FIRST_SHARE = 0.6  # of 2SFS's steps: the authors'


def norms(model: CLIP) -> list[str]:
    """What stage 1 trains: the norms of every block of both towers."""
    return [name for tower in ("visual.", "") for name in norm_names(tower, blocks_of(model, tower))]


def start_of(model: CLIP) -> Arrays:
    """The norms before training."""
    return {name: part(model, name).float32().numpy() for name in norms(model)}


def train_norms(start: Arrays, model: CLIP, rows: Callable[[int], jt.Var], text: Callable[[], jt.Var],
                labels: Sequence[np.ndarray], scale: float, lr: float = LR, **told: Any) -> Arrays:
    """Stage 1: a step an entry of `labels`; `rows(step)` and `text()` are asked with the norms in place."""
    def loss(p: Vars, step: int) -> jt.Var:
        with replaced(model, p):
            return mean_cross_entropy(scale * product(rows(step), text()), labels[step])
    return descend(start, loss, Adam(WEIGHT_DECAY), cosine(lr, len(labels), LEAST_LR), **told)


def train_classifier(start: np.ndarray, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray], scale: float,
                     lr: float = LR, **told: Any) -> np.ndarray:
    """Stage 2: the classifier (K, D), started at the tuned text rows; `rows(step)` are fixed unit rows."""
    def loss(p: Vars, step: int) -> jt.Var:
        return mean_cross_entropy(scale * product(rows(step), unit_var(p["classifier"])), labels[step])
    trained = descend({"classifier": start}, loss, Adam(WEIGHT_DECAY), cosine(lr, len(labels), LEAST_LR), **told)
    return trained["classifier"]


class _BothTowers(TowerMethod):
    """What the two share: activations at block 0, steps by shots, tensors of both towers."""

    reads_sentences = True
    at = 0
    steps_a_shot, batch = 500, 32
    constants = ("steps_a_shot", "batch")

    def _count(self, task: Task) -> int:
        return max(1, round(self.steps_a_shot * float(task.counts[task.seen].mean())))

    def flops_of_fit(self, task: Task, activations: Activations) -> float:
        image = min(self.batch, len(task)) * image_flops(activations.model)
        sentences = task.num_classes * sentence_flops(activations.model, activations.class_tokens)
        return self._count(task) * 2 * (image + sentences)

    def _steps(self, task: Task, activations: Activations, kept: np.ndarray
               ) -> tuple[list[np.ndarray], Callable[[int], jt.Var]]:
        """Each step's labels, and a function of a step: its image rows by the tower as it stands."""
        total, a_epoch = self._count(task), max(1, len(kept) // min(self.batch, len(kept)))
        chosen, x = self.schedule(activations, kept, np.random.default_rng(self.seed), self.batch, -(-total // a_epoch))
        labels = task.seen_labels()[1]
        return [labels[one] for one in chosen[:total]], lambda step: rows_from(activations.model, x(step), 0)


class ClipLora(_BothTowers):
    """CLIP-LoRA with the authors' settings: 500 steps a shot, rank 2, dropout 0.25."""

    name, title, paper = "clip_lora", "CLIP-LoRA", "Zanella and Ben Ayed 2024"

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, tokens = activations.model, activations.class_tokens
        places = [lora.attention_path(tower, block) for tower in ("visual.", "") for block in blocks_of(model, tower)]
        start = lora.random_start(model, places, np.random.default_rng([self.seed, 2]))
        labels, rows = self._steps(task, activations, kept)
        trained = lora.train(start, model, rows, lambda: text_rows(model, tokens[task.seen]), labels, seed=self.seed,
                             stage=stage)
        return {**trained, CLASSIFIER: _text_moved(model, tokens, lora.merged(model, trained))}


class TwoStage(_BothTowers):
    """2SFS with the authors' settings: 300 steps a shot, 60 % of them on the norms."""

    name, title, paper = "two_stage", "2SFS", "Farina et al. 2025"
    steps_a_shot = 300

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, tokens, seen = activations.model, activations.class_tokens, task.seen
        labels, rows = self._steps(task, activations, kept)
        count = max(1, round(FIRST_SHARE * len(labels)))
        trained = train_norms(start_of(model), model, rows, lambda: text_rows(model, tokens[seen]), labels[:count],
                              task.scale, stage=stage)
        moved = _text_moved(model, tokens, trained)
        tensors = {name: jt.array(value) for name, value in trained.items()}

        def tuned_rows(step: int) -> jt.Var:
            with replaced(model, tensors), jt.no_grad():
                return jt.array(rows(count + step).numpy())
        if len(labels) > count:
            classifier = train_classifier((task.text + moved)[seen], tuned_rows, labels[count:], task.scale,
                                          stage=stage)
            moved[seen] = unit_rows(classifier) - task.text[seen]
        return {**trained, CLASSIFIER: moved}


def _text_moved(model: CLIP, tokens: np.ndarray, tensors: Arrays) -> np.ndarray:
    """By how much tuning moves the text rows (K, D): of one template, added to the rows of all sentences."""
    before = in_parts(partial(text_rows, model), tokens)
    with replaced(model, {name: jt.array(value) for name, value in tensors.items()}):
        return in_parts(partial(text_rows, model), tokens) - before
