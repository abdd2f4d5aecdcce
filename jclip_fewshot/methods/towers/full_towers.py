"""CLIP-LoRA and 2SFS: both towers train, on stored views, from the input of block 0.

CLIP-LoRA: towers.py. 2SFS: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages",
2025 (arXiv:2503.11609):

    stage 1   min over the blocks' norms    CE(s · cos(f, t), y),   t = text tower's rows, again in each step
    stage 2   min over C (K, D)             CE(s · cos(f, C), y),   C starts at the tuned text rows, f fixed

300 × shots steps, 60 % of them in stage 1; CLIP-LoRA's optimiser and rates; s the model's scale. Other norms stay.

Of both, the text tower trains on one template; what that moves its rows by is added to the rows of all sentences, and
these answer (CLIP-LoRA) or start stage 2. Deviation: the authors answer by the one template's rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_rows, unit_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.towers import towers
from jclip_fewshot.methods.towers.base import TowerMethod, image_flops, sentence_flops
from jclip_fewshot.methods.towers.towers import CLASSIFIER, CLIP, in_batches, text_rows
from jclip_fewshot.methods.training import Arrays, Vars, as_vars
from jclip_fewshot.task import Fold, Task

FIRST_SHARE = 0.6  # of 2SFS's steps: the authors'
BOTH = ("visual.", "")


class _BothTowers(TowerMethod):
    """Activations at block 0, steps by shots, tensors of both towers."""

    reads_sentences = True
    at = 0
    steps_a_shot, batch = 500, 32
    constants = ("steps_a_shot", "batch")

    def _count(self, task: Task) -> int:
        return max(1, round(self.steps_a_shot * float(task.counts[task.seen].mean())))

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        image = min(self.batch, len(task)) * image_flops(tower.model)
        sentences = task.num_classes * sentence_flops(tower.model, tower.class_tokens)
        return self._count(task) * 2 * (image + sentences)

    def _steps(self, fit: Fold, tower: Activations
               ) -> tuple[list[np.ndarray], Callable[[int], jt.Var], Callable[[Vars], jt.Var]]:
        """Each step's labels, and functions of a step and of the parameters: image and text rows by the towers then."""
        total, shots, model = self._count(fit.task), len(fit.kept), tower.model
        epochs = -(-total // max(1, shots // min(self.batch, shots)))
        labels, x = self.schedule(fit, tower, np.random.default_rng(self.seed), self.batch, epochs)
        return (labels[:total], lambda step: self.rows(model, x(step), {}),
                lambda _: text_rows(model, tower.class_tokens[fit.task.seen]))


class ClipLora(_BothTowers):
    """CLIP-LoRA with the authors' settings: 500 steps a shot, rank 2, dropout 0.25."""

    name, title, paper = "clip_lora", "CLIP-LoRA", "Zanella and Ben Ayed 2024"

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        model = tower.model
        start = towers.random_start(model, towers.block_names(model, *BOTH), np.random.default_rng([self.seed, 2]))
        labels, rows, text = self._steps(fit, tower)
        drop = towers.dropout(np.random.default_rng([self.seed, 1]), towers.DROPOUT)
        trained = towers.train(start, model, rows, text, labels, drop=drop, stage=stage)
        return {**trained, CLASSIFIER: _text_moved(model, tower.class_tokens, towers.merged(model, trained))}


class TwoStage(_BothTowers):
    """2SFS with the authors' settings: 300 steps a shot, 60 % of them on the norms."""

    name, title, paper = "two_stage", "2SFS", "Farina et al. 2025"
    steps_a_shot = 300

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        task, model, seen = fit.task, tower.model, fit.task.seen
        labels, rows, text = self._steps(fit, tower)
        count = max(1, round(FIRST_SHARE * len(labels)))
        start = towers.values_of(model, towers.norm_names(towers.block_names(model, *BOTH)))
        trained = towers.train(start, model, rows, text, labels[:count], task.scale, stage=stage)
        moved, tensors = _text_moved(model, tower.class_tokens, trained), as_vars(trained)

        def tuned_rows(step: int) -> jt.Var:
            with replaced(model, tensors), jt.no_grad():
                return jt.array(rows(count + step).numpy())
        if len(labels) > count:
            trained_rows = towers.train({CLASSIFIER: (task.text + moved)[seen]}, model, tuned_rows,
                                        lambda p: unit_var(p[CLASSIFIER]), labels[count:], task.scale, stage=stage)
            moved[seen] = unit_rows(trained_rows[CLASSIFIER]) - task.text[seen]
        return {**trained, CLASSIFIER: moved}


def _text_moved(model: CLIP, tokens: np.ndarray, tensors: Arrays) -> np.ndarray:
    """By how much tuning moves the text rows (K, D): of one template, added to the rows of all sentences."""
    def rows() -> np.ndarray:
        return in_batches(lambda some: text_rows(model, some).numpy(), tokens)
    before = rows()
    with replaced(model, as_vars(tensors)):
        return rows() - before
