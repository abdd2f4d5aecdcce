"""CLIP-LoRA and 2SFS: both towers train, on stored views, from the input of block 0.

lora.py and two_stage.py have the methods. The text tower trains on one template; what that moves its rows by is added
to the rows of all sentences, and these answer (CLIP-LoRA) or start the second stage (2SFS). Deviation: the authors
answer by the one template's rows. For a GPU: on two cores a training on the contest takes hours (docs/tuning.md).

S shots · B images a step · L tokens · W width · K classes
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import Given
from jclip_fewshot.methods.towers import lora, two_stage
from jclip_fewshot.methods.towers.base import CLASSIFIER, TowerMethod, block_flops, sentence_flops, steps_of
from jclip_fewshot.methods.towers.towers import blocks_of, in_parts, rows_from, text_rows
from jclip_fewshot.methods.training import Arrays
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP


class _BothTowers(TowerMethod):
    """What the two share: activations at block 0, steps by shots, tensors of both towers."""

    reads_sentences = True
    at = 0
    steps_a_shot, batch = 500, 32
    constants = ("steps_a_shot", "batch")

    def steps(self, task: Task) -> int:
        return max(1, round(self.steps_a_shot * float(task.counts[task.seen].mean())))

    def flops(self, task: Task, given: Given) -> float:
        activations = given.tower
        model = activations.encoder.model
        length, width = model.visual.shape_at(0)
        image = len(blocks_of(model, "visual.")) * block_flops(length, width)
        sentence = sentence_flops(model, activations.class_tokens)
        batch = min(self.batch, len(task))
        return (len(task.folds()) + 1) * self.steps(task) * 2 * (batch * image + task.num_classes * sentence)

    def _steps(self, task: Task, activations: Activations, kept: np.ndarray
               ) -> tuple[list[np.ndarray], Callable[[int], jt.Var]]:
        """Each step's shots, and their image rows by the tower as it stands."""
        rng, total = np.random.default_rng(self.seed), self.steps(task)
        views = activations.at(0)
        a_epoch = max(1, len(kept) // min(self.batch, len(kept)))
        chosen, numbers = steps_of(rng, np.arange(len(kept)), views.count, self.batch, -(-total // a_epoch))

        def rows(step: int) -> jt.Var:
            return rows_from(activations.encoder.model, jt.array(views.take(kept[chosen[step]], numbers[step])), 0)
        return chosen[:total], rows


class ClipLora(_BothTowers):
    """CLIP-LoRA with the authors' settings: 500 steps a shot, rank 2, dropout 0.25."""

    name, title, paper = "clip_lora", "CLIP-LoRA", "Zanella and Ben Ayed 2024"

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model = activations.encoder.model
        seen = np.flatnonzero(task.seen)
        labels, tokens = np.searchsorted(seen, task.labels), activations.class_tokens[seen]
        places = [lora.attention_path(tower, block) for tower in ("visual.", "") for block in blocks_of(model, tower)]
        start = lora.random_start(model, places, np.random.default_rng([self.seed, 2]))
        chosen, rows = self._steps(task, activations, kept)
        trained = lora.train(start, model, rows, lambda: text_rows(model, tokens), [labels[one] for one in chosen],
                             seed=self.seed, stage=stage)
        moved = _text_moved(model, activations.class_tokens, task.text, lora.merged(model, trained))
        return {**trained, CLASSIFIER: moved}


class TwoStage(_BothTowers):
    """2SFS with the authors' settings: 300 steps a shot, 60 % of them on the norms."""

    name, title, paper = "two_stage", "2SFS", "Farina et al. 2025"
    steps_a_shot = two_stage.STEPS_A_SHOT

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model = activations.encoder.model
        seen = np.flatnonzero(task.seen)
        labels, tokens = np.searchsorted(seen, task.labels), activations.class_tokens[seen]
        chosen, rows = self._steps(task, activations, kept)
        count = max(1, round(two_stage.FIRST_SHARE * len(chosen)))
        norms = two_stage.train_norms(two_stage.start_of(model), model, rows, lambda: text_rows(model, tokens),
                                      [labels[one] for one in chosen[:count]], task.scale, stage=stage)
        moved = _text_moved(model, activations.class_tokens, task.text, norms)
        tensors = {name: jt.array(value) for name, value in norms.items()}

        def tuned_rows(step: int) -> jt.Var:
            with replaced(model, tensors), jt.no_grad():
                return jt.array(rows(count + step).numpy())
        start = task.text + moved
        if len(chosen) > count:
            trained = two_stage.train_classifier(start[seen], tuned_rows, [labels[one] for one in chosen[count:]],
                                                 task.scale, stage=stage)
            moved[seen] = unit_rows(trained) - task.text[seen]
        return {**norms, CLASSIFIER: moved}


def _text_moved(model: CLIP, tokens: np.ndarray, text: np.ndarray, tensors: Arrays) -> np.ndarray:
    """By how much tuning moves the text rows (K, D): of one template, added to the rows of all sentences."""
    before = in_parts(partial(text_rows, model), tokens)
    with replaced(model, {name: jt.array(value) for name, value in tensors.items()}):
        return in_parts(partial(text_rows, model), tokens) - before
