"""A few-shot task: support rows with labels, text rows, domains; and the folds that leave shots out.

Letters: N query rows, S shots, K classes, D feature width. `logits` are on CLIP's scale, 100 x cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jclip_fewshot.backend.numerics import matmul, unit_rows

CLIP_SCALE = 100.0  # exp(logit_scale) of every model that OpenAI released; an Encoder knows its own
MAX_FOLDS = 4  # with more shots than that a class, fold j leaves out every fourth


class EncoderSlice(NamedTuple):
    """One of several encoders whose rows stand side by side: its name, its columns, the scale of its cosines."""

    name: str
    width: int
    has_text: bool = True
    scale: float = CLIP_SCALE


@dataclass(frozen=True)
class Task:
    """What a method may learn from; rows are upcast and normalised again. A class may have no shot, and S may be 0.

    With several encoders a row is theirs side by side (`joined`), and `parts` names them; the first one has text. Text
    columns of an encoder without text are zero. Zero-shot logits are then the mean of the encoders'.
    """

    features: np.ndarray  # (S, D) float32 unit rows
    labels: np.ndarray  # (S,) int64 in 0..K-1
    text: np.ndarray  # (K, D) float32 unit rows
    domains: np.ndarray = None  # type: ignore[assignment]  # (K,) int64, each class's domain; given as None: one domain
    scale: float = CLIP_SCALE  # of the cosines in zero-shot logits: the encoder's
    parts: tuple[EncoderSlice, ...] = ()  # of several encoders; empty for one
    evidence_from: int = 0  # columns before it are for zero-shot logits alone: see `of`

    def __post_init__(self) -> None:
        text = unit_rows(self.text)
        classes, width = text.shape
        features = unit_rows(self.features if np.size(self.features) else np.zeros((0, width)))
        labels = np.asarray(self.labels, np.int64).reshape(-1)
        domains = np.zeros(classes, np.int64) if self.domains is None else np.asarray(self.domains, np.int64)
        if features.shape != (len(labels), width):
            raise ValueError(f"{features.shape} shot features do not fit {len(labels)} labels and text rows of width "
                             f"{width}")
        if domains.shape != (classes,):
            raise ValueError(f"{classes} text rows need as many domains, not {domains.shape}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"shot labels must lie in 0..{classes - 1}, not {labels.min()}..{labels.max()}")
        if not (np.isfinite(features).all() and np.isfinite(text).all()):
            raise ValueError("a feature row holds a value that is not finite")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"the scale of the cosines must be a positive number, not {self.scale}")
        if self.parts and sum(part.width for part in self.parts) != width:
            raise ValueError(f"encoders of the widths {[part.width for part in self.parts]} do not fit rows of width "
                             f"{width}")
        for name, value in (("features", features), ("labels", labels), ("text", text), ("domains", domains)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.text)

    @property
    def counts(self) -> np.ndarray:
        """Shots of each class, (K,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def seen(self) -> np.ndarray:
        """Which classes have a shot, (K,) bool."""
        return self.counts > 0

    def seen_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes with a shot, which alone take part in a training, and each shot's place among them."""
        seen = np.flatnonzero(self.seen)
        return seen, np.searchsorted(seen, self.labels)

    @property
    def one_hot(self) -> np.ndarray:
        """L (S, K) float32."""
        return np.eye(self.num_classes, dtype=np.float32)[self.labels]

    def take(self, rows: np.ndarray) -> Task:
        """The same classes with only those shots: indices or a mask over S."""
        return replace(self, features=self.features[rows], labels=self.labels[rows])

    def of(self, name: str) -> Task:
        """The task as one of several encoders sees it; "" is the whole.

        An encoder without text comes behind the first one's columns, whose logits it corrects: `evidence_from`.
        """
        if not name:
            return self
        part, first, columns = next(part for part in self.parts if part.name == name), self.parts[0], self.columns(name)
        scale, evidence_from = (part.scale, 0) if part.has_text else (first.scale * np.sqrt(2.0), first.width)
        return replace(self, features=self.features[:, columns], text=self.text[:, columns], scale=float(scale),
                       parts=(), evidence_from=evidence_from)

    def columns(self, name: str) -> slice | np.ndarray:
        """Which columns of a joined row `of(name)` reads."""
        if not name:
            return slice(None)
        number = [part.name for part in self.parts].index(name)
        begin, part = sum(part.width for part in self.parts[:number]), self.parts[number]
        own = np.arange(begin, begin + part.width)
        return own if part.has_text else np.concatenate([np.arange(self.parts[0].width), own])

    @property
    def evidence(self) -> Task:
        """What evidence is read from: the task without the columns, and the text, of another encoder."""
        if not self.evidence_from:
            return self
        text = np.zeros((self.num_classes, self.text.shape[1] - self.evidence_from), np.float32)
        return replace(self, features=self.features[:, self.evidence_from:], text=text, evidence_from=0)

    def zero_shot(self, features: np.ndarray) -> np.ndarray:
        return zero_shot_logits(features, self.text, self.scale)

    @property
    def can_be_left_out(self) -> np.ndarray:
        """Which shots are not the only one of their class, (S,) bool: those that can be left out."""
        return self.counts[self.labels] > 1

    def folds(self) -> list[Fold]:
        """Leave-one-shot-out: fold j leaves out the j-th shot of every class that has another one."""
        place = fold_of_shots(self.labels, MAX_FOLDS)
        masks = [(place == number) & self.can_be_left_out for number in range(place.max(initial=-1) + 1)]
        return [Fold(self.take(~out), np.flatnonzero(~out), np.flatnonzero(out)) for out in masks if out.any()]


@dataclass(frozen=True)
class Fold:
    """What a fit may see, and the shots it is judged on."""

    task: Task  # with the kept shots alone
    kept: np.ndarray  # their rows among all shots
    left_out: np.ndarray  # the other rows


def joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several encoders side by side, each of them as long as the others, together of unit length."""
    return unit_rows(np.concatenate([unit_rows(one) for one in rows], axis=1))


def joined_scale(parts: Sequence[EncoderSlice]) -> float:
    """Of the cosines of joined rows, so that zero-shot logits are the mean of those of the encoders with text.

    E encoders, T of them with text: a joined cosine is the sum of T cosines over the root of E T.
    """
    scales = [part.scale for part in parts if part.has_text]
    return float(np.mean(scales) * np.sqrt(len(parts) / len(scales)))


def zero_shot_logits(features: np.ndarray, text: np.ndarray, scale: float = CLIP_SCALE) -> np.ndarray:
    """scale x tᵀ: (N, D), (K, D) -> (N, K). Radford et al. 2021."""
    return matmul(np.float32(scale) * features, text.T)


def domain_indices(domains: Sequence[str]) -> np.ndarray:
    """Each class's domain as a number, in order of first appearance: (K,) int64."""
    order = list(dict.fromkeys(domains))
    return np.array([order.index(domain) for domain in domains], np.int64)


def fold_of_shots(labels: np.ndarray, max_folds: int | None = None) -> np.ndarray:
    """The fold that leaves each shot out, (S,): its place among its class's shots, modulo `max_folds`."""
    order = np.argsort(labels, kind="stable")
    grouped, place = np.asarray(labels)[order], np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.searchsorted(grouped, grouped)
    return place if max_folds is None else place % max_folds


def class_sums(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Sum of each class's rows in float64: (S, D), (S,) -> (K, D); zero where a class has none."""
    sums, order = np.zeros((num_classes, rows.shape[1])), np.argsort(labels, kind="stable")
    present, first = np.unique(np.asarray(labels)[order], return_index=True)
    if len(present):
        sums[present] = np.add.reduceat(rows[order].astype(np.float64), first)
    return sums


def class_means(task: Task) -> np.ndarray:
    """Mean shot of each class, not renormalised, (K, D) float64; zero where a class has no shot."""
    return class_sums(task.features, task.labels, task.num_classes) / np.maximum(task.counts, 1)[:, None]
