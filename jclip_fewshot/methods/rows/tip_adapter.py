"""Tip-Adapter, training-free. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot
Classification", ECCV 2022 (https://arxiv.org/abs/2207.09519), equations 3 and 4.

    A = exp(-β (1 - x Fᵀ)),    logits = 100 x tᵀ + α A L

F: the shots' features, the cache's keys; L: their one-hot labels, its values. β: sharpness of the affinity.
α: weight of the cache. (The authors' code has the two letters swapped; here they are the paper's.)

Deviation: every class's affinity is averaged over its own shots and multiplied by the mean number of shots a class, so
that α means the same for k-1 and k shots, as leave-one-shot-out needs. With equal counts this is the paper's sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_rows
from jclip_fewshot.methods.base import SHOTS, top1
from jclip_fewshot.methods.rows.evidence import EvidenceMethod
from jclip_fewshot.task import Fold, Task, class_sums, fold_of_shots

# of the report's map: wider than what is searched
MAP_ALPHAS, MAP_BETAS = np.geomspace(0.1, 20, 24), np.geomspace(0.5, 16, 16)


def affinity(features: jt.Var, keys: jt.Var, beta: float | jt.Var) -> jt.Var:
    """A = exp(-β (1 - x Fᵀ)): (N, D), (S, D) -> (N, S). Equation 3."""
    return jt.exp(beta * (product(features, keys) - 1))


def cache_logits(features: np.ndarray, keys: np.ndarray, values: np.ndarray, beta: float) -> np.ndarray:
    """A L, what Tip-Adapter adds to zero-shot, before α: (N, D), (S, D), (S, K) -> (N, K)."""
    return jt.matmul(affinity(jt.array(features), jt.array(keys), float(beta)), jt.array(values)).numpy()


def capped_cache(features: np.ndarray, labels: np.ndarray, cap: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """At most `cap` keys a class: a class with more shots has them averaged in `cap` groups of like size."""
    if len(labels) == 0 or np.bincount(labels).max() <= cap:
        return features, labels
    place = fold_of_shots(labels, cap)
    group, which = np.unique(labels * cap + place, return_inverse=True)
    return unit_rows(class_sums(features, which, len(group))), group // cap


def class_mean_values(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """L (S, K) with each row divided by its class's count: A L is then a mean, not a sum."""
    values = np.zeros((len(labels), num_classes), np.float32)
    values[np.arange(len(labels)), labels] = 1 / np.bincount(labels, minlength=num_classes)[labels]
    return values


def keys_a_class(task: Task, cap: int) -> float:
    """Mean number of keys, over the classes with shots."""
    return np.minimum(task.counts, cap)[task.seen].mean()


class TipAdapter(EvidenceMethod):
    """α and β by leave-one-shot-out; with one shot a class the paper's. beta: fixed, no search. cap: keys a class."""

    name, title, paper = "tip_adapter", "Tip-Adapter", "Zhang et al. 2022"
    needs = frozenset({SHOTS})
    state_names: ClassVar[tuple[str, ...]] = ("keys_", "values_", "alpha_")
    fixed = {"beta": 5.5}
    searched: ClassVar[Sequence[float]] = (1.0, 2.0, 3.5, 5.5, 8.0)
    fixed_alpha: ClassVar[tuple[float, ...]] = (1.0,)  # on the published scale
    beta: float | None = None
    cap = 16

    def _scales(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        scale = np.full(len(self.evidence_names), keys_a_class(task, self.cap))
        return scale, scale * self.fixed_alpha

    def _cache(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        keys, labels = capped_cache(task.features, task.labels, self.cap)
        return keys, class_mean_values(labels, task.num_classes)

    def _read(self, features: np.ndarray, keys: np.ndarray, values: np.ndarray, betas: Sequence[float]
              ) -> Iterator[np.ndarray]:
        """Evidence (M, N, K) of a cache at each β."""
        return (cache_logits(features, keys, values, beta)[None] for beta in betas)

    def _evidence_of_fold(self, task: Task, fold: Fold, values: Sequence[float]) -> Iterator[np.ndarray]:
        return self._read(task.features[fold.left_out], *self._cache(fold.task), values)

    def _learn(self, task: Task) -> None:
        self.keys_, self.values_ = self._cache(task)

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        return next(self._read(features, self.keys_, self.values_, [float(self.chosen_["beta"])]))

    def report_arrays(self, task: Task) -> dict[str, np.ndarray]:
        """Return the leave-one-shot-out top-1, (A, B) percent, over the paper's α and β, if there is one."""
        usable = task.can_be_left_out
        if not usable.any() or type(self) is not TipAdapter:
            return {}
        found = np.zeros((len(MAP_ALPHAS), len(MAP_BETAS)))
        zero_shot = task.zero_shot(task.features)[usable]
        for b, beta in enumerate(MAP_BETAS):
            (_, evidence), = TipAdapter(beta=float(beta), cap=self.cap)._candidates(task)
            evidence = evidence[0, usable] * np.float32(keys_a_class(task, self.cap))
            found[:, b] = [top1(zero_shot + np.float32(alpha) * evidence, task.labels[usable]) for alpha in MAP_ALPHAS]
        arrays = {"alphas": MAP_ALPHAS, "betas": MAP_BETAS, "top1": found}
        return {f"alpha_beta/{key}": value.astype(np.float32) for key, value in arrays.items()}
