"""CLIP-LoRA and 2SFS: both towers train, on stored views, from the input of block 0.

CLIP-LoRA: towers.py. 2SFS: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages",
2025 (arXiv:2503.11609):

    stage 1   min over the blocks' norms    CE(s · cos(f, t), y),   t = text tower's rows, again in each step
    stage 2   min over C (K, D)             CE(s · cos(f, C), y),   C starts at the tuned text rows, f fixed

300 × shots steps, 60 % of them in stage 1; both by CLIP-LoRA's optimiser and rates; s the model's scale. The authors'
code names ln_pre, ln_post and ln_final as well, and freezes them again: they stay.

Of both, the text tower trains on one template; what that moves its rows by is added to the rows of all sentences, and
these answer (CLIP-LoRA) or start stage 2. Deviation: the authors answer by the one template's rows. For a GPU: on two
cores a training on the contest takes hours (docs/notes/tuning.md).

S shots · B images a step · K classes
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
from jclip_fewshot.task import Task

FIRST_SHARE = 0.6  # of 2SFS's steps: the authors'
BOTH = ("visual.", "")


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
               ) -> tuple[list[np.ndarray], Callable[[int], jt.Var], Callable[[Vars], jt.Var]]:
        """Each step's labels, and functions of a step and of the parameters: image and text rows by the towers then."""
        total, a_epoch = self._count(task), max(1, len(kept) // min(self.batch, len(kept)))
        model, rng = activations.model, np.random.default_rng(self.seed)
        labels, x = self.schedule(task, activations, kept, rng, self.batch, -(-total // a_epoch))
        return (labels[:total], lambda step: self.rows(model, x(step), {}),
                lambda _: text_rows(model, activations.class_tokens[task.seen]))


class ClipLora(_BothTowers):
    """CLIP-LoRA with the authors' settings: 500 steps a shot, rank 2, dropout 0.25."""

    name, title, paper = "clip_lora", "CLIP-LoRA", "Zanella and Ben Ayed 2024"

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model = activations.model
        start = towers.random_start(model, towers.block_names(model, *BOTH), np.random.default_rng([self.seed, 2]))
        labels, rows, text = self._steps(task, activations, kept)
        drop = towers.dropout(np.random.default_rng([self.seed, 1]), towers.DROPOUT)
        trained = towers.train(start, model, rows, text, labels, drop=drop, stage=stage)
        return {**trained, CLASSIFIER: _text_moved(model, activations.class_tokens, towers.merged(model, trained))}


class TwoStage(_BothTowers):
    """2SFS with the authors' settings: 300 steps a shot, 60 % of them on the norms."""

    name, title, paper = "two_stage", "2SFS", "Farina et al. 2025"
    steps_a_shot = 300

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, seen = activations.model, task.seen
        labels, rows, text = self._steps(task, activations, kept)
        count = max(1, round(FIRST_SHARE * len(labels)))
        start = towers.values_of(model, towers.norm_names(towers.block_names(model, *BOTH)))
        trained = towers.train(start, model, rows, text, labels[:count], task.scale, stage=stage)
        moved, tensors = _text_moved(model, activations.class_tokens, trained), as_vars(trained)

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
