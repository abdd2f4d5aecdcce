"""CALIP, parameter-free attention. Guo et al., "CALIP: Zero-Shot Enhancement of CLIP with Parameter-free Attention",
AAAI 2023 (https://arxiv.org/abs/2209.14169), equations 3 to 7.

    A = 2 F tᵀ,   F_a = softmax_K(A) t,   t_a = softmax_M(A)ᵀ F
    logits = 100 (x tᵀ + β₂ x t_aᵀ + β₃ (mean_M F_a + max_M F_a) tᵀ)

Symbols: x (D,) an image's row, F (M, D) its M patch tokens behind the last norm and projection, unit rows; t (K, D)
text. softmax_K over classes, softmax_M over patches. Temperature ½ and pooling as in the authors' code. Deviation: they
search β₂, β₃ on labelled test images, here both are fixed.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, softmax, unit_rows
from jclip_fewshot.methods.base import TEXT, TOWER, Unlabelled
from jclip_fewshot.methods.towers.towers import CLIP
from jclip_fewshot.methods.training import Arrays, Vars
from jclip_fewshot.methods.unlabelled.base import LabelFreeByImages
from jclip_fewshot.task import CLIP_SCALE, Task

TEMPERATURE = 0.5
BETA2, BETA3 = 0.1, 0.02  # small compared with 1: no label says that attention deserves more


def calip_logits(features: np.ndarray, patches: np.ndarray, text: np.ndarray, beta2: float = BETA2,
                 beta3: float = BETA3, scale: float = CLIP_SCALE) -> np.ndarray:
    """(N, D), (N, M, D), (K, D) -> (N, K); with both β zero, zero-shot."""
    logits = np.empty((len(features), len(text)), np.float32)
    for n, (x, tokens) in enumerate(zip(features, unit_rows(patches))):
        attention = matmul(tokens, text.T) / np.float32(TEMPERATURE)  # A (M, K)
        by_text = matmul(softmax(attention), text)  # F_a (M, D)
        by_image = matmul(softmax(attention.T), tokens)  # t_a (K, D)
        pooled = by_text.mean(axis=0) + by_text.max(axis=0)
        logits[n] = text @ (x + beta3 * pooled) + beta2 * by_image @ x
    return np.float32(scale) * logits


class CALIP(LabelFreeByImages):
    """Nothing is learned: the text rows are all there is."""

    name, title, paper = "calip", "CALIP", "Guo et al. 2023"
    needs = frozenset({TEXT, TOWER})

    def learn(self, task: Task, unlabelled: Unlabelled | None) -> Arrays:
        return {}

    def ask(self, model: CLIP, p: Vars, images: jt.Var) -> jt.Var:
        visual, features = model.visual, unit_rows(model.encode_image(images).numpy())
        x = visual.transformer.part(visual.embed(images), 0, len(visual.transformer.resblocks))
        patches = jt.matmul(visual.ln_post(x[:, 1:]), visual.proj).numpy()  # (B, M, D)
        return jt.array(calip_logits(features, patches, self.text_, scale=self.scale_))
