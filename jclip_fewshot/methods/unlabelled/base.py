"""What the methods share that learn from class names and images without labels, or from names alone.

`LabelFree` answers from finished rows, so that a run keeps a matrix or three; `LabelFreeByImages` asks the model about
each image once more. What they learned cannot know a shot's label, so a held-out shot is answered as any other image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.encoders.clip_encoder import ClipEncoder, FunctionEncoder, homogeneous, logits_of
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods.base import NEVER, TEXT, TOWER, UNLABELLED, Method, Queries, Unlabelled
from jclip_fewshot.methods.towers.towers import CLIP
from jclip_fewshot.methods.training import Arrays, Vars, as_vars
from jclip_fewshot.task import Task


class LabelFree(Method):
    """A subclass fills in `learn` and `_logits`; what it learned is in `learned_`, {name: array}."""

    needs = frozenset({TEXT, UNLABELLED})
    default = NEVER
    least_classes = 0
    state_dicts = ("learned_",)

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        """Return what `_logits` reads; no label of the task is looked at."""
        raise NotImplementedError

    def _fit(self, task: Task, unlabelled: Any = None, tower: Any = None) -> None:
        self.settings_ = {"chosen_by": "fixed: learned without labels"}
        self.learned_ = self.learn(task, unlabelled)
        if len(task):  # no label of a shot has been seen
            self._held_out = self.answer(Queries(task.features, getattr(tower, "under", None)))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return (N, K) on CLIP's scale of rows (N, D), classes with and without shots alike."""
        return self._logits(unit_rows(features))

    def fitted_again(self, task: Task, seed: int) -> LabelFree:
        """Return itself with the task: what it learned knows no label, and is kept."""
        self.task_, self._held_out = task, self.logits(task.features)
        return self


class LabelFreeByImages(LabelFree):
    """A subclass fills in `learn` and `ask`."""

    needs = frozenset({TEXT, TOWER, UNLABELLED})
    asks_images = True

    def ask(self, model: CLIP, p: Vars, images: jt.Var) -> jt.Var:
        """Return logits (B, K) of images (B, 3, R, R) by the model; p: what was learned."""
        raise NotImplementedError

    def answer(self, queries: Queries) -> np.ndarray:
        return logits_of(queries.under(self.encoder))

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        """The encoder whose rows stand for this method's logits."""
        p = as_vars(self.learned_)
        said = b"\0".join(name.encode() + value.tobytes() for name, value in self.state().items())
        return FunctionEncoder(base, self.name, said, len(self.text_) + 1,
                               lambda images: homogeneous(self.ask(base.model, p, images)))


def pixels_of(unlabelled: Unlabelled, name: str) -> np.ndarray:
    """Return the unlabelled images (M, R, R, 3) uint8. Raise UserError, naming the method, if only rows are known."""
    if unlabelled.pixels is None:
        raise UserError(f"{name} looks at the images without labels themselves, and only their features are given")
    return unlabelled.pixels()


def scale_to(logits: np.ndarray, zero_shot: np.ndarray) -> np.ndarray:
    """Return the factor (1,) that brings logits (N, K) of no scale of their own to the spread of zero-shot's (N, K)."""
    return np.array([zero_shot.std(axis=1).mean() / max(logits.std(axis=1).mean(), 1e-12)], np.float32)


def tensors_of(p: dict[str, Any]) -> dict[str, Any]:
    """Those of the parameters that are the image tower's, by OpenAI's names."""
    return {name: value for name, value in p.items() if name.startswith("visual.")}
