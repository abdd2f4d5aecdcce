"""GDA. Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024
(https://arxiv.org/abs/2402.04087), equations 5 to 8.

    Σ⁻¹ = D pinv((S - 1) Σ̂ + tr(Σ̂) I),   W = μ Σ⁻¹,   b = log(1/K) - ½ diag(μ Σ⁻¹ μᵀ)
    logits = 100 x tᵀ + α (x Wᵀ + b)

μ: class means (K, D). Σ̂: covariance of the shots around their class means. α: weight of the Gaussian classifier.

Deviations: class means are drawn to m_c = f̄ + s (t_c - t̄), the text row moved to the images' centre and scaled by the
least-squares s, as if κ (`text_shots`) further shots lay there: μ_c = (n_c f̄_c + κ m_c) / (n_c + κ). Where no class has
more than two shots, a fold's Σ̂ would be zero: the scatter around the mean of all shots stands in. α is searched
relative to one over the degrees of freedom of Σ̂: the weight found with k-1 shots then holds for k.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from jclip_fewshot.backend.numerics import matmul
from jclip_fewshot.methods.base import SHOTS
from jclip_fewshot.methods.rows.evidence import EvidenceMethod
from jclip_fewshot.task import Fold, Task, class_means

FIXED_ALPHA = 0.1  # per degree of freedom, where nothing can be left out (the authors search on other images)


def text_means(task: Task, means: np.ndarray) -> np.ndarray:
    """m_c = f̄ + s (t_c - t̄) for every class, (K, D): where the text rows put the classes' means."""
    seen = task.seen
    text = task.text - task.text[seen].mean(axis=0, dtype=float)
    centre = means[seen].mean(axis=0)
    norm = (text[seen] ** 2).sum()
    s = max((text[seen] * (means[seen] - centre)).sum() / norm, 0) if norm > 1e-9 else 0.0
    return centre + s * text


def precision_matrix(task: Task, means: np.ndarray, within: bool = True) -> np.ndarray:
    """Σ⁻¹ = D pinv((S - 1) Σ̂ + tr(Σ̂) I), (D, D) float64, around `means` or the common mean."""
    S, D = task.features.shape
    residual = task.features - (means[task.labels] if within else task.features.mean(axis=0, dtype=float))
    scatter = residual.T @ residual
    trace = np.trace(scatter) / max(S - 1, 1)
    if trace < 1e-9:
        return np.zeros((D, D))
    return D * np.linalg.inv(scatter + trace * np.eye(D))  # positive definite: pinv is inv


def has_spread(task: Task) -> bool:
    """Return whether a class keeps two shots in every fold."""
    return int(task.counts.max()) > 2


def degrees_of_freedom(task: Task, within: bool) -> int:
    """Of the scatter around the class means, or around the common mean; at least 1."""
    return max(len(task) - (np.count_nonzero(task.seen) if within else 1), 1)


def gaussian_classifier(means: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W (D, K), b (K,) of x W + b, equal priors: equation 5. (K, D), (D, D) float64."""
    W = means @ precision
    return W.T, -np.log(len(means)) - 0.5 * (W * means).sum(axis=1)


class GDA(EvidenceMethod):
    """α and κ by leave-one-shot-out. text_shots: fixed κ (None: search; 0: the published formula)."""

    name, title, paper = "gda", "GDA", "Wang et al. 2024"
    needs = frozenset({SHOTS})
    checks = True
    state_names: ClassVar[tuple[str, ...]] = ("W_", "b_", "alpha_")
    fixed, searched = {"text_shots": 2.0}, (0.0, 1.0, 2.0, 4.0)  # κ
    text_shots: float | None = None

    def _scales(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        return np.array([task.text.shape[1] / degrees_of_freedom(task, has_spread(task))]), np.array([FIXED_ALPHA])

    def _classifiers(self, task: Task, within: bool, kappas: Sequence[float]
                     ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(W, b) at each κ."""
        means = class_means(task)
        from_text = text_means(task, means)
        precision = precision_matrix(task, means, within)
        precision *= degrees_of_freedom(task, within) / task.text.shape[1]
        counts = task.counts[:, None]
        for kappa in kappas:
            weight = np.where(counts > 0, kappa, 1.0)  # a class without shots lies where its text says
            drawn = (counts * means + weight * from_text) / (counts + weight)
            W, b = gaussian_classifier(drawn, precision)
            # what all classes have in common moves no decision and would cost float32 three digits
            yield W - W.mean(axis=1, keepdims=True), b - b.mean()

    def _evidence_of_fold(self, task: Task, fold: Fold, values: Sequence[float]) -> Iterator[np.ndarray]:
        for W, b in self._classifiers(fold.task, has_spread(task), values):
            yield (matmul(task.features[fold.left_out], W) + b)[None]

    def _learn(self, task: Task) -> None:
        W, b = next(self._classifiers(task, has_spread(task), [float(self.chosen_["text_shots"])]))
        self.W_, self.b_ = W.astype(np.float32), b.astype(np.float32)

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        return (matmul(features, self.W_) + self.b_)[None]
