"""The part of a fitted pipeline that is one linear classifier: what a program without this package can carry.

A head whose logits are l_h(x) = W_h x + b_h on unit rows stays linear in the pool (ensemble.py): the terms log Σ exp
that turn logits into log-probabilities are the same for every class, so that

    p(c | x) = softmax(W x + b),   W = Σ_h w_h a_h W_h,   b = Σ_h w_h a_h b_h + b_pool

Whether it is linear is found by asking it: W_h and b_h are read off at ±e_d, and compared with its answers elsewhere.
Classes without shots (U) keep the share that zero-shot gives them, as in the ensemble:

    p(u | x) ∝ z_u exp(o),   p(c | x) ∝ softmax(W x + b)_c (1 - Σ_U z),   z = softmax(scale · x tᵀ)

Letters: N rows, K classes, D feature width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend.numerics import softmax, unit_rows
from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.task import Task, zero_shot_logits

SAME = 1e-4  # of the largest logit: what float32 may change
Logits = Callable[[np.ndarray], np.ndarray]  # (N, D) unit rows -> (N, K)
Form = tuple[np.ndarray, np.ndarray]  # W (K, D), b (K,)
PROBES = 64  # random rows, in addition to the shots and the text rows that a head is compared on


@dataclass(frozen=True)
class Linear:
    """W (K, D), b (K,), seen (K,), text (K, D), scale of the cosines and o. Rows of W and b of classes that are not
    `seen` are zero; where no class has a shot, `seen` is all True."""

    weight: np.ndarray
    bias: np.ndarray
    seen: np.ndarray
    text: np.ndarray
    scale: float
    offset: float

    def probs(self, rows: np.ndarray) -> np.ndarray:
        """(N, D) rows -> (N, K) probabilities."""
        rows = unit_rows(rows)
        p = softmax(np.where(self.seen, rows @ self.weight.T + self.bias, np.float32(-np.inf)))
        if not self.seen.all():
            zero_shot = softmax(zero_shot_logits(rows, self.text, self.scale))[:, ~self.seen]
            p[:, self.seen] *= 1 - zero_shot.sum(axis=1, keepdims=True)
            p[:, ~self.seen] = zero_shot * np.float32(np.exp(self.offset))
        return p / p.sum(axis=1, keepdims=True)


def linear_form(logits: Logits, rows: np.ndarray) -> Form | None:
    """W (K, D) and b (K,) of logits that are linear on unit rows, up to what all classes have alike; None of others.
    They are compared on rows (N, D) and random ones."""
    width = rows.shape[1]
    axes = np.eye(width, dtype=np.float32)
    ends = logits(np.concatenate([axes, -axes])).astype(np.float64)
    weight = (ends[:width] - ends[width:]).T / 2
    bias = (ends[:width] + ends[width:]).mean(axis=0) / 2
    random = np.random.default_rng(0).standard_normal((PROBES, width))
    probes = unit_rows(np.concatenate([rows, random]))
    found, wanted = logits(probes), probes @ weight.T + bias
    # A shift of all classes alike changes no answer
    gap = (found - found.mean(axis=1, keepdims=True)) - (wanted - wanted.mean(axis=1, keepdims=True))
    return (weight, bias) if np.abs(gap).max() <= SAME * max(1.0, np.abs(found).max()) else None


def linear_forms(heads: dict[str, Logits], task: Task) -> dict[str, Form]:
    """The heads, by name, whose logits are linear in the row among the classes with shots: {name: (W, b)}."""
    columns = _answered(task)
    rows = np.concatenate([task.features, task.text])

    def of_seen(logits: Logits) -> Logits:
        return lambda x: logits(x)[:, columns]

    found = {name: linear_form(of_seen(logits), rows) for name, logits in heads.items()}
    return {name: form for name, form in found.items() if form is not None}


def pooled(forms: dict[str, Form], ensemble: Ensemble, task: Task) -> Linear:
    """One classifier of the heads that `ensemble` was fitted on."""
    pool, columns = ensemble.pool_, _answered(task)
    factors = [weight * scale for weight, scale in zip(pool.weights, pool.scale)]
    parts = [forms[name] for name in ensemble.names_]
    inner = sum(factor * w for factor, (w, _) in zip(factors, parts))
    inner_bias = sum(factor * b for factor, (_, b) in zip(factors, parts)) + pool.bias
    weight, bias = np.zeros(task.text.shape, np.float32), np.zeros(task.num_classes, np.float32)
    # What all classes have alike changes no answer: without it float32 keeps more digits
    weight[columns], bias[columns] = inner - inner.mean(axis=0), inner_bias - inner_bias.mean()
    return Linear(weight, bias, columns, task.text, float(task.scale), ensemble.offset_)


def _answered(task: Task) -> np.ndarray:
    """The classes that W answers for, (K,) bool: those with shots, or all where none has one."""
    return task.seen if task.seen.any() else ~task.seen
