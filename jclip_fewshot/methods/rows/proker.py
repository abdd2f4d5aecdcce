"""ProKeR. Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
Models", CVPR 2025 (https://arxiv.org/abs/2501.11175): kernel ridge regression on what zero-shot leaves over.

    k(x, f) = exp(-β (1 - x·f)),  A = (K_ff / λ + I)⁻¹ (L - F tᵀ)
    logits = 100 (x tᵀ + α k(x, F) A)

β: sharpness of the kernel. λ: ridge. Both by the number of shots, as the authors fixed them.

Deviation: the authors have α = 1; here leave-one-shot-out chooses it, each fold by its own ridge regression. Memory is
half of S x S in float64 (16,000 shots: 1.2 GB).
"""

from collections.abc import Iterator

import numpy as np

from jclip_fewshot.methods.base import SHOTS
from jclip_fewshot.methods.rows.evidence import EvidenceMethod
from jclip_fewshot.methods.rows.tip_adapter import cache_logits
from jclip_fewshot.task import Task

BETA_LAMBDA = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}  # from so many shots
BLOCK = 1024  # rows of the system that are solved at once


def ridge(task: Task, beta: float, lam: float) -> np.ndarray:
    """100 A of the file's head, (S, K), by Cholesky's factor U of the system: UᵀU A = R, the right side.

    Of U and of U⁻ᵀR there are BLOCK rows in a panel, from the diagonal on: half the memory of the whole; and OpenBLAS
    crashes on matrices that are too large for its buffers (its issues 1413 and 2562).
    """
    from scipy.linalg import blas, cholesky, solve_triangular  # half a second that only a fit should wait for
    features, classes, panels = task.features.astype(float), task.num_classes, list[np.ndarray]()
    R = task.one_hot - features @ task.text.T.astype(float)
    for first in range(0, len(task), BLOCK):
        own = slice(first, first + BLOCK)
        kernel = np.exp(beta * (features[own] @ features[first:].T - 1))
        panel = np.concatenate([kernel / lam, R[own]], axis=1)
        panel.flat[::panel.shape[1] + 1] += 1
        size = len(panel)
        for above in (one[:, -panel.shape[1]:] for one in panels):
            blas.dgemm(-1, above.T, above[:, :size], 1, panel.T, overwrite_c=True)  # -= above[:, :size].T @ above
        panel[:, :size] = cholesky(panel[:, :size], check_finite=False)
        panel[:, size:] = solve_triangular(panel[:, :size], panel[:, size:], trans=1, check_finite=False)
        panels.append(panel)
    A = np.zeros((0, classes))
    while panels:
        panel = panels.pop()
        size = len(panel)
        rest = panel[:, -classes:] - panel[:, size:-classes] @ A
        A = np.concatenate([solve_triangular(panel[:, :size], rest, check_finite=False), A])
    return (task.scale * A).astype(np.float32)


class ProKeR(EvidenceMethod):
    """α by leave-one-shot-out, (β, λ) published. Give beta and lam to fix others."""

    name, title, paper = "proker", "ProKeR", "Bendou et al. 2025"
    needs = frozenset({SHOTS})
    checks = True
    state_names = ("keys_", "A_", "alpha_")
    beta: float | None = None
    lam: float | None = None

    def _fixed_settings(self, task: Task) -> dict[str, float]:
        shots = max(float(task.counts[task.seen].mean()), 1)
        beta, lam = BETA_LAMBDA[max(k for k in BETA_LAMBDA if k <= shots)]
        return {"beta": beta if self.beta is None else float(self.beta),
                "lambda": lam if self.lam is None else float(self.lam)}

    def _candidates(self, task: Task) -> Iterator[tuple[dict[str, float], np.ndarray]]:
        settings = self._fixed_settings(task)
        evidence = np.zeros((1, len(task), task.num_classes), np.float32)
        for fold in task.folds():
            A = ridge(fold.task, settings["beta"], settings["lambda"])
            evidence[0, fold.left_out] = cache_logits(task.features[fold.left_out], fold.task.features, A,
                                                      settings["beta"])
        yield settings, evidence

    def _learn(self, task: Task) -> None:
        self.keys_, self.A_ = task.features, ridge(task, self.chosen_["beta"], self.chosen_["lambda"])

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        return cache_logits(features, self.keys_, self.A_, self.chosen_["beta"])[None]
