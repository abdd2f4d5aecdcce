"""A Gaussian classifier on all of the image tower's last tokens: nothing trains; new is what CLIP projects away.

GDA as in methods/rows/gda.py (Wang et al. 2024), on all last tokens: the class token before the
projection, and the extremes of the patches' tokens. Class means are those of the shots alone, since no text row lives
there; the logits are brought to a calibrated scale on held-out shots.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, temperature, unit_rows, unit_var
from jclip_fewshot.encoders.clip_encoder import ClipEncoder, FunctionEncoder
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import ALWAYS, keep_unseen
from jclip_fewshot.methods.rows.gda import gaussian_classifier, precision_matrix
from jclip_fewshot.methods.towers.base import TowerMethod
from jclip_fewshot.methods.towers.towers import CLIP
from jclip_fewshot.methods.training import Vars
from jclip_fewshot.task import Task, class_means

TOKENS = b"tokens-1"  # in the encoder's fingerprint: to be raised when `rows` gives others


class TokenGDA(TowerMethod):
    """`weight_` (3W, K) and `bias_` (K,) are learned."""

    name, title, paper = "token_gda", "GDA on tokens", "ours, after Wang et al. 2024"
    default = ALWAYS
    trains = False
    state_names = (*TowerMethod.state_names, "weight_", "bias_")

    def depth(self, model: CLIP) -> int:
        return len(model.visual.transformer.resblocks) - 1

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        width = 3.0 * tower.model.visual.shape_at(None)[0]
        return len(task) * width ** 2 * 2 + width ** 3

    def rows(self, model: CLIP, x: jt.Var, own: Vars) -> jt.Var:
        """x (B, L, W), the input of the last block -> (B, 3W): all of the last tokens as one row.

        The class token after the last norm, and maximum and minimum over the patches' tokens, each of unit length.
        CLIP's projection keeps D of W directions of the first alone. Other choices: docs/notes/tuning.md.
        """
        tokens = model.visual.ln_post(model.visual.transformer.resblocks[self.depth(model)](x))
        patches = tokens[:, 1:]
        return jt.concat([unit_var(tokens[:, 0]), unit_var(patches.max(1)), unit_var(patches.min(1))], dim=1)

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        model = base.model
        return FunctionEncoder(base, "tokens", TOKENS, 3 * model.visual.shape_at(None)[0], lambda images: self.rows(
            model, model.visual.activations(images, self.depth(model)).cast(model.dtype), {}))

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
