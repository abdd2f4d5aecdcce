"""ProKeR. Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
Models", CVPR 2025 (https://arxiv.org/abs/2501.11175): kernel ridge regression on what zero-shot leaves over.

    k(x, f) = exp(-β (1 - x·f)),  A = (K_ff / λ + I)⁻¹ (L - F tᵀ)
    logits = 100 (x tᵀ + α k(x, F) A)

β: sharpness of the kernel. λ: ridge. Both by the number of shots, as the authors fixed them.

Deviation: the authors have α = 1; here leave-one-shot-out chooses it, each fold by its own ridge regression. Memory is
S x S in float64 (16,000 shots: 2 GB).
"""

from collections.abc import Iterator

import numpy as np

from jclip_fewshot.backend.numerics import blocks
from jclip_fewshot.methods.base import SHOTS
from jclip_fewshot.methods.rows.evidence import EvidenceMethod
from jclip_fewshot.methods.rows.tip_adapter import cache_logits
from jclip_fewshot.task import Task

BETA_LAMBDA = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}  # from so many shots
BLOCK = 4096  # rows that are factorised at once; OpenBLAS's buffers overflow from about 14,700 with two threads


def factorise(system: np.ndarray) -> np.ndarray:
    """Turn a positive definite matrix (S, S) into its upper Cholesky factor, in place, below which nothing counts.

    By blocks, since OpenBLAS crashes on matrices that are too large for its buffers (its issues 1413 and 2562).
    """
    from scipy.linalg import cholesky, solve_triangular  # half a second that only a fit should wait for
    for first in range(0, len(system), BLOCK):
        own, after = slice(first, first + BLOCK), first + BLOCK
        system[own, own] = cholesky(system[own, own], check_finite=False)
        rows = system[own, after:]
        for some in blocks(rows.shape[1]):
            rows[:, some] = solve_triangular(system[own, own], rows[:, some], trans=1, check_finite=False)
        for some in blocks(rows.shape[1]):
            rest = system[after + some.start:, after + some.start:]
            rest[:some.stop - some.start] -= rows[:, some].T @ rows[:, some.start:]
    return system


def ridge(task: Task, settings: dict[str, float]) -> np.ndarray:
    """100 A of the file's head, (S, K)."""
    from scipy.linalg import cho_solve
    features = task.features.astype(float)
    system = features @ features.T.copy()  # without the copy it would be a product of the same kind
    system -= 1
    system *= float(settings["beta"])
    np.exp(system, out=system)
    system /= float(settings["lambda"])
    system.flat[::len(task) + 1] += 1
    R = task.one_hot - features @ task.text.T.astype(float)
    # the transpose lies in memory as LAPACK wants it, which then needs no copy
    return (task.scale * cho_solve((factorise(system).T, True), R, check_finite=False)).astype(np.float32)


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
            A = ridge(fold.task, settings)
            evidence[0, fold.left_out] = cache_logits(task.features[fold.left_out], fold.task.features, A,
                                                      settings["beta"])
        yield settings, evidence

    def _learn(self, task: Task) -> None:
        self.keys_, self.A_ = task.features, ridge(task, self.chosen_)

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        return cache_logits(features, self.keys_, self.A_, self.chosen_["beta"])[None]
