"""SuS-X: TIP-X on support images known by name alone. Udandarao et al., "SuS-X: Training-Free Name-Only Transfer of
Vision-Language Models", ICCV 2023 (https://arxiv.org/abs/2211.16198).

Support images come from a search engine or a generator: a folder a class, some of them wrong. One stays where
zero-shot ranks its class among the first few (`keep_support`). What is kept serves as shots; `tip_x` has the formula.

Deviations: those of `tip_x`; and the authors search α, β, γ on labelled validation images, where here they are fixed.
"""

import numpy as np

from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.rows.tip_adapter_f import TipAdapterF
from jclip_fewshot.methods.rows.tip_x import TipX
from jclip_fewshot.task import zero_shot_logits

FIRST = 5  # ranks that a support image's class may have


class SusX(TipX):
    """TIP-X with α, β, γ fixed beforehand."""

    name, title, paper = "sus_x", "SuS-X", "Udandarao et al. 2023"
    default = NEVER
    alpha, beta = 1.0, 5.5  # Tip-Adapter's
    gamma, temperature = 0.1, 0.5  # the least γ that the authors report; their code's T


class SusXF(TipAdapterF):
    """The keys train as in Tip-Adapter-F, to the last epoch; α and β are chosen with support images as shots."""

    name, title, paper = "sus_x_f", "SuS-X-F", "Udandarao et al. 2023"
    default = NEVER
    choose_epoch = False


def keep_support(rows: np.ndarray, labels: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Which of S support images stay, (S,) bool; rows (S, D), text (K, D)."""
    first = max(1, min(FIRST, len(text) // 10))  # of few classes the first five may be all
    logits = zero_shot_logits(rows, text)
    own = logits[np.arange(len(labels)), labels]
    return (logits > own[:, None]).sum(axis=1) < first
