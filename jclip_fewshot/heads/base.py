"""What every head shares: the shots it learns from, its shape, and the folds its settings are chosen on.

Letters: N queries, S shots, K classes, D feature width. Feature rows are unit length, float32.
`logits` are on CLIP's scale, 100 x cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from jclip_fewshot.runtime import jt

CLIP_SCALE = 100.0  # exp(logit_scale) of every model that OpenAI released


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """`rows` (n, D) of any float type as unit rows in float32; a zero row stays zero."""
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"feature rows must have two axes, not shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


@dataclass(frozen=True)
class Shots:
    """What a head may learn from. Rows may come in float16: they are upcast and normalised again.

    A class may have no shot, and counts may differ; S may be 0.
    """

    features: np.ndarray  # (S, D) float32 unit rows
    labels: np.ndarray  # (S,) int64 in 0..K-1
    text: np.ndarray  # (K, D) float32 unit rows
    domains: Optional[np.ndarray] = None  # (K,) int64, each class's domain; None: one domain

    def __post_init__(self):
        text = unit_rows(self.text)
        features = np.asarray(self.features, np.float32)
        features = unit_rows(features.reshape(-1, text.shape[1]) if features.size == 0 else features)
        labels = np.asarray(self.labels, np.int64).reshape(-1)
        classes = len(text)
        domains = np.zeros(classes, np.int64) if self.domains is None else np.asarray(self.domains, np.int64)
        if features.shape != (len(labels), text.shape[1]):
            raise ValueError(f"{features.shape} shot features do not fit {len(labels)} labels "
                             f"and text rows of width {text.shape[1]}")
        if domains.shape != (classes,):
            raise ValueError(f"{classes} text rows need as many domains, not {domains.shape}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"shot labels must lie in 0..{classes - 1}, not {labels.min()}..{labels.max()}")
        if not (np.isfinite(features).all() and np.isfinite(text).all()):
            raise ValueError("a feature row holds a value that is not finite")
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

    @property
    def one_hot(self) -> np.ndarray:
        """L (S, K) float32."""
        return np.eye(self.num_classes, dtype=np.float32)[self.labels]

    def take(self, rows: np.ndarray) -> "Shots":
        """The same classes with only those shots: indices or a mask over S."""
        return Shots(self.features[rows], self.labels[rows], self.text, self.domains)


class Head:
    """Features in, logits out. Subclasses name themselves and fill in the three underscored methods.

    After `fit`, `settings_` (JSON-able) says what was chosen and its cross-validated score, `history_` holds
    one dict an epoch for trained heads, and the attributes named in `state_names` are all that `_logits`
    reads beside `text_`, `domains_` and `seen_`, which every head has.

    What holds for all: without any shot a head answers zero-shot; classes without shots keep the share of
    probability that zero-shot gives them (`keep_unseen`), so `_logits` may put anything finite there.
    """

    name = ""
    seeded = False  # whether the constructor takes `seed`
    state_names: Tuple[str, ...] = ()

    def fit(self, shots: Shots) -> "Head":
        """Chooses the settings on the shots, learns from all of them, returns self."""
        self.shots_ = shots
        self.text_, self.domains_, self.seen_ = shots.text, shots.domains, shots.seen
        self.settings_: dict = {}
        self.history_: List[dict] = []
        self._held_out: Optional[np.ndarray] = None
        if len(shots):
            self._fit(shots)
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K) float32 on CLIP's scale."""
        if not hasattr(self, "seen_"):
            raise ValueError(f"{self.name}: call fit before logits")
        features = unit_rows(features)
        if features.shape[1] != self.text_.shape[1]:
            raise ValueError(f"{self.name}: learned from rows of width {self.text_.shape[1]}, "
                             f"asked about rows of width {features.shape[1]}")
        zero_shot = zero_shot_logits(features, self.text_)
        if not self.seen_.any() or len(features) == 0:
            return zero_shot
        return keep_unseen(self._logits(features), zero_shot, self.seen_)

    def held_out_logits(self) -> np.ndarray:
        """(S, K): each shot's logits from a fit that did not see it; only the few chosen scalars saw all
        shots.

        Fold j leaves out the j-th shot of every class. A shot that has no other of its class gets its
        zero-shot logits.
        """
        if not hasattr(self, "shots_"):
            raise ValueError(f"{self.name}: held-out logits need the shots: call fit")
        if self._held_out is None:
            shots = self.shots_
            self._held_out = zero_shot_logits(shots.features, shots.text)
            if (shots.counts > 1).any():
                held_out = zero_shot_where_alone(self._held_out_logits(shots), shots)
                self._held_out = keep_unseen(held_out, self._held_out, self.seen_)
        return self._held_out.copy()

    def state(self) -> Dict[str, np.ndarray]:
        """Everything that `logits` needs, as arrays."""
        names = [name for name in self.state_names if hasattr(self, name)]  # none without shots
        return {name: np.asarray(getattr(self, name)) for name in ("text_", "domains_", "seen_", *names)}

    @classmethod
    def from_state(cls, state: Dict[str, np.ndarray]) -> "Head":
        """The inverse of `state`: a head that answers `logits`."""
        names = ("text_", "domains_", "seen_")
        if "seen_" in state and np.any(state["seen_"]):
            names += cls.state_names
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"{cls.name}: the saved state lacks {', '.join(missing)}")
        head = cls()
        for name in names:
            setattr(head, name, np.asarray(state[name]))
        return head

    def _fit(self, shots: Shots) -> None:
        """Learns from at least one shot."""
        raise NotImplementedError

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) unit rows, N > 0 -> (N, K); classes without shots: anything finite."""
        raise NotImplementedError

    def _held_out_logits(self, shots: Shots) -> np.ndarray:
        """(S, K); at least one class has two shots."""
        raise NotImplementedError


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, 1), stable."""
    top = logits.max(axis=1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def keep_unseen(logits: np.ndarray, zero_shot: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """`logits` (N, K) with the classes without shots (`seen` (K,) False) put back where zero-shot has them.

    What a head learned raises the seen classes and drowns the unseen. Here the seen classes keep their
    logits, the unseen their zero-shot logits plus, for each row, the amount by which the head raised the seen
    ones together (difference of log-sum-exp): as a group they keep exactly the share of probability that
    zero-shot gave them, and their own order. Both arrays must be on one scale. Nothing changes where all are
    seen.
    """
    logits = np.array(logits, np.float32)
    if seen.all():
        return logits
    if not seen.any():
        return np.array(zero_shot, np.float32)
    raised = log_sum_exp(logits[:, seen]) - log_sum_exp(zero_shot[:, seen])  # (N, 1)
    logits[:, ~seen] = zero_shot[:, ~seen] + raised
    return logits


def class_folds(shots: Shots, groups: int = 5, seed: int = 0) -> Iterator[Tuple[Shots, np.ndarray]]:
    """Leaves whole classes out: (the other classes' shots, rows of the classes left out), `groups` times."""
    group = np.full(shots.num_classes, -1)
    seen = np.flatnonzero(shots.seen)
    group[np.random.default_rng(seed).permutation(seen)] = np.arange(len(seen)) % groups
    for fold in range(min(groups, len(seen))):
        left_out = group[shots.labels] == fold
        yield shots.take(~left_out), np.flatnonzero(left_out)


def unseen_bias(make_head: Callable[[], "Head"], shots: Shots, groups: int = 5, seed: int = 0) -> dict:
    """What a head does to classes without shots, measured on the shots by leaving whole classes out.

    Top-1 in percent among all K classes: of the shots whose class was hidden (`unseen`: zero-shot, as the
    head's formula has it, as `logits` gives it) and of the others, held out shot by shot (`seen`: zero-shot,
    head).
    """
    names = ("unseen_zero_shot", "unseen_formula", "unseen_head", "seen_zero_shot", "seen_head")
    hits: Dict[str, list] = {name: [] for name in names}
    for kept, rows in class_folds(shots, groups, seed):
        head, features, labels = make_head().fit(kept), shots.features[rows], shots.labels[rows]
        if len(kept) == 0:
            continue
        for name, logits, truth in (
                ("unseen_zero_shot", zero_shot_logits(features, shots.text), labels),
                ("unseen_formula", head._logits(features), labels),
                ("unseen_head", head.logits(features), labels),
                ("seen_zero_shot", zero_shot_logits(kept.features, kept.text), kept.labels),
                ("seen_head", head.held_out_logits(), kept.labels)):
            hits[name].append(logits.argmax(axis=1) == truth)
    return {name: float(100 * np.concatenate(found).mean()) for name, found in hits.items() if found}


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (n, m) @ b (m, k) in Jittor, float32: on the GPU where there is one."""
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    if 0 in a.shape or 0 in b.shape:  # Jittor has no empty arrays
        return np.zeros((len(a), b.shape[1]), np.float32)
    return jt.matmul(jt.array(a), jt.array(b)).numpy()


def zero_shot_logits(features: np.ndarray, text: np.ndarray) -> np.ndarray:
    """100 x tᵀ: (N, D), (K, D) -> (N, K). Radford et al. 2021."""
    return matmul(CLIP_SCALE * features, text.T)


def fold_of_shots(labels: np.ndarray, max_folds: Optional[int] = None) -> np.ndarray:
    """The fold that leaves each shot out, (S,): its place among its class's shots, modulo `max_folds`."""
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(labels[order])) + 1] if len(labels) else np.zeros(0, int)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return place if max_folds is None else place % max_folds


def folds(labels: np.ndarray, max_folds: Optional[int] = None) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Leave-one-shot-out: (rows kept, rows left out) of each fold; none where no class has two shots."""
    place = fold_of_shots(labels, max_folds)
    if len(place) == 0 or place.max() == 0:
        return
    for fold in range(place.max() + 1):
        yield np.flatnonzero(place != fold), np.flatnonzero(place == fold)


def zero_shot_where_alone(logits: np.ndarray, shots: Shots) -> np.ndarray:
    """`logits` (S, K) of the shots, with zero-shot rows for shots that are the only one of their class."""
    alone = shots.counts[shots.labels] < 2
    logits = np.array(logits, np.float32)
    if alone.any():
        logits[alone] = zero_shot_logits(shots.features[alone], shots.text)
    return logits


def class_sums(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Sum of each class's rows in float64: (S, D), (S,) -> (K, D); zero where a class has none."""
    one_hot = (np.arange(num_classes)[:, None] == labels).astype(float)
    return one_hot @ rows


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, stable; keeps the float type."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats of (S, K) logits as they stand."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label, in percent."""
    return float(100 * (logits.argmax(axis=1) == labels).mean())
