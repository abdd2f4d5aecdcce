"""A small case: what methods on rows answer, and EM-Dirichlet by its authors' updates (tests/data/references.npz).

    python -m tests.methods.rows.references      writes it anew: only from code that passes the tests with ../shared

Inputs are made up here. The methods' answers are the package's own, kept so that a clone without the development data
notices when one changes; a method that is not in the file is not compared, and need not be. EM-Dirichlet's come from
the published updates, written out in SciPy and run to their end.
"""

from pathlib import Path

import numpy as np
from scipy import special

FILE = Path(__file__).resolve().parents[2] / "data" / "references.npz"
SETTINGS = {"soft": (False, 12.0), "soft_spread": (False, 60.0), "hard": (True, 12.0), "hard_spread": (True, 60.0)}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def case():
    """{"text" (8, 24), "features" (32, 24), "labels", "domains", "queries" (12, 24)}: classes around their text."""
    rng = np.random.default_rng(11)
    text = unit(0.4 * rng.standard_normal((8, 24)) + rng.standard_normal(24))
    centres = text + 0.15 * rng.standard_normal((8, 24)) + 0.3 * rng.standard_normal(24)
    labels = np.repeat(np.arange(8), 4)
    draw = lambda y: unit(centres[y] + 0.15 * rng.standard_normal((len(y), 24)))  # noqa: E731
    return {"text": text, "features": draw(labels), "labels": labels, "domains": np.arange(8) % 2,
            "queries": draw(rng.integers(0, 8, 12))}


def simplex_case():
    """Queries (60, 6) of four classes, supports (12, 6), their labels."""
    rng = np.random.default_rng(0)

    def rows(n, labels):
        logits = rng.standard_normal((n, 6))
        logits[np.arange(n), labels] += 3
        return special.softmax(logits, axis=1)

    labels = np.repeat(np.arange(6), 2)
    return rows(60, rng.integers(0, 4, 60)), rows(12, labels), labels


def published_em_dirichlet(query, support, support_labels, hard, weight, rounds=8, eps=1e-15):
    """(u (N, K), alpha (K, K)) by the authors' majorise-minimise updates, 3000 in every alpha step."""
    K = query.shape[1]
    one_hot, log_query, log_support = np.eye(K)[support_labels], np.log(query + eps), np.log(support + eps)
    u, alpha = query.copy(), np.ones((K, K))
    for _ in range(rounds):
        mean_log = (one_hot.T @ log_support + u.T @ log_query) / (one_hot.sum(0) + u.sum(0))[:, None]
        for _ in range(3000):
            psi = special.digamma(alpha + 1)
            curvature = np.where(alpha > 1e-11, np.abs(2 * (alpha * psi - special.gammaln(alpha + 1))
                                                       / np.maximum(alpha, 1e-11) ** 2), np.pi ** 2 / 6)
            b = psi - special.digamma(alpha.sum(1))[:, None] - curvature * alpha - mean_log
            alpha = (np.sqrt(b * b + 4 * curvature) - b) / (2 * curvature)
        v = np.log(u.mean(0) + eps) + 1
        logits = log_query @ (alpha - 1).T + special.gammaln(alpha.sum(1)) - special.gammaln(alpha).sum(1)
        u = special.softmax(logits + weight / len(query) * v, axis=1)
        if hard:
            u = np.eye(K)[u.argmax(1)]
    return u, alpha


def make():
    from jclip_fewshot.methods import METHODS
    from jclip_fewshot.methods.base import SHOTS, TEXT
    from jclip_fewshot.task import Task

    arrays = case()
    task = Task(arrays["features"], arrays["labels"], arrays["text"], arrays["domains"])
    for name, method in METHODS.items():
        if method.needs <= {TEXT, SHOTS}:
            fitted = method().fit(task)
            arrays[f"methods/{name}/logits"] = fitted.logits(arrays["queries"])
            arrays[f"methods/{name}/held_out"] = fitted.held_out_logits()
    for name, (hard, weight) in SETTINGS.items():
        arrays[f"em/{name}/u"], arrays[f"em/{name}/alpha"] = published_em_dirichlet(*simplex_case(), hard, weight)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    make()
