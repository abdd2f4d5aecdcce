"""The last blocks, trained on unlabelled images as well: their soft labels come from the shots that the fit may see.

    CE(shots) + λ KL(q(u) ‖ tuned(strong view of u))

q(u): what the refined ensemble of the task at hand says about u, frozen. The shots that a fold leaves out are among
that fold's unlabelled images: a test image's own pseudo-label takes part in its training, and what judges the method
must be treated alike. An image is drawn as often as its classes are rare, p(u) ∝ Σ_k q_k(u) / Σ_v q_k(v). Everything
else is last_blocks.py's. What it is worth: docs/nolabels.md.

U unlabelled images · S shots · K classes · D feature width · R pixels a side
"""

from __future__ import annotations

from typing import Callable, Optional

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import softmax_kl
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.features.bank import Bank, Views
from jclip_fewshot.storage.fit_cache import FitCache
from jclip_fewshot.task import Task
from jclip_fewshot.tuning.last_blocks import LastBlocks
from jclip_fewshot.tuning.members import CLASSIFIER
from jclip_fewshot.tuning.training import Loss, Vars
from jclip_fewshot.tuning.views import BATCH, strong_view

LEAST = 1e-12  # of a probability
Label = Callable[[Task, np.ndarray], np.ndarray]


class SelfTraining(LastBlocks):
    """pixels (U + S, R, R, 3) uint8: of the unlabelled images and of the shots; rows (U, D): of the former.

    label: a task and (n, D) rows -> (n, K), q by that task's shots alone. weight: λ. views: strong ones of an image.
    """

    name = "self_training"
    weight, views = 1.0, 4

    def __init__(self, pixels: Optional[np.ndarray] = None, rows: Optional[np.ndarray] = None,
                 label: Optional[Label] = None, seed: int = 0) -> None:
        super().__init__(seed)
        self.pixels, self.unlabelled, self.label = pixels, rows, label
        self._strong: Optional[Views] = None

    def fit(self, task: Task, bank: Bank, fits: Optional[FitCache] = None) -> "SelfTraining":
        """As `Member.fit`; trainings are not kept, since `fits` cannot know what `label` depends on."""
        super().fit(task, bank)
        return self

    def _further(self, task: Task, bank: Bank, kept: np.ndarray) -> Loss:
        model, seen = bank.encoder.model, task.seen
        rng = np.random.default_rng([self.seed, 1])
        left_out = np.setdiff1d(np.arange(len(self.task_)), kept)
        asked = np.concatenate([self.unlabelled, self.task_.features[left_out]])
        images = np.concatenate([np.arange(len(self.unlabelled)), len(self.unlabelled) + left_out])
        soft = self.label(task, asked)[:, seen] + LEAST
        soft /= soft.sum(axis=1, keepdims=True)
        share = (soft / soft.sum(axis=0)).sum(axis=1)
        share, log_soft = share / share.sum(), np.log(soft).astype(np.float32)
        text, strong = jt.array(task.text[seen]), self._strong_views(bank)

        def loss(p: Vars, step: int) -> "jt.Var":
            rows = rng.choice(len(soft), size=min(self.batch, len(soft)), p=share)
            x = jt.array(strong.take(images[rows], rng.integers(strong.count, size=len(rows))))
            logits = task.scale * product(self._features(model, p, x), unit_var(text + p[CLASSIFIER]))
            return self.weight * softmax_kl(jt.array(log_soft[rows]), logits)
        return loss

    def _strong_views(self, bank: Bank) -> Views:
        """Strong views at the depth where training begins; computed once for all fits."""
        if self._strong is None:
            encoder, depth = bank.encoder, self.depth(bank.encoder.model)
            rng, made = np.random.default_rng([self.seed, 2]), []
            for begin in range(0, len(self.pixels), BATCH // self.views):
                part = [strong_view(one, rng) for one in self.pixels[begin:begin + BATCH // self.views]
                        for _ in range(self.views)]
                found = encoder.images(np.stack(part), depth).astype(np.float16)
                made.append(found.reshape(-1, self.views, *found.shape[1:]))
            self._strong = Views(np.concatenate(made))
        return self._strong
