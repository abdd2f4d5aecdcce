"""EM-Dirichlet: a whole set of probability rows classified at once. Martin, Huang, Shakeri, Pesquet and Ben Ayed,
"Transductive Zero-Shot and Few-Shot CLIP", CVPR 2024. Images are points z of the simplex, class k Dirichlet(alpha_k):

    ln p(z | alpha_k) = lnG(s_k) - sum_j lnG(alpha_kj) + sum_j (alpha_kj - 1) ln z_j,   s_k = sum_j alpha_kj

    alpha step   alpha_k = argmax of the likelihood of all rows, weighed by u[:, k]              (concave)
    v step       v_k = ln(mean_n u_nk + eps) + 1          tangent of the partition complexity
    u step       u_n = softmax_k [ln p(z_n | alpha_k) + (lam / N) v_k];   hard: its argmax

which together climb   J = sum_nk u_nk ln p(z_n | alpha_k) + H(u) + lam sum_k pi_k ln pi_k,  pi = mean_n u_n
(supports keep their labels; hard: without the entropy H(u)).

    N queries · S supports · K classes      z  probabilities (N, K)      u  assignments (N, K)      alpha (K, K)
    Y  mean of ln z in a class (K, K)       lam  how much the classes' sizes weigh

Deviations (docs/methods.md): the alpha step is Newton's method (Minka 2000), not up to 1000 majorise-minimise updates;
a class with no assignments keeps its alpha, one of equal rows stops at MAX_ALPHA; all is float64.
"""

from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend.numerics import blocks, matmul
from jclip_fewshot.console import warn
from jclip_fewshot.task import class_sums

MAX_ALPHA = 1e8  # beyond it float64 cannot tell the likelihoods of two steps apart
NEWTON_GAIN = 1e-13  # stop when the next Newton step promises less likelihood than this (nats an image)
NEWTON_STEPS = 60
BLOCK_BYTES = 64 * 2**20
STILL = 1e-14  # change of a mean log under which alpha stays: a tenth of what Newton's steps can resolve


@dataclass(frozen=True)
class DirichletFit:
    """What em_dirichlet found; alpha and class_weights are those of the last round."""

    assignments: np.ndarray  # u (N, K) in the dtype of the queries; hard: one-hot rows
    scores: np.ndarray  # (N, K): the soft u step of the last round, whose argmax hard takes; soft: the same array
    alpha: np.ndarray  # (K, K)
    class_weights: np.ndarray  # v (K,)
    objective: list[float]  # J after every round
    converged: bool  # the last relative change of alpha, the authors' criterion, is within the tolerance


@dataclass(frozen=True)
class AlphaFit:
    """Maximum-likelihood Dirichlet parameters of K classes: alpha (K, J); trace: likelihood (K,) a step."""

    alpha: np.ndarray
    trace: list[np.ndarray]
    converged: bool


