"""How fast em_dirichlet is against the published updates written as plain matrix products.

    python benchmarks/dirichlet.py ../shared/features/replica_dev.npz            about 20 s on 2 cores
    python benchmarks/dirichlet.py --big                 K = 1000, N = 50,000: peak memory, about 6 minutes

Prints seconds, rounds, inner steps and the log-likelihood of the last alpha step for both.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import digamma, gammaln

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from jclip_fewshot.combine.em_dirichlet import em_dirichlet, fit_alpha


def published(probs, support_probs, support_labels, weight, iterations=20, mm_steps=1000, eps=1e-15):
    """The authors' rounds in matrix form: same updates, same stopping rule, float64, no (N, K, K) array.

    Returns assignments, alpha, mean logs of the last alpha step, majorise-minimise steps of all rounds.
    """
    num_queries, num_classes = probs.shape
    one_hot = np.eye(num_classes)[support_labels]
    log_support, log_query = np.log(support_probs + eps), np.log(probs + eps)
    support_sums, counts = one_hot.T @ log_support, one_hot.sum(0)
    u, alpha, steps = probs.copy(), np.ones((num_classes, num_classes)), 0
    for _ in range(iterations):
        mean_log = (support_sums + u.T @ log_query) / (counts + u.sum(0))[:, None]
        for step in range(mm_steps):
            psi = digamma(alpha + 1)
            curvature = np.where(alpha > 1e-11, np.abs(2 * (alpha * psi - gammaln(alpha + 1))
                                                       / np.maximum(alpha, 1e-11) ** 2), np.pi ** 2 / 6)
            b = psi - digamma(alpha.sum(1))[:, None] - curvature * alpha - mean_log
            new = (np.sqrt(b * b + 4 * curvature) - b) / (2 * curvature)
            steps += 1
            done = step > 0 and step % 50 == 0 and (np.linalg.norm(new - alpha) ** 2
                                                    / np.linalg.norm(alpha) ** 2 < 1e-11)
            alpha = new
            if done:
                break
        v = np.log(u.mean(0) + eps) + 1
        logits = log_query @ (alpha - 1).T + gammaln(alpha.sum(1)) - gammaln(alpha).sum(1)
        logits += weight / num_queries * v
        logits -= logits.max(1, keepdims=True)
        u = np.exp(logits)
        u /= u.sum(1, keepdims=True)
    return u, alpha, mean_log, steps


def likelihood(alpha, mean_log):
    """Mean over classes of the log-likelihood an image that the alpha step climbs."""
    return float((gammaln(alpha.sum(1)) - gammaln(alpha).sum(1) + ((alpha - 1) * mean_log).sum(1)).mean())


def simplex(features, text, temperature=30.0):
    """softmax(T cosine): the points of the simplex that the paper works on, float64."""
    unit = [x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
            for x in (features, text)]
    logits = temperature * unit[0] @ unit[1].T
    z = np.exp(logits - logits.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def compare(path):
    with np.load(path) as suite:
        support, query = simplex(suite["train_x"], suite["text"]), simplex(suite["test_x"], suite["text"])
        support_y, query_y = suite["train_y"], suite["test_y"]
    num_queries, num_classes = query.shape
    print(f"{Path(path).stem}: N = {num_queries}, K = {num_classes}, S = {len(support)}, soft, 20 rounds")
    for weight in (float(num_queries), float(num_classes // 5 * num_queries)):
        ours = []
        for _ in range(5):
            start = time.perf_counter()
            fit = em_dirichlet(query, support, support_y, weight=weight, tolerance=0)
            ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        u, alpha, mean_log, steps = published(query, support, support_y, weight)
        theirs = time.perf_counter() - start
        best = fit_alpha(mean_log).alpha
        top1 = [100 * np.mean(a.argmax(1) == query_y) for a in (u, fit.assignments)]
        print(f"  lam = {weight:8.0f}   published updates {theirs:6.2f} s, {steps} steps, top-1 {top1[0]:.1f}"
              f"   ours {min(ours):.3f} s, top-1 {top1[1]:.1f}"
              f"   {theirs / min(ours):.1f} times faster")
        print(f"      last alpha step: log-likelihood {likelihood(alpha, mean_log):.6f} published,"
              f" {likelihood(best, mean_log):.6f} Newton;"
              f" same answer for {np.mean(u.argmax(1) == fit.assignments.argmax(1)):.2%} of the queries")


def big(num_queries=50_000, num_classes=1000):
    rng = np.random.default_rng(0)
    probs = np.empty((num_queries, num_classes), np.float32)
    for start in range(0, num_queries, 5000):
        logits = 2 * rng.standard_normal((5000, num_classes), np.float32)
        logits[np.arange(5000), rng.integers(0, num_classes, 5000)] += 8
        probs[start:start + 5000] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    start = time.perf_counter()
    fit = em_dirichlet(probs, weight=float(num_queries), iterations=5)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"K = {num_classes}, N = {num_queries}: {time.perf_counter() - start:.0f} s for"
          f" {len(fit.objective)} rounds, peak memory {peak:.2f} GiB"
          f" (input and output {2 * probs.nbytes / 2**30:.2f} GiB of it)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="*", help="feature suites (.npz)")
    parser.add_argument("--big", action="store_true", help="measure memory at K = 1000, N = 50,000")
    arguments = parser.parse_args()
    for suite_path in arguments.suite:
        compare(suite_path)
    if arguments.big:
        big()
