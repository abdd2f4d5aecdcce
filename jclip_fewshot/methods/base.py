"""The one contract of all methods: learn from a task, answer images with logits on CLIP's scale, 100 x cosine.

A class says as attributes what it is and needs; flags, help, saving, report and evaluation follow from these.

Letters, in all methods: N queries, S shots, K classes, D feature width, B rows of a step; of a tower V views of an
image, R pixels a side, L tokens, W width. Feature rows are unit length, float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jclip_fewshot.backend.numerics import log_softmax, log_sum_exp, unit_rows
from jclip_fewshot.console import warn
from jclip_fewshot.task import Task, zero_shot_logits

COMMON_STATE = ("text_", "domains_", "seen_", "scale_")  # what every method keeps
DOMAIN_SHOTS = 40  # held-out shots under which a domain takes what is chosen on all shots
TEXT, SHOTS, TOWER, UNLABELLED = "text", "shots", "tower", "unlabelled"
ALWAYS, ON_GPU, NEVER = "always", "on a GPU", "never"  # when `auto` takes a method


@dataclass(frozen=True)
class Unlabelled:
    """M images without labels, and what is said of the classes."""

    rows: np.ndarray  # (M, D) unit rows
    sentences: Sequence[np.ndarray] = ()  # of each class, the unit rows of its sentences
    names: Sequence[str] = ()  # (K,) what people call the classes
    encoder: Any = None  # the CLIP of these rows; None where they came from a file
    pixels: Callable[[], np.ndarray] | None = None  # -> (M, R, R, 3) uint8, as the encoder sees the images
    beside: int = 0  # so many of the first rows are no test images


@dataclass(frozen=True)
class Given:
    """What the fits of methods are handed that need more than the task: its text and shots."""

    tower: Any = None  # features/activations.py: what the tower makes of the shots, at any depth
    unlabelled: Unlabelled | None = None

    @property
    def images(self) -> int:
        """How many images there are without labels."""
        return len(self.unlabelled.rows) if self.unlabelled is not None else 0

    def for_method(self, method: type[Method]) -> dict[str, Any]:
        """The keyword arguments of a method's `fit`."""
        return {need: getattr(self, need) for need in (TOWER, UNLABELLED) if need in method.needs}


@dataclass(frozen=True)
class Queries:
    """N images to answer."""

    rows: np.ndarray  # (N, D) of the frozen encoder
    under: Any = None  # where the images are at hand: a function of (encoder -> another), to the rows by that other


