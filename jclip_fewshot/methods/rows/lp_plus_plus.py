"""LP++. Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024
(https://arxiv.org/abs/2404.02285), equations 4 to 12.

    logits_c = w_c·x + a_c (x·t_c) = (w_c + a_c t_c)·x,   loss = mean cross-entropy of the shots, full batch

Symbols: w_c (D,) visual prototype, started at the class's mean shot; a_c blending weight of the text, started at one
value for all, 250 · mean over classes of the class's mean own-text cosine; step sizes from block Lipschitz bounds:
lr_W = 4 S / λmax(FᵀF), lr_a = S / (4 max_c Σ_s (f_s·t_c)²); gradient descent with momentum 0.9, 300 epochs.

Deviation: it stops when the folds' held-out soft top-1 (`trained`) has not risen for `patience` epochs.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, product
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.rows.trained import TrainedMethod
from jclip_fewshot.methods.training import SGD, Arrays, Vars
from jclip_fewshot.task import Task, class_means

TEXT_SCALE = 250.0


class LPPlusPlus(TrainedMethod):
    """momentum: of both blocks. The step sizes are constants of a fit; the rate is a factor on them."""

    name, title, paper = "lp_plus_plus", "LP++", "Huang et al. 2024"
    default = NEVER
    state_names, state_dicts = ("classifier_",), ()
    epochs, batch, lr, least_lr, momentum = 300, None, 1.0, 1.0, 0.9
    patience, every = 40, 5

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        cosines = matmul(task.features, task.text.T)  # (S, K)
        own = np.bincount(task.labels, weights=cosines[np.arange(len(task)), task.labels], minlength=task.num_classes)
        blend = TEXT_SCALE * (own / np.maximum(task.counts, 1))[task.seen].mean()
        top = float(np.linalg.eigvalsh(matmul(task.features.T, task.features).astype(np.float64))[-1])
        steepest = float((cosines.astype(np.float64) ** 2).sum(axis=0).max())
        constants = {"text": task.text, "rates": np.array([4 * len(task) / top, len(task) / (4 * steepest)])}
        return constants, {"W": class_means(task), "a": np.full((task.num_classes, 1), blend, np.float32)}

    def optimiser(self, constants: list[Arrays]) -> SGD:
        rates = {f"{m}/{name}": rate for m, one in enumerate(constants)
                 for name, rate in zip(("W", "a"), one["rates"].tolist())}
        return SGD(self.momentum, lr_factors=rates)

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        return product(x, p["W"] + p["a"] * p["text"])

    def _fit(self, task: Task) -> None:
        super()._fit(task)
        self.classifier_ = self.learned_["W"] + self.learned_["a"] * task.text
        del self.learned_

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(features, self.classifier_.T)
