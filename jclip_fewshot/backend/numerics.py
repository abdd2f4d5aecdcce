"""The few numeric operations that everything shares, each once: NumPy in and out, or Jittor variables.

Letters: N rows, K classes, D feature width.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """`rows` (..., D) of any float type as unit rows in float32; a zero row stays zero."""
    rows = np.asarray(rows, np.float32)
    if rows.ndim < 2:
        raise ValueError(f"feature rows must have two axes, not shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, np.float32(1))


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, 1), stable."""
    top = logits.max(axis=1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (n, m) @ b (m, k) in Jittor, float32: on the GPU where there is one."""
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    if 0 in a.shape or 0 in b.shape:  # Jittor has no empty arrays
        return np.zeros((len(a), b.shape[1]), np.float32)
    return jt.matmul(jt.array(a), jt.array(b)).numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, stable; keeps the float type."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, stable; keeps the float type."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
