"""What the methods share that learn from class names and images without labels.

Those here answer from finished rows, so that a run keeps a matrix or three. What they learned cannot know a shot's
label, so a held-out shot is answered as any other image.

Letters: N unlabelled images, K classes, D feature width.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods.base import COMMON_STATE, NEVER, TEXT, UNLABELLED, Method, Unlabelled
from jclip_fewshot.task import Task


class LabelFree(Method):
    """A subclass fills in `learn` and `_logits`; what it learned is in `learned_`, {name: array}."""

    needs = frozenset({TEXT, UNLABELLED})
    default = NEVER

    @classmethod
    def make(cls, seed: int) -> LabelFree:
        return cls(seed)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def learn(self, task: Task, unlabelled: Unlabelled) -> dict[str, np.ndarray]:
        """Return what `_logits` reads; no label of the task is looked at."""
        raise NotImplementedError

    def fit(self, task: Task, unlabelled: Unlabelled) -> LabelFree:
        """Learn from the unlabelled images; the task's shots are only answered."""
        self.task_, self.scale_ = task, np.float32(task.scale)
        self.text_, self.domains_, self.seen_ = task.text, task.domains, task.seen
        self.settings_, self.history_ = {"chosen_by": "fixed: learned without labels"}, []
        self.learned_ = self.learn(task, unlabelled)
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return (N, K) on CLIP's scale of rows (N, D), classes with and without shots alike."""
        return self._logits(unit_rows(features))

    def held_out_logits(self) -> np.ndarray:
        """Return (S, K): no label of a shot has been seen."""
        return self.logits(self.task_.features)

    def fitted_again(self, task: Task, seed: int) -> LabelFree:
        """Return itself with the task: what it learned knows no label, and is kept."""
        self.task_ = task
        return self

    def state(self) -> dict[str, np.ndarray]:
        return {**{name: np.asarray(getattr(self, name)) for name in COMMON_STATE},
                **{f"learned.{name}": value for name, value in self.learned_.items()}}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> LabelFree:
        method = cls()
        method.learned_ = {name[len("learned."):]: np.asarray(value) for name, value in state.items()
                           if name.startswith("learned.")}
        for name in COMMON_STATE:
            setattr(method, name, np.asarray(state[name]))
        return method


def scale_to(logits: np.ndarray, zero_shot: np.ndarray) -> np.float32:
    """Return the factor that brings logits (N, K) of no scale of their own to the spread of zero-shot's (N, K)."""
    return np.float32(zero_shot.std(axis=1).mean() / max(logits.std(axis=1).mean(), 1e-12))
