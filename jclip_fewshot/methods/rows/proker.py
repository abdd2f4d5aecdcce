"""ProKeR. Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
Models", CVPR 2025 (https://arxiv.org/abs/2501.11175): kernel ridge regression on what zero-shot leaves over.

    k(x, f) = exp(-β (1 - x·f)),  A = (K_ff / λ + I)⁻¹ (L - F tᵀ)
    logits = 100 (x tᵀ + α k(x, F) A)

β: sharpness of the kernel. λ: ridge. Both by the number of shots, as the authors fixed them.

Deviation: the authors have α = 1; here leave-one-shot-out chooses it. With G = (K_ff / λ + I)⁻¹ and H the rows that a
fold leaves out, the kernel part there is λ (R_H - (G_HH)⁻¹ (G R)_H), R = L - F tᵀ: exact, one inverse for all folds.
Memory is S x S in float64 (16,000 shots: 2 GB).
"""

from collections.abc import Iterator

import numpy as np

from jclip_fewshot.methods.base import SHOTS
from jclip_fewshot.methods.rows.evidence import EvidenceMethod
from jclip_fewshot.methods.rows.tip_adapter import cache_logits
from jclip_fewshot.task import Task

BETA_LAMBDA = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}  # from so many shots


def ridge(task: Task, settings: dict[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lower Cholesky factor of K_ff / λ + I, (S, S), R = L - F tᵀ and A, (S, K), float64."""
    from scipy.linalg import cho_solve, cholesky  # half a second that only a fit should wait for
    features = task.features.astype(float)
    system = features @ features.T
    system -= 1
    system *= float(settings["beta"])
    np.exp(system, out=system)
    system /= float(settings["lambda"])
    system.flat[::len(task) + 1] += 1
    # the transpose of a symmetric matrix lies in memory as LAPACK wants it, which then needs no copy
    factor = cholesky(system.T, lower=True, overwrite_a=True, check_finite=False)
    R = task.one_hot - features @ task.text.T.astype(float)
    return factor, R, cho_solve((factor, True), R, check_finite=False)


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
        from scipy.linalg import lapack, solve
        settings = self._fixed_settings(task)
        factor, R, A = ridge(task, settings)
        inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # its lower triangle
        evidence = np.zeros((1, *R.shape), np.float32)
        for fold in task.folds():
            H = fold.left_out
            left_out = R[H] - solve(inverse[np.ix_(H, H)], A[H], assume_a="pos", lower=True, check_finite=False)
            evidence[0, H] = task.scale * settings["lambda"] * left_out
        yield settings, evidence

    def _learn(self, task: Task) -> None:
        self.keys_, self.A_ = task.features, (task.scale * ridge(task, self.chosen_)[2]).astype(np.float32)

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        return cache_logits(features, self.keys_, self.A_, self.chosen_["beta"])[None]
