"""The loop that every method trains by, its optimisers and learning rates.

Optimisers are PyTorch's, with its order of operations; rates, one a step, those of the authors' codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.adamw import Adam
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import log_softmax_var
from jclip_fewshot.console import progress

Arrays = dict[str, np.ndarray]
Vars = dict[str, "jt.Var"]
COLLECT_EVERY = 16  # steps; Jittor's memory grows otherwise


class SGD:
    """With momentum, weight decay in the gradient: v ← μ v + (g + λ p), p ← p − lr v; lr_factors: by name, else 1."""

    def __init__(self, momentum: float = 0.9, weight_decay: float = 0.0,
                 lr_factors: Mapping[str, float] = MappingProxyType({})) -> None:
        self.momentum, self.weight_decay, self.lr_factors = momentum, weight_decay, lr_factors
        self.velocity: Vars = {}

    def step(self, values: Vars, gradients: Vars, lr: float) -> Vars:
        for name, value in values.items():
            gradient = gradients[name] + self.weight_decay * value if self.weight_decay else gradients[name]
            past = self.velocity.get(name)
            self.velocity[name] = (gradient if past is None else self.momentum * past + gradient).detach()
        return {name: (value - lr * self.lr_factors.get(name, 1.0) * self.velocity[name]).detach()
                for name, value in values.items()}

    def state(self) -> list[jt.Var]:
        return list(self.velocity.values())


def cosine(lr: float, steps: int, least: float = 0.0) -> list[float]:
    """least + (lr − least) ½ (1 + cos(π t / steps)), t = 0 … steps − 1."""
    return (least + (lr - least) * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / max(steps, 1)))).tolist()


def cosine_by_epoch(lr: float, epochs: int, steps: int) -> list[float]:
    """Dassl's: epoch 1 at 1e-5, then epoch e ≥ 2 at lr ½ (1 + cos(π (e − 2) / epochs)); `steps` an epoch."""
    return np.repeat([1e-5, *cosine(lr, epochs)[:epochs - 1]], steps).tolist()


def batches(order: np.ndarray, batch: int) -> list[np.ndarray]:
    """The rows of every step: order (epochs, n), an epoch a row, in batches; a smaller last one is dropped."""
    size = order.shape[1] - order.shape[1] % batch if order.shape[1] >= batch else order.shape[1]
    return [row[i:i + batch] for row in order for i in range(0, size, batch)]


def uniform(rng: np.random.Generator, shape: Sequence[int], inputs: int) -> np.ndarray:
    """A layer's first values, within 1/√inputs, as PyTorch and Jittor start a linear layer."""
    return (rng.uniform(-1, 1, shape) / np.sqrt(inputs)).astype(np.float32)


def as_vars(arrays: Arrays) -> Vars:
    return {name: jt.array(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}


def descend(start: Arrays, loss: Callable[[Vars, int], jt.Var], optimiser: SGD | Adam, rates: Sequence[float],
            watch: Callable[[int, jt.Var, Vars, Vars], bool | None] | None = None, stage: str = "") -> Arrays:
    """Train, one step a rate, and return the parameters after the last; those given are not changed.

    loss: (parameters, step) -> a scalar. watch sees step, loss, gradients, and parameters after the step; True ends
    the training. stage: what a progress bar says; empty: no bar. Methods' own functions take both as `told`.
    """
    values = as_vars(start)
    steps: Iterable = progress(range(len(rates)), stage=stage, unit="steps") if stage else range(len(rates))
    for step in steps:
        objective = loss(values, step)
        gradients = dict(zip(values, jt.grad(objective, list(values.values()))))
        values = optimiser.step(values, gradients, float(rates[step]))
        jt.sync(list(values.values()) + optimiser.state())
        if watch is not None and watch(step, objective, gradients, values):
            break
        if (step + 1) % COLLECT_EVERY == 0:
            jt.sync_all()
            jt.gc()
    result = {name: value.numpy() for name, value in values.items()}
    jt.sync_all()
    jt.gc()
    return result


def mean_cross_entropy(logits: jt.Var, labels: np.ndarray, smoothing: float = 0.0) -> jt.Var:
    """Mean −Σ_k q_k log softmax(logits)_k over the rows of (B, K) logits, in nats; q: the label, smoothed."""
    loss = cross_entropy(logits, jt.array(np.asarray(labels, np.int32)))
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing / float(np.prod(logits.shape)) * log_softmax_var(logits).sum()
