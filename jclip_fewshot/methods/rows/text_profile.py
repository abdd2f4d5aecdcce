"""Text profile: GDA (see `gda`) with a second term, what the text tower says about a class's shots; the project's own.

    s(x) = softmax(x tᵀ / T),    P_c = (Σ_{j in c} s(f_j) + s(m_c)) / (n_c + 1)
    logits = 100 x tᵀ + α (x Wᵀ + b) + γ s(x)·log(P_c + ε)

s(x): zero-shot's probabilities, (K,). m_c: where the text puts the class's mean. P_c: mean profile of a class's shots,
with s(m_c) counted as one more shot. The last term is -KL(s(x) ‖ P_c) up to what all classes share. T = 0.01, CLIP's
own; ε = 1e-4, about the least probability that a mean over a few shots can support.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jclip_fewshot.backend.numerics import matmul, softmax, unit_rows
from jclip_fewshot.methods.base import SHOTS, TEXT
from jclip_fewshot.methods.rows.gda import GDA, text_means
from jclip_fewshot.task import Fold, Task, class_means, class_sums, zero_shot_logits

FLOOR = 1e-4  # ε


def profiles(features: np.ndarray, text: np.ndarray) -> np.ndarray:
    """s = softmax(100 x tᵀ): (N, D), (K, D) -> (N, K)."""
    return softmax(zero_shot_logits(features, text))


def class_profiles(task: Task) -> np.ndarray:
    """log(P + ε), (K, K) float32: a row for each class; without shots, the text's own profile."""
    sums = class_sums(profiles(task.features, task.text), task.labels, task.num_classes)
    sums = sums + profiles(unit_rows(text_means(task, class_means(task))), task.text)
    return np.log(sums / (task.counts[:, None] + 1) + FLOOR).astype(np.float32)


class TextProfile(GDA):
    """α, γ and κ (`text_shots`, see `gda`) by leave-one-shot-out."""

    name, title, paper = "text_profile", "Text profile", "ours"
    needs = frozenset({TEXT, SHOTS})
    state_names = (*GDA.state_names, "log_profiles_")
    evidence_names = ("alpha", "gamma")
    gamma: float | None = None

    def _scales(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        scale, alpha = super()._scales(task)
        return np.append(scale, 1.0), np.append(alpha, 0.5)

    def _evidence_of_fold(self, task: Task, fold: Fold, values: Sequence[float]) -> Iterator[np.ndarray]:
        likelihood = matmul(profiles(task.features[fold.left_out], task.text), class_profiles(fold.task).T)
        for evidence in super()._evidence_of_fold(task, fold, values):
            yield np.concatenate([evidence, likelihood[None]])

    def _learn(self, task: Task) -> None:
        super()._learn(task)
        self.log_profiles_ = class_profiles(task)

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        likelihood = matmul(profiles(features, self.text_), self.log_profiles_.T)
        return np.concatenate([super()._evidence(features), likelihood[None]])