def _newton_terms(alpha: np.ndarray, mean_log: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Likelihood F (K,), Newton step (K, J) and the gain that it promises (K,) at alpha (K, J)."""
    from scipy.special import digamma, gammaln, polygamma  # a quarter of a second that only this should wait for

    s = alpha.sum(1, keepdims=True)
    likelihood = gammaln(s[:, 0]) + ((alpha - 1) * mean_log - gammaln(alpha)).sum(1)
    gradient = digamma(s) - digamma(alpha) + mean_log
    # (-H)^-1 g with -H = diag(psi') - psi'(s) 11', by Sherman and Morrison
    inverse, trigamma_s = 1 / polygamma(1, alpha), polygamma(1, s)
    shared = trigamma_s * (gradient * inverse).sum(1, keepdims=True)
    step = (gradient + shared / (1 - trigamma_s * inverse.sum(1, keepdims=True))) * inverse
    return likelihood, step, (gradient * step).sum(1) / 2


def starting_alpha(mean_log) -> np.ndarray:
    """A start for fit_alpha, (K, J), from the mean logs (K, J) alone.

    psi(x) is near ln(x - 1/2), so exp(Y_j) is near (alpha_j - 1/2) / (s - 1/2); summed over j this gives s - 1/2 =
    (J - 1)/2 / (1 - sum_j exp(Y_j)). Below x = 0.6 psi(x) is near psi(1) - 1/x instead (Minka 2000, appendix C).
    """
    deficit = 1 - np.exp(mean_log).sum(1, keepdims=True)
    s = (mean_log.shape[1] - 1) / 2 / np.maximum(deficit, 1e-8) + 0.5
    target = mean_log + np.log(s)
    alpha = np.where(target > -2.22, np.exp(target) + 0.5, -1 / (np.minimum(target, -2.22) + np.euler_gamma))
    return np.minimum(alpha, MAX_ALPHA)


def fit_alpha(mean_log, alpha=None) -> AlphaFit:
    """Maximise  lnG(s_k) - sum_j lnG(alpha_kj) + sum_j (alpha_kj - 1) Y_kj  for each k by Newton's method.

    mean_log (K, J): Y, mean of ln z over a class's rows.   alpha (K, J): the start; default: starting_alpha.
    No parameter falls below an eighth of itself in a step; a class whose likelihood would fall goes half as far next.
    """
    mean_log = np.asarray(mean_log, np.float64)
    alpha = starting_alpha(mean_log) if alpha is None else np.array(alpha, np.float64)
    likelihood, step, gain = _newton_terms(alpha, mean_log)
    stride, trace = np.ones(len(alpha)), [likelihood.copy()]
    moving = np.flatnonzero(gain > NEWTON_GAIN)
    while len(moving) and len(trace) <= NEWTON_STEPS:
        here, y = alpha[moving], mean_log[moving]
        ratio = np.maximum(1 + step[moving] / here, 0.125)
        if (stride[moving] < 1).any():
            ratio **= stride[moving, None]
        proposal = np.minimum(here * ratio, MAX_ALPHA)
        new_likelihood, new_step, new_gain = _newton_terms(proposal, y)
        # what rounding alone can change: the likelihood is a difference of terms of the size of lnG(s)
        noise = 1e-13 * (np.abs(new_likelihood) + proposal.sum(1))
        change = new_likelihood - likelihood[moving]
        rises = change >= -noise
        risen = moving[rises]
        alpha[risen], step[risen], gain[risen] = proposal[rises], new_step[rises], new_gain[rises]
        likelihood[risen] = np.maximum(new_likelihood[rises], likelihood[risen])
        stride[moving] = np.where(rises, 1.0, stride[moving] / 2)
        trace.append(likelihood.copy())
        moving = moving[np.where(rises, (new_gain > NEWTON_GAIN) & (change > noise), stride[moving] > 1e-6)]
    return AlphaFit(alpha, trace, len(moving) == 0)


def em_dirichlet(probs, support_probs=None, support_labels=None, hard=False, weight=None, iterations=None,
                 eps=1e-15, tolerance=1e-6) -> DirichletFit:
    """EM-Dirichlet and Hard EM-Dirichlet (Martin et al. 2024) with and without supports.

    probs (N, K): queries' rows, summing to 1.   support_probs (S, K), support_labels (S,) in 0..K-1.
    weight: lam; default floor(K / 5) * N, right for 75 queries of 5 classes and ruinous for a whole test set.
    iterations: at most so many rounds; default 20, hard 10.   eps: added to probabilities before the log.
    tolerance: stop when alpha changes less (relative, Frobenius). Raise ValueError if shapes or labels do not fit.
    """
    from scipy.special import gammaln

    probs = np.asarray(probs)
    if probs.ndim != 2 or probs.shape[1] < 2 or len(probs) == 0:
        raise ValueError(f"probs must be (N, K) with N >= 1 and K >= 2, not {probs.shape}")
    num_queries, num_classes = probs.shape
    support_counts, support_logs = _support_sums(support_probs, support_labels, num_classes, eps)
    weight = num_classes // 5 * num_queries if weight is None else weight
    iterations = (10 if hard else 20) if iterations is None else iterations
    parts = blocks(num_queries, max(1, BLOCK_BYTES // (8 * num_classes)))
    alpha, log_norm = np.ones((num_classes, num_classes)), np.full(num_classes, gammaln(num_classes))
    log_sums, mass, log_z = _start(probs, parts, eps)
    assignments = np.zeros_like(probs, np.float32 if probs.dtype == np.float32 else np.float64)
    scores = np.zeros_like(assignments) if hard else assignments
    objective: list[float] = []
    last, fits_converged = np.full_like(alpha, np.nan), True
    for round_ in range(iterations):
        total = mass + support_counts
        held = total > eps
        mean_log = (log_sums + support_logs) / np.maximum(total, eps)[:, None]
        # a class that no image is left to has the same rows as before, and its alpha
        moved = held & ~(np.abs(mean_log - last).max(axis=1) <= STILL)
        fit = fit_alpha(mean_log[moved], alpha[moved] if round_ else None)
        previous, alpha, last = alpha, alpha.copy(), np.where(moved[:, None], mean_log, last)
        alpha[moved] = fit.alpha
        fits_converged &= fit.converged
        class_weights = np.log(mass / num_queries + eps) + 1
        # lnG(s_k) - sum_j lnG(alpha_kj), from the likelihoods that the alpha step ended with
        log_norm[moved] = fit.trace[-1] - np.einsum("kj,kj->k", fit.alpha - 1, mean_log[moved])
        offset = log_norm + weight / num_queries * class_weights
        log_sums, mass, fitness = np.zeros_like(alpha), np.zeros(num_classes), 0.0
        for rows in parts:
            if len(parts) > 1:
                log_z = np.log(probs[rows].astype(np.float64) + eps)
            u, fit_of_rows = _responsibilities(log_z, alpha, offset, hard)
            fitness += fit_of_rows
            scores[rows] = u
            if hard:
                u = (np.arange(num_classes) == u.argmax(1)[:, None]).astype(np.float64)
                assignments[rows] = u
            some = u.sum(0) > eps
            log_sums[some] += matmul(u[:, some].T, log_z)
            mass += u.sum(0)
        share = mass / num_queries
        fitness += weight * (share @ (np.log(np.maximum(share, eps)) - class_weights))
        objective.append(fitness + float(support_counts @ log_norm + ((alpha - 1) * support_logs).sum()))
        change = np.linalg.norm(alpha - previous) / np.linalg.norm(previous)
        if change < tolerance:
            break
    if not fits_converged:
        warn("EM-Dirichlet: an alpha step did not converge; its classes' parameters are near the optimum, not at it")
    return DirichletFit(assignments, scores, alpha, class_weights, objective,
                        bool(fits_converged and change < max(tolerance, 1e-12)))


def _start(probs: np.ndarray, parts: list[slice], eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sums of z ln z (K, K) and of z (K,), where u = z, and ln z of the last block."""
    classes = probs.shape[1]
    log_sums, mass, log_z = np.zeros((classes, classes)), np.zeros(classes), np.zeros(0)
    for rows in parts:
        z = probs[rows].astype(np.float64)
        log_z = np.log(z + eps)
        log_sums += matmul(z.T, log_z)
        mass += z.sum(0)
    return log_sums, mass, log_z


def _responsibilities(log_z: np.ndarray, alpha: np.ndarray, offset: np.ndarray, hard: bool) -> tuple[np.ndarray, float]:
    """u (n, K) of rows with ln z (n, K), and the sum of their log-normalisers; of their largest logits if hard."""
    u = matmul(log_z, (alpha - 1).T)  # the logits, in place from here on
    u += offset
    top = u.max(1, keepdims=True)
    u -= top
    np.exp(u, out=u)
    norm = u.sum(1, keepdims=True)
    u /= norm
    return u, float(top.sum() if hard else (top + np.log(norm)).sum())


def _support_sums(support_probs, support_labels, num_classes, eps) -> tuple[np.ndarray, np.ndarray]:
    """The supports' share of the sufficient statistics: the classes' counts (K,) and one-hot' ln z (K, K)."""
    if (support_probs is None) != (support_labels is None):
        raise ValueError("support_probs and support_labels go together")
    if support_probs is None:
        return np.zeros(num_classes), np.zeros((num_classes, num_classes))
    support_probs, labels = np.asarray(support_probs), np.asarray(support_labels)
    if support_probs.shape != (len(labels), num_classes):
        raise ValueError(f"support_probs must be {(len(labels), num_classes)}, not {support_probs.shape}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"support_labels must lie in 0..{num_classes - 1}")
    log_sums = class_sums(np.log(support_probs.astype(np.float64) + eps), labels, num_classes)
    return np.bincount(labels, minlength=num_classes).astype(np.float64), log_sums
