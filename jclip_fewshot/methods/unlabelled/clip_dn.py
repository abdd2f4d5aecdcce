"""CLIP+DN, distribution normalisation. Zhou et al., "Test-Time Distribution Normalization for Contrastively Learned
Vision-language Models", NeurIPS 2023 (https://arxiv.org/abs/2302.11084).

    logits = 100 (x - λ μ_x) (t - λ μ_t)ᵀ

μ_x, μ_t: means of the unlabelled images' rows and of the text rows; λ = 1/4 as in the authors' code. What changes the
order is -λ μ_x (t - λ μ_t)ᵀ, a bias against classes whose text lies near all images.
"""

import numpy as np

from jclip_fewshot.backend.numerics import matmul
from jclip_fewshot.methods.base import Unlabelled
from jclip_fewshot.methods.unlabelled.base import LabelFree
from jclip_fewshot.task import CLIP_SCALE, Task

LAMBDA = 0.25


def clip_dn_logits(features: np.ndarray, text: np.ndarray, image_mean: np.ndarray, strength: float = LAMBDA,
                   scale: float = CLIP_SCALE) -> np.ndarray:
    """(N, D), (K, D), image_mean (D,) of the unlabelled images -> (N, K); strength 0 is zero-shot."""
    part = np.float32(strength)
    return matmul(np.float32(scale) * (features - part * image_mean), (text - part * text.mean(axis=0)).T)


class ClipDn(LabelFree):
    """The mean of the unlabelled images is all that is learned."""

    name, title, paper = "clip_dn", "CLIP+DN", "Zhou et al. 2023"

    def learn(self, task: Task, unlabelled: Unlabelled) -> dict[str, np.ndarray]:
        return {"image_mean": unlabelled.rows.mean(axis=0)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return clip_dn_logits(features, self.text_, self.learned_["image_mean"], scale=self.scale_)
