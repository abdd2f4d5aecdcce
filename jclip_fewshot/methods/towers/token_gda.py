"""A Gaussian classifier on all of the image tower's last tokens: nothing trains; new is what CLIP projects away.

GDA as in methods/rows/gda.py (Wang et al. 2024), on the rows of encoders/function.py: the class token before the
projection, and the extremes of the patches' tokens. Class means are those of the shots alone, since no text row lives
there; the logits are brought to a calibrated scale on held-out shots.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, temperature, unit_rows
from jclip_fewshot.encoders.base import Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.encoders.function import last_block, token_encoder, token_rows
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import ALWAYS, keep_unseen
from jclip_fewshot.methods.rows.gda import gaussian_classifier, precision_matrix
from jclip_fewshot.methods.towers.base import TowerMethod
from jclip_fewshot.methods.towers.towers import CLIP
from jclip_fewshot.methods.training import Vars
from jclip_fewshot.task import Task, class_means


class TokenGDA(TowerMethod):
    """`weight_` (3W, K) and `bias_` (K,) are learned."""

    name, title, paper = "token_gda", "GDA on tokens", "ours, after Wang et al. 2024"
    default = ALWAYS
    trains = False
    state_names = (*TowerMethod.state_names, "weight_", "bias_")

    def depth(self, model: CLIP) -> Depth:
        return last_block(model)

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        width = 3.0 * tower.model.visual.shape_at(None)[0]
        return len(task) * width ** 2 * 2 + width ** 3

    def rows(self, model: CLIP, x: jt.Var, own: Vars) -> jt.Var:
        return token_rows(model, x)

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        return token_encoder(base)

    def _fit(self, task: Task, tower: Activations) -> None:
        rows = self.mean_rows(tower, {}, np.arange(len(task)))
        deep = Task(rows, task.labels, np.zeros((task.num_classes, rows.shape[1]), np.float32), task.domains)
        held_out, folds, cool = task.zero_shot(task.features), task.folds(), 1.0
        if folds:
            raw, tested = np.zeros_like(held_out), task.can_be_left_out
            for fold in folds:
                weight, bias = classifier_of(deep.take(fold.kept))
                raw[fold.left_out] = matmul(deep.features[fold.left_out], weight) + bias
            seen, labels = task.seen_labels()
            inner = raw[tested][:, seen]
            spread = float(inner.std()) or 1.0  # a temperature is searched around 1
            cool = temperature(inner / spread, labels[tested], np.ones(len(inner))) / spread
            held_out[tested] = keep_unseen(np.float32(cool) * raw[tested], held_out[tested], task.seen)
        weight, bias = classifier_of(deep)
        self.weight_, self.bias_ = (cool * weight).astype(np.float32), (cool * bias).astype(np.float32)
        self.settings_ = {"scale": cool, "chosen_by": "held-out log-loss" if folds else "fixed"}
        if folds:
            self._choose_domains(task, held_out)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(unit_rows(features), self.weight_) + self.bias_


def classifier_of(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """W (3W, K), b (K,) of the shots: GDA's, its precision from the scatter within classes where there is any."""
    means = class_means(task)
    precision = precision_matrix(task, means, within=int(task.counts.max()) > 1)
    weight, bias = gaussian_classifier(means, precision / task.features.shape[1])
    return weight - weight.mean(axis=1, keepdims=True), bias - bias.mean()