class Method:
    """Features in, logits out. A subclass names itself and fills in `_fit` and `_logits`.

    Settings are attributes of the class, and arguments of the constructor. After `fit`, `settings_` (JSON-able) says
    what was chosen and its held-out score, `history_` holds one dict an epoch where something trains.

    Without any shot a method answers zero-shot; where a class has none, `_logits` may be anything finite
    (`keep_unseen`). A held-out shot is answered by `fold_logits_` (S, K), where `_fit` leaves it, else by refitting.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # for a person
    paper: ClassVar[str] = ""  # authors and year
    needs: ClassVar[frozenset[str]] = frozenset({TEXT, SHOTS})
    trains: ClassVar[bool] = False  # by gradient descent
    default: ClassVar[str] = ALWAYS  # NEVER: it adds nothing to the others, and its row in docs/methods.md says why
    checks: ClassVar[bool] = False  # whether the refinement is checked with it, refitted on each fold (`refit`)
    asks_images: ClassVar[bool] = False  # its answers need the images once more, by an encoder of its own
    ignores_text: ClassVar[bool] = False  # answers by the shots alone
    least_classes: ClassVar[int] = 1  # with a shot, for a fit to have anything to learn
    state_names: ClassVar[tuple[str, ...]] = ()  # the attributes, arrays, that `_logits` reads beside COMMON_STATE
    state_dicts: ClassVar[tuple[str, ...]] = ()  # those that are {name: array}
    seed = 0
    text_: np.ndarray
    domains_: np.ndarray
    seen_: np.ndarray
    scale_: Any
    evidence_from_ = 0  # columns before it are for zero-shot logits alone (Task.evidence_from)
    fold_logits_: np.ndarray | None = None
    _held_out: np.ndarray | None = None

    def __init__(self, **settings: Any) -> None:
        for name, value in settings.items():
            if name.startswith("_") or not hasattr(type(self), name) or callable(getattr(type(self), name)):
                raise TypeError(f"{self.name} has no setting {name!r}")
            setattr(self, name, value)

    def flops(self, task: Task, given: Given) -> float:
        """Return the floating-point operations of its fits, where they matter beside encoding."""
        return 0.0

    def answer(self, queries: Queries) -> np.ndarray:
        return self.logits(queries.rows)

    def report_arrays(self, task: Task) -> dict[str, np.ndarray]:
        """Return what the report draws of this method."""
        return {}

    def fit(self, task: Task, **given: Any) -> Method:
        """Choose the settings on the shots, learn from all of them, return self. given: what `needs` names."""
        self._begin(task)
        if task.seen.sum() >= self.least_classes:
            self._fit(task, **given)
        return self

    def _begin(self, task: Task) -> None:
        self.task_ = task
        self.text_, self.domains_, self.seen_ = task.text, task.domains, task.seen
        self.scale_, self.evidence_from_ = np.float32(task.scale), task.evidence_from
        self.settings_: dict[str, Any] = {}
        self.history_: list[dict[str, Any]] = []
        self.fold_logits_ = self._held_out = None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K) float32 on CLIP's scale."""
        if not hasattr(self, "seen_"):
            raise ValueError(f"{self.name}: call fit before logits")
        features = unit_rows(features)
        if features.shape[1] != self.text_.shape[1]:
            raise ValueError(f"{self.name}: learned from rows of width {self.text_.shape[1]}, "
                             f"asked about rows of width {features.shape[1]}")
        if self.seen_.all() and len(features):
            return np.asarray(self._logits(features), np.float32)
        zero_shot = zero_shot_logits(features, self.text_, self.scale_)
        if not self.seen_.any() or len(features) == 0:
            return zero_shot
        return keep_unseen(self._logits(features), zero_shot, self.seen_)

    def held_out_logits(self) -> np.ndarray:
        """Return (S, K), read-only: each shot's logits from a fit that did not see it, but for a few chosen scalars.

        A shot that has no other of its class gets its zero-shot logits (Task.folds).
        """
        if not hasattr(self, "task_"):
            raise ValueError(f"{self.name}: held-out logits need the shots: call fit")
        if self._held_out is None:
            task, answers = self.task_, self.fold_logits_
            self._held_out = task.zero_shot(task.features)
            for fold in task.folds():
                rows = fold.left_out
                own = copy.copy(self).fit(fold.task).logits(task.features[rows]) if answers is None else answers[rows]
                self._held_out[rows] = keep_unseen(own, self._held_out[rows], self.seen_)
            self.fold_logits_ = None
            self._held_out.flags.writeable = False
        return self._held_out

    def refit(self, task: Task) -> Method:
        """Return the method with these settings and, where it learns from shots, what other ones say (`checks`)."""
        other = copy.copy(self)
        other.text_, other.domains_, other.seen_ = task.text, task.domains, task.seen
        return other

    def fitted_again(self, task: Task, seed: int) -> Method:
        """Return a method read from a file as it was before: able to answer the shots of `task` held out."""
        return self if hasattr(self, "task_") else type(self)(seed=seed).fit(task)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `logits` needs."""
        names = [name for name in self.state_names if hasattr(self, name)]  # none without shots
        names += ["evidence_from_"] if self.evidence_from_ else []
        arrays = {name: np.asarray(getattr(self, name)) for name in (*COMMON_STATE, *names)}
        for name in self.state_dicts:
            arrays.update({f"{name}/{key}": np.asarray(value) for key, value in getattr(self, name, {}).items()})
        return arrays

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Method:
        """Return the method that `state` was taken of, able to answer. Raise KeyError if an array is missing."""
        method = cls()
        for name in (*COMMON_STATE, *(cls.state_names if np.any(state["seen_"]) else ())):
            setattr(method, name, np.asarray(state[name]))
        for name in cls.state_dicts:
            setattr(method, name, {key[len(name) + 1:]: np.asarray(value) for key, value in state.items()
                                   if key.startswith(f"{name}/")})
        method.evidence_from_ = int(state.get("evidence_from_", 0))
        return method

    def evidence_rows(self, features: np.ndarray) -> np.ndarray:
        """The columns that evidence is read from, as unit rows."""
        return unit_rows(features[:, self.evidence_from_:]) if self.evidence_from_ else features

    def _record_converged(self, converged: bool) -> None:
        """Keep it among the settings, and say where a search stopped before its end."""
        self.settings_["converged"] = bool(converged)
        if not converged:
            warn(f"{self.name}: the search did not converge; its answers are near the best fit, not the best")

    def _fit(self, task: Task, *_: Any, **given: Any) -> None:
        """Learn from shots of at least `least_classes` classes."""
        raise NotImplementedError

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) unit rows, N > 0 -> (N, K); classes without shots: anything finite."""
        raise NotImplementedError


def keep_unseen(logits: np.ndarray, zero_shot: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """`logits` (N, K) with the classes without shots (`seen` (K,) False) put back where zero-shot has them.

    These get their zero-shot logits plus, for each row, what the method raised the seen ones by (difference of
    log-sum-exp): together they keep the share of probability that zero-shot gave them. Both arrays are on one scale.
    """
    logits = np.array(logits, np.float32)
    if seen.all():
        return logits
    if not seen.any():
        return np.array(zero_shot, np.float32)
    raised = log_sum_exp(logits[:, seen]) - log_sum_exp(zero_shot[:, seen])  # (N, 1)
    logits[:, ~seen] = zero_shot[:, ~seen] + raised
    return logits


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats of (S, K) logits as they stand."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label, in percent."""
    return float(100 * (logits.argmax(axis=1) == labels).mean())


def held_out_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return what `settings_` says of the answers (S, K) to held-out shots."""
    return {"held_out_loss": log_loss(logits, labels), "held_out_top1": top1(logits, labels)}
