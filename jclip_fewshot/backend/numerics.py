"""Numeric operations that everything shares, on NumPy arrays and Jittor variables. N rows, K classes, D features."""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt

BLOCK = 4096  # rows at a time


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows (..., D) as unit rows in float32; those that are zero, or unit to rounding, stay as they are."""
    rows = np.asarray(rows, np.float32)
    if rows.ndim < 2:
        raise ValueError(f"feature rows must have two axes, not shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where((norms > 0) & (np.abs(norms - 1) > 1e-6), norms, np.float32(1))


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a (n, m) @ b (m, k), on the GPU where there is one; float64 where both are, else float32."""
    kind = np.float64 if a.dtype == b.dtype == np.float64 else np.float32
    a, b = np.asarray(a, kind), np.asarray(b, kind)
    if not jt.flags.use_cuda or 0 in a.shape or 0 in b.shape:  # Jittor has no empty arrays
        return a @ b  # BLAS: Jittor's float64 product on a CPU is a plain loop, a twentieth of the speed
    with jt.flag_scope(auto_convert_64_to_32=0):
        return jt.matmul(jt.array(np.ascontiguousarray(a)), jt.array(np.ascontiguousarray(b))).numpy()


def blocks(rows: int, size: int = BLOCK) -> list[slice]:
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Return log Σ exp of each row, stable: (N, K) -> (N, 1)."""
    top = logits.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log of each row's softmax, stable, in the same float type."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return each row's softmax, stable, in the same float type."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exp /= exp.sum(axis=-1, keepdims=True)
    return exp


def var(array: np.ndarray) -> jt.Var:
    return jt.array(np.ascontiguousarray(array, np.float32))


def unit_var(rows: jt.Var) -> jt.Var:
    """Return rows (..., D) over their length."""
    return rows / jt.sqrt((rows * rows).sum(-1, keepdims=True) + 1e-12)


def fused(x: jt.Var) -> bool:
    """Return whether our operators in C++ take it: float32 on the CPU."""
    return not jt.flags.use_cuda and str(x.dtype) == "float32"


def product(a: jt.Var, b: jt.Var) -> jt.Var:
    """Return a (n, D) @ b (m, D)ᵀ."""
    return jt.nn.matmul_transpose(a, b)


def log_softmax_var(logits: jt.Var) -> jt.Var:
    """Return log softmax over the last axis; on CUDA Jittor's own wants an older CUB and does not compile."""
    centred = logits - logits.max(-1, keepdims=True).stop_grad()
    return centred - jt.log(jt.exp(centred).sum(-1, keepdims=True))


def softmax_var(logits: jt.Var) -> jt.Var:
    """Return softmax over the last axis, computed in float32, in the type of `logits`."""
    exp = jt.exp(logits.float32() - logits.float32().max(-1, keepdims=True))
    return (exp / exp.sum(-1, keepdims=True)).cast(logits.dtype)


def temperature(logits: np.ndarray, labels: np.ndarray, row_weights: np.ndarray) -> float:
    """Return a > 0 that minimises Σ v_s (-log softmax(a logits)[s, y_s]) + ½ (log a)²: (S, K), (S,), (S,)."""
    from scipy.optimize import minimize_scalar  # half a second that only a fit should wait for

    own = logits - logits[np.arange(len(labels)), labels][:, None]

    def loss(log_a: float) -> float:
        return float((row_weights * log_sum_exp(np.float32(np.exp(log_a)) * own)[:, 0]).sum()) + 0.5 * log_a ** 2

    return float(np.exp(minimize_scalar(loss, bracket=(-0.5, 0.5), options={"xtol": 1e-3}).x))
