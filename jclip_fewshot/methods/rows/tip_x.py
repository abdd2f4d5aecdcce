"""TIP-X. Udandarao et al., "SuS-X: Training-Free Name-Only Transfer of Vision-Language Models", ICCV 2023
(https://arxiv.org/abs/2211.16198), section 3.2.

    s = softmax(x tᵀ / T),  S = softmax(F tᵀ / T),  M_ij = KL(s_i ‖ S_j)
    logits = 100 x tᵀ + α A L + γ ψ(-M) L,    A = exp(-β (1 - x Fᵀ)) as in Tip-Adapter

M: how far two images are apart as the text tower describes them. ψ rescales -M to A's range. γ: its weight.

Deviations: those of `tip_adapter`. T = 0.01, CLIP's own temperature, where the authors' code has 0.5. ψ's range is from
pairs of shots, not from the queries, so that an image's answer does not depend on the others asked with it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jclip_fewshot.backend.numerics import blocks, log_softmax, matmul
from jclip_fewshot.methods.base import SHOTS, TEXT
from jclip_fewshot.methods.rows.tip_adapter import TipAdapter, cache_logits
from jclip_fewshot.task import Task


def text_divergence(features: np.ndarray, keys: np.ndarray, text: np.ndarray, temperature: float) -> np.ndarray:
    """M_ij = KL(softmax(x_i tᵀ / T) ‖ softmax(F_j tᵀ / T)): (N, D), (S, D), (K, D) -> (N, S)."""
    log_s = log_softmax(matmul(features, text.T) / np.float32(temperature))
    log_S = log_softmax(matmul(keys, text.T) / np.float32(temperature))
    s = np.exp(log_s)
    return (s * log_s).sum(axis=1, keepdims=True) - matmul(s, log_S.T)


class TipX(TipAdapter):
    """α, γ and β by leave-one-shot-out; with one shot a class α = 1, γ = 0.1, β = 5.5."""

    name, title, paper = "tip_x", "TIP-X", "Udandarao et al. 2022"
    needs = frozenset({TEXT, SHOTS})
    state_names = (*TipAdapter.state_names, "rescale_", "temperature_")
    evidence_names, fixed_alpha, searched = ("alpha", "gamma"), (1.0, 0.1), (1.0, 3.5, 8.0)
    gamma: float | None = None
    temperature = 0.01

    def _rescale(self, keys: np.ndarray) -> np.ndarray:
        """(largest M, its range, smallest x·f, largest x·f) over pairs of different keys."""
        if len(keys) < 2:
            return np.array([0.0, 1.0, 0.0, 1.0])
        bounds = []
        for rows in blocks(len(keys)):  # (S, S) numbers at once would be gigabytes at ImageNet's size
            some, own = keys[rows], (np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop))
            pairs = text_divergence(some, keys, self.text_, self.temperature), matmul(some, keys.T)
            for one in pairs:
                one[own] = np.nan
            bounds.append([bound for one in pairs for bound in (np.nanmin(one), np.nanmax(one))])
        least, most = np.min(bounds, axis=0), np.max(bounds, axis=0)
        return np.array([most[1], max(most[1] - least[0], 1e-12), least[2], most[3]], float)

    def _read(self, features: np.ndarray, keys: np.ndarray, values: np.ndarray, betas: Sequence[float]
              ) -> Iterator[np.ndarray]:
        largest, span, low, high = self.rescale_
        M = text_divergence(features, keys, self.text_, float(self.temperature_))
        for beta in betas:
            A_low, A_high = np.exp(-beta * (1 - low)), np.exp(-beta * (1 - high))
            psi = A_low + (A_high - A_low) * (largest - M) / span
            yield np.stack([cache_logits(features, keys, values, beta), matmul(psi, values)])

    def _fit(self, task: Task) -> None:
        self.temperature_ = self.temperature
        self.rescale_ = self._rescale(self._cache(task)[0])
        super()._fit(task)
