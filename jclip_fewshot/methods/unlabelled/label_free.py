"""Members of the ensemble that learn from class names and unlabelled images: no label takes part.

    upl          CoOp on the images of each class that zero-shot is most confident about: text rows (upl.py)
    lafter_text  LaFTer's first stage: a classifier trained on the sentences (lafter.py)
    clip_pr      a head on pseudo-labels with a prior on the classes' shares (clip_pr.py)

All three answer from finished rows, so that a run keeps a matrix or three. They are heads that need no shots: what
they learned cannot know a shot's label, so a held-out shot is answered as any other image.

Letters: N unlabelled images, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jclip_fewshot.backend.numerics import matmul, unit_rows
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.methods.rows.base import COMMON_STATE, Head
from jclip_fewshot.methods.towers import coop
from jclip_fewshot.methods.unlabelled import clip_pr, lafter, upl
from jclip_fewshot.task import Task


class LabelFree(Head):
    """Learned arrays in `learned_`; `fit` takes the task that it will be asked with, and reads no label of it."""

    needs_shots = False

    def __init__(self, learned: dict[str, np.ndarray] | None = None) -> None:
        self.learned_ = learned or {}

    def fit(self, task: Task) -> LabelFree:
        self.task_, self.scale_ = task, np.float32(task.scale)
        self.text_, self.domains_, self.seen_ = task.text, task.domains, task.seen
        self.settings_, self.history_ = {"chosen_by": "fixed: learned without labels"}, []
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K) on CLIP's scale, classes with and without shots alike."""
        return self._logits(unit_rows(features))

    def held_out_logits(self) -> np.ndarray:
        """(S, K): no label of a shot has been seen."""
        return self.logits(self.task_.features)

    def state(self) -> dict[str, np.ndarray]:
        return {**{name: np.asarray(getattr(self, name)) for name in COMMON_STATE},
                **{f"learned.{name}": value for name, value in self.learned_.items()}}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> LabelFree:
        head = cls({name[len("learned."):]: np.asarray(value) for name, value in state.items()
                    if name.startswith("learned.")})
        for name in COMMON_STATE:
            setattr(head, name, np.asarray(state[name]))
        return head


class Upl(LabelFree):
    name = "upl"

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.scale_ * features, self.learned_["text"].T)


class LafterText(LabelFree):
    name = "lafter_text"

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.learned_["spread"] * features, self.learned_["adapter"].T)


class ClipPr(LabelFree):
    name = "clip_pr"

    def _logits(self, features: np.ndarray) -> np.ndarray:
        head = {name: value for name, value in self.learned_.items() if name != "spread"}
        return self.learned_.get("spread", np.float32(1)) * clip_pr.answer(head, features)


MEMBERS: dict[str, type[LabelFree]] = {member.name: member for member in (Upl, LafterText, ClipPr)}


def prompts_for(encoder: ClipEncoder, names: Sequence[str], context: int) -> coop.Prompts:
    """CoOp's sentences of K class names as people call them: "X X X X name ."."""
    holders = " ".join([coop.PLACE_HOLDER] * context)
    return coop.Prompts(encoder.model, encoder.tokens([f"{holders} {name} ." for name in names]), context)


def learn(names: Sequence[str], encoder: ClipEncoder, class_names: Sequence[str], rows: np.ndarray, task: Task,
          sentence_rows: list[np.ndarray], seed: int = 0) -> list[LabelFree]:
    """The members of those names, from unlabelled unit rows (N, D).

    class_names (K,): what people call the classes. sentence_rows: each class's sentences as unit rows.
    """
    zero_shot, found = task.zero_shot(rows), []
    for name in names:
        if name == Upl.name:
            settings = upl.Settings()
            width = encoder.model.token_embedding.weight.shape[1]
            text = upl.learn(prompts_for(encoder, class_names, settings.context), rows, zero_shot, task.scale, width,
                             settings, seed)
            found.append(Upl({"text": text}))
        elif name == LafterText.name:
            labels = np.repeat(np.arange(len(sentence_rows)), [len(one) for one in sentence_rows])
            adapter = lafter.text_classifier(np.concatenate(sentence_rows), labels, task.num_classes, seed=seed)
            found.append(LafterText({"adapter": adapter, "spread": _spread(matmul(rows, adapter.T), zero_shot)}))
        elif name == ClipPr.name:
            learned = clip_pr.learn(rows, zero_shot, seed=seed)
            found.append(ClipPr({**learned, "spread": _spread(clip_pr.answer(learned, rows), zero_shot)}))
        else:
            raise ValueError(f"no label-free member {name!r}")
    return [member.fit(task) for member in found]


def _spread(logits: np.ndarray, zero_shot: np.ndarray) -> np.float32:
    """What brings logits of no scale of their own, (N, K), to CLIP's: their spread over classes to zero-shot's."""
    return np.float32(zero_shot.std(axis=1).mean() / max(logits.std(axis=1).mean(), 1e-12))
