"""Text profile: what the text tower says about a class's shots, right or wrong, is a feature; the project's own.

GDA (see `gda`) with a second term, related to TIP-X's inter-modal distance and to EM-Dirichlet's simplex points:

    s(x) = softmax(x tᵀ / T),    P_c = (Σ_{j in c} s(f_j) + s(m_c)) / (n_c + 1)
    logits = 100 x tᵀ + α (x Wᵀ + b) + γ s(x)·log(P_c + ε)

s(x): zero-shot's probabilities, (K,). m_c: where the text puts the class's mean. P_c: mean profile of a class's shots,
with s(m_c) counted as one more shot. The last term is the log-likelihood of x's profile under the class's, up to what
all classes share: -KL(s(x) ‖ P_c). T = 0.01, CLIP's own; ε = 1e-4, about the least probability that a mean over a few
shots can support. What it adds to GDA: docs/methods.md.
"""

from collections.abc import Iterator

import numpy as np

from jclip_fewshot.backend.numerics import matmul, softmax, unit_rows
from jclip_fewshot.methods.base import SHOTS, TEXT
from jclip_fewshot.methods.rows.gda import GDA, text_means
from jclip_fewshot.task import Task, class_means, class_sums, zero_shot_logits

FLOOR = 1e-4  # ε
TEXT_WEIGHT = 1.0  # shots that s(m_c) counts for


def profiles(features: np.ndarray, text: np.ndarray) -> np.ndarray:
    """s = softmax(100 x tᵀ): (N, D), (K, D) -> (N, K)."""
    return softmax(zero_shot_logits(features, text))


def class_profiles(task: Task) -> np.ndarray:
    """log(P + ε), (K, K) float32: a row for each class; without shots, the text's own profile."""
    sums = TEXT_WEIGHT * profiles(unit_rows(text_means(task, class_means(task))), task.text)
    sums = sums + class_sums(profiles(task.features, task.text), task.labels, task.num_classes)
    return np.log(sums / (task.counts[:, None] + TEXT_WEIGHT) + FLOOR).astype(np.float32)


class TextProfile(GDA):
    """α, γ and κ (`text_shots`, see `gda`) by leave-one-shot-out."""

    name, title, paper = "text_profile", "Text profile", "ours"
    needs = frozenset({TEXT, SHOTS})
    checks = True
    state_names = (*GDA.state_names, "log_profiles_")
    evidence_names = ("alpha", "gamma")
    gamma: float | None = None

    def _alpha_scale(self, task: Task) -> np.ndarray:
        return np.append(super()._alpha_scale(task), 1.0)

    def _fixed_alpha(self, task: Task) -> np.ndarray:
        return np.append(super()._fixed_alpha(task), 0.5)

    def _candidates(self, task: Task) -> Iterator[tuple[dict[str, float], np.ndarray]]:
        likelihood = np.zeros((1, len(task), task.num_classes), np.float32)
        for fold in task.folds():
            rows = profiles(task.features[fold.left_out], task.text)
            likelihood[0, fold.left_out] = matmul(rows, class_profiles(fold.task).T)
        for settings, evidence in super()._candidates(task):
            yield settings, np.concatenate([evidence, likelihood])

    def _learn(self, task: Task) -> None:
        super()._learn(task)
        self.log_profiles_ = class_profiles(task)

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        likelihood = matmul(profiles(features, self.text_), self.log_profiles_.T)
        return np.concatenate([super()._evidence(features), likelihood[None]])
