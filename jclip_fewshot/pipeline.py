"""Fit and answer, wired once: heads, ensemble and refinement. Both scripts, the classifier, validate and evaluate
call it.

Letters: N images, S shots, K classes, D feature width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from jclip_fewshot.combine.ensemble import OF, Ensemble
from jclip_fewshot.combine.refinement import Refinement, blocks, refine
from jclip_fewshot.combine.strength import HeldOutFold
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.methods.rows import DEFAULT, HEADS, TRAINING_FREE
from jclip_fewshot.methods.rows.base import Head
from jclip_fewshot.methods.rows.sus_x import keep_support
from jclip_fewshot.methods.towers.members import Member
from jclip_fewshot.methods.towers.plan import MEMBERS, Tuning
from jclip_fewshot.methods.unlabelled.label_free import MEMBERS as LABEL_FREE
from jclip_fewshot.storage.arrays import Field
from jclip_fewshot.task import Part, Task

# of the map that the report draws: wider than what Tip-Adapter searches
ALPHAS, BETAS = np.geomspace(0.1, 20, 24), np.geomspace(0.5, 16, 16)
# The refinement's check answers every image once more for each fold of the shots: by these alone, which refit in
# no time and stand 0.2 points under all fourteen
CHECK_HEADS = ("zero_shot", "gda", "proker", "text_profile")
LARGEST = 1e9  # of a number in a run's arrays; larger ones would overflow float32 in a product of three
TASK_ARRAYS = ("features", "labels", "text", "domains")
# what `state` must hold, for load_arrays; the heads' own arrays are checked by answering a few rows
STATE_SCHEMA = {
    "names": Field("text", "H"), "shots/text": Field("float", "K D", rows=True),
    "shots/features": Field("float", "S D", rows=True), "shots/labels": Field("whole", "S", low=0, below="K"),
    "shots/domains": Field("whole", "K", low=0, below="K"), "shots/scale": Field("float", ""),
    "held_out_probs": Field("float", "S K", low=0, below=1.01), "ensemble/seen": Field("flag", "K"),
    "ensemble/names": Field("text", "M"), "ensemble/offset": Field("float", ""),
    "parts/name": Field("text", "E", needed=False), "parts/width": Field("whole", "E", low=1, needed=False),
    "parts/has_text": Field("flag", "E", needed=False), "parts/scale": Field("float", "E", needed=False)}
HEADS_TOGETHER = "heads"  # the heads' ensemble as a member next to the tuned ones
OnFit = Callable[[str, float], None]  # told of each method as it is done: its name and the seconds of its fit
RowsUnder = Callable[[Member], np.ndarray]  # the rows (N, D) of the images in question by a member's tuned tower


def with_support(task: Task, rows: np.ndarray, labels: Sequence[int], unseen_only: bool = False
                 ) -> tuple[Task, np.ndarray]:
    """The task with support images (M, D) as further shots, and which of them stay, (M,) bool.

    One stays where zero-shot ranks its class among the first few (SuS-X); with `unseen_only`, of classes without a
    shot alone.
    """
    labels = np.asarray(labels, np.int64)
    kept = keep_support(rows, labels, task.text)
    if unseen_only:
        kept &= ~task.seen[labels]
    features = np.concatenate([task.features, rows[kept]]) if len(task) else rows[kept]
    return replace(task, features=features, labels=np.concatenate([task.labels, labels[kept]])), kept


def head_names(listed: str) -> list[str]:
    """`--heads` as names: `default` (also where it is empty), `all`, `fast` for those without training, or names.

    Raises:
        UserError: a name that is no head's.
    """
    groups = {"default": list(DEFAULT), "all": list(HEADS), "fast": list(TRAINING_FREE)}
    names: list[str] = []
    for name in (part.strip() for part in (listed or "default").split(",") if part.strip()):
        if name not in HEADS and name not in groups:
            known = [*groups, *HEADS]
            raise UserError(f"--heads: unknown method {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        names += groups.get(name, [name])
    return list(dict.fromkeys(["zero_shot"] + names))  # the ensemble leans on zero-shot


def first_of(refinement: Refinement, count: int) -> Refinement:
    """The refinement of the first `count` images of a larger set."""
    changed = refinement.changed[refinement.changed < count]
    return replace(refinement, probs=refinement.probs[:count], changed=changed)


def make_head(name: str, seed: int) -> Head:
    """A head with its default settings; trained heads take the seed."""
    head = HEADS[name]
    return head(seed=seed) if head.seeded else head()


def names_on(names: Iterable[str], parts: Sequence[Part]) -> list[str]:
    """The heads of each encoder, `gda@RN50`; the bare names for one encoder.

    Raises:
        UserError: an encoder without text, and no head that can do without.
    """
    names = list(names)
    if not parts:
        return names
    found: list[str] = []
    for part in parts:
        mine = [f"{name}{OF}{part.name}" for name in names if part.has_text or not HEADS[name].needs_text]
        if not mine:
            able = ", ".join(name for name, head in HEADS.items() if not head.needs_text)
            raise UserError(f"--heads: none of them can learn from {part.name}, which has no text; add one of {able}")
        found += mine
    return found


def _split(name: str) -> tuple[str, str]:
    """"gda@RN50" -> head and encoder; "" is the only one."""
    head, _, encoder = name.partition(OF)
    return head, encoder


@dataclass(frozen=True)
class Answers:
    """What a pipeline says about N images.

    logits: {head or tuned member: (N, K)}. probs (N, K): the ensemble's, each image by itself. refinement: of the
    images as a set; None where it was switched off. frozen (N, K): the probabilities of an ensemble of the heads
    alone; None where no tuned member has a say.
    """

    logits: dict[str, np.ndarray]
    probs: np.ndarray
    refinement: Refinement | None = None
    frozen: np.ndarray | None = None

    @property
    def final(self) -> np.ndarray:
        """(N, K) probabilities that result.txt is written from."""
        return self.probs if self.refinement is None else self.refinement.probs

    def by_method(self) -> dict[str, np.ndarray]:
        """(N, K) of every head, the ensemble and the refinement, in the order of the results table.

        Where zero-shot is alone, there is no ensemble, and the refinement is called zero_shot_refined.
        """
        answers, name = dict(self.logits), "zero_shot"
        if len(self.logits) > 1:
            answers["ensemble"], name = self.probs, "ensemble"
        if self.frozen is not None:
            answers.update(ensemble=self.frozen, ensemble_tuned=self.probs)
        if self.refinement is not None:
            answers[f"{name}_refined"] = self.refinement.probs
        return answers


class Pipeline:
    """Heads fitted on the same shots, the ensemble that combines them, and the refinement of its answers.

    After `fit`: `task_`, `heads_` {name: Head}, `ensemble_`, `held_out_probs_` (S, K), the ensemble's answers to
    the shots held out, `seconds_` {name: seconds of the fit and its folds}; `check_heads_` and `check_ensemble_`, the
    faster ones that the refinement is checked with; `tuned_` {name: Member}, `frozen_ensemble_` of the heads alone.

    Several encoders: rows and the task are joined (see Task), each has heads of its own, the first one's tower may be
    tuned, the ensemble weighs all, and the refinement looks at the joined rows.
    """

    def __init__(self, names: Sequence[str] | None = None, seed: int = 0, members: Sequence[Head] = (),
                 unlabelled: np.ndarray | None = None) -> None:
        """members: that have learned without labels (methods/unlabelled/label_free.py), in addition to the heads
        of `names`.

        unlabelled (U, D): images that the refinement sees together with those that it refines.
        """
        self.names = list(names or HEADS)
        self.seed, self.members, self.unlabelled = seed, list(members), unlabelled

    def fit(self, task: Task, on_fit: OnFit = lambda name, seconds: None, tuning: Tuning = Tuning([])) -> Pipeline:
        """Fits every head and tuned member on the shots, and the ensemble on their held-out logits. Returns self.

        Without any shot, the heads that need one are left out.
        """
        if not len(task):
            self.names = [name for name in self.bare_names if not HEADS[name].needs_shots]
        self.task_ = task
        self.names = names_on(self.bare_names, task.parts)
        self.heads_: dict[str, Head] = {}
        self.seconds_: dict[str, float] = {}
        held_out: dict[str, np.ndarray] = {}
        for name in self.names:
            begun = time.perf_counter()
            self.heads_[name] = self._made(name, self.seed)
            held_out[name] = self.heads_[name].held_out_logits()
            self.seconds_[name] = time.perf_counter() - begun
            on_fit(name, self.seconds_[name])
        for member in self.members:
            self.heads_[member.name] = member.fit(task)
            held_out[member.name] = member.held_out_logits()
        self.tuned_: dict[str, Member] = {}
        for member in tuning.members:
            begun = time.perf_counter()
            self.tuned_[member.name] = member.fit(task.of(self._first), tuning.bank, tuning.fits)
            self.seconds_[member.name] = time.perf_counter() - begun
            on_fit(member.name, self.seconds_[member.name])
        begun = time.perf_counter()
        self.frozen_ensemble_ = Ensemble().fit(held_out, task)
        self.ensemble_ = self._with_tuned(task)
        self.held_out_probs_ = self.ensemble_.held_out_probs_
        self._fit_check(held_out)
        self.seconds_["ensemble"] = time.perf_counter() - begun
        on_fit("ensemble", self.seconds_["ensemble"])
        return self

    def _with_tuned(self, task: Task) -> Ensemble:
        """The heads' ensemble and those tuned members that the held-out shots want, as a pool.

        The heads look at one set of rows and count as one member here: many of them are not independent evidence. A
        member that was trained must lower the held-out log-loss by a standard error of the paired difference; one that
        was not, and so cannot have fitted the shots too closely, must only not raise it by as much.
        """
        best, tested = self.frozen_ensemble_, task.can_be_left_out
        if not tested.any():
            for member in self.tuned_.values():
                tell(f"  {member.name} gets no weight: no class has two shots, so none can be held out to weigh it by")
                member.settings_["in_ensemble"] = False
        if not self.tuned_ or not tested.any():
            return best
        rows, labels = np.flatnonzero(tested), task.labels[tested]

        def losses(ensemble: Ensemble) -> np.ndarray:
            return -np.log(ensemble.held_out_probs_[rows, labels])
        known = {HEADS_TOGETHER: np.log(best.held_out_probs_)}
        least = losses(Ensemble().fit(known, task))  # pooled twice, as with members
        for member in sorted(self.tuned_.values(), key=lambda one: one.trains):
            joined = Ensemble().fit({**known, member.name: member.held_out_logits()}, task)
            worse = losses(joined) - least
            error = worse.std() / np.sqrt(len(worse))
            wanted = worse.mean() <= (-error if member.trains else error)
            if wanted:
                best, least, known[member.name] = joined, losses(joined), member.held_out_logits()
            else:
                tell(f"  {member.name} gets no weight: it does not improve the log-loss of held-out shots")
            member.settings_["in_ensemble"] = bool(wanted)
        return best

    def _fit_check(self, held_out: dict[str, np.ndarray]) -> None:
        """The heads that the refinement is checked with, and their ensemble; those that are fitted already are."""
        names = names_on(CHECK_HEADS, self.task_.parts)
        self.check_heads_ = {name: self.heads_[name] if name in self.heads_ else self._made(name, 0) for name in names}
        if set(self.heads_) == set(names):
            self.check_ensemble_ = self.frozen_ensemble_
        else:
            known = {name: held_out[name] if name in held_out else head.held_out_logits()
                     for name, head in self.check_heads_.items()}
            self.check_ensemble_ = Ensemble().fit(known, self.task_)

    @property
    def bare_names(self) -> list[str]:
        """The heads without their encoders."""
        return list(dict.fromkeys(_split(name)[0] for name in self.names))

    @property
    def _first(self) -> str:
        """The encoder whose tower may be tuned and whose logits the others correct; "" where it is the only one."""
        return self.task_.parts[0].name if self.task_.parts else ""

    def _made(self, name: str, seed: int) -> Head:
        """A head, fitted on the shots as its encoder sees them."""
        head, encoder = _split(name)
        return make_head(head, seed).fit(self.task_.of(encoder))

    def _logits(self, heads: dict[str, Head], features: np.ndarray) -> dict[str, np.ndarray]:
        """Each head's answers to (N, D) rows, of which it reads its encoder's columns."""
        parts = {part.name: features[:, self.task_.columns(part.name)] for part in self.task_.parts}
        return {name: head.logits(parts.get(_split(name)[1], features)) for name, head in heads.items()}

    def answer(self, features: np.ndarray, refine: str = "auto", rows_under: RowsUnder | None = None,
               every_member: bool = False) -> Answers:
        """Answers N images, (N, D) rows.

        rows_under: the same images by a tuned tower; without it the heads alone answer.
        every_member: ask tuned members without weight too, for a table of scores; each encodes the images anew.
        refine: "off" takes each image by itself; "auto" refines the set where the held-out shots do not object;
            "on" refines it whatever they say.
        """
        logits = self._logits(self.heads_, features)
        probs, frozen = self.frozen_ensemble_.probs(logits), None
        if self.tuned_ and rows_under is not None:
            frozen_rows = features[:, self.task_.columns(self._first)] if self._first else features
            logits.update({name: member.logits(rows_under(member), frozen_rows)
                           for name, member in self.tuned_.items() if every_member or name in self.ensemble_.names_})
            frozen = probs
            if self.ensemble_ is not self.frozen_ensemble_:
                probs = self.ensemble_.probs({**logits, HEADS_TOGETHER: np.log(frozen)})
        return Answers(logits, probs, None if refine == "off" else self.refine(features, probs, refine == "on"), frozen)

    def refine(self, features: np.ndarray, probs: np.ndarray, force: bool = False) -> Refinement:
        """The refinement of a whole test set's (N, K) ensemble probabilities with all that the pipeline knows."""
        count = len(features)
        if self.unlabelled is not None and len(self.unlabelled):
            others = self.frozen_ensemble_.probs(self._logits(self.heads_, self.unlabelled))
            features, probs = np.concatenate([features, self.unlabelled]), np.concatenate([probs, others])
        refined = refine(probs, features, self.task_, self.held_out_folds(), force)
        return first_of(refined, count)

    def held_out_folds(self) -> Iterator[HeldOutFold]:
        """Each fold of the shots, with answers by the cheaper ensemble without that fold."""
        task = self.task_
        for number, fold in enumerate(task.folds()):
            heads = {name: head.refit(fold.task.of(_split(name)[1])) for name, head in self.check_heads_.items()}
            ensemble = self.check_ensemble_.without_fold(number)
            yield HeldOutFold(fold.task, task.features[fold.left_out], task.labels[fold.left_out],
                              partial(self._answer_by, heads, ensemble), ensemble.class_bias)

    def _answer_by(self, heads: dict[str, Head], ensemble: Ensemble, features: np.ndarray) -> np.ndarray:
        """(N, K) probabilities of an ensemble of heads, for (N, D) rows."""
        return np.concatenate([ensemble.probs(self._logits(heads, features[rows])) for rows in blocks(len(features))])

    def state(self) -> dict[str, np.ndarray]:
        """Everything that a test run needs, as arrays with names like `heads/gda/weight`."""
        arrays = {f"heads/{name}/{key}": value for name, head in self.heads_.items()
                  for key, value in head.state().items()}
        arrays.update({f"ensemble/{key}": value for key, value in self.ensemble_.state().items()})
        arrays.update({f"check/heads/{name}/{key}": value for name, head in self.check_heads_.items()
                       if name not in self.heads_ for key, value in head.state().items()})
        arrays.update({f"check/ensemble/{key}": value for key, value in self.check_ensemble_.state().items()})
        arrays.update({f"shots/{key}": getattr(self.task_, key) for key in TASK_ARRAYS})
        arrays["shots/scale"] = np.array(self.task_.scale)
        arrays.update({f"parts/{key}": np.array([getattr(part, key) for part in self.task_.parts])
                       for key in Part._fields if self.task_.parts})
        arrays["names"] = np.array(list(self.heads_))
        if self.unlabelled is not None:
            arrays["unlabelled"] = self.unlabelled
        if self.tuned_:
            arrays["tuned"] = np.array(list(self.tuned_))
            arrays.update({f"tuned/{name}/{key}": value for name, member in self.tuned_.items()
                           for key, value in member.state().items()})
        if self.ensemble_ is not self.frozen_ensemble_:
            arrays.update({f"frozen_ensemble/{key}": value for key, value in self.frozen_ensemble_.state().items()})
        arrays["held_out_probs"] = self.held_out_probs_
        return arrays

    def alpha_beta(self) -> dict[str, np.ndarray]:
        """Tip-Adapter's held-out top-1 over its α and β, (A, B), for the report; empty where nothing can be mapped."""
        head = self.heads_.get(f"tip_adapter{OF}{self._first}" if self._first else "tip_adapter")
        if head is None or not self.task_.can_be_left_out.any():
            return {}
        task = self.task_.of(self._first)
        found = {"alphas": ALPHAS, "betas": BETAS, "top1": head.held_out_map(task, ALPHAS, BETAS)}
        return {f"alpha_beta/{key}": np.float32(value) for key, value in found.items()}

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray]) -> Pipeline:
        """The inverse of `state`.

        Raises:
            UserError: arrays of another version of this program.
        """
        huge = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.size
                and not np.abs(array).max() < LARGEST]
        if huge:
            raise UserError(f"{huge[0]} of the run holds a number beyond {LARGEST:.0e}: train again")
        try:
            heads: dict[str, type[Head]] = {**HEADS, **LABEL_FREE}  # all that a run may hold
            pipeline = cls(arrays["names"].tolist(), unlabelled=arrays.get("unlabelled"))
            pipeline.task_ = Task(**{key: arrays[f"shots/{key}"] for key in TASK_ARRAYS},
                                  scale=float(arrays["shots/scale"]), parts=_parts(arrays), keep_lengths=True)
            pipeline.heads_ = {name: heads[_split(name)[0]].from_state(_under(arrays, f"heads/{name}/"))
                               for name in pipeline.names}
            pipeline.ensemble_ = Ensemble.from_state(_under(arrays, "ensemble/"))
            pipeline.tuned_ = {name: MEMBERS[name].from_state(_under(arrays, f"tuned/{name}/"))
                               for name in (arrays["tuned"].tolist() if "tuned" in arrays else [])}
            pipeline.frozen_ensemble_ = pipeline.ensemble_
            if HEADS_TOGETHER in pipeline.ensemble_.names_:
                pipeline.frozen_ensemble_ = Ensemble.from_state(_under(arrays, "frozen_ensemble/"))
            pipeline.check_heads_ = {
                name: pipeline.heads_[name] if name in pipeline.heads_
                else HEADS[_split(name)[0]].from_state(_under(arrays, f"check/heads/{name}/"))
                for name in names_on(CHECK_HEADS, pipeline.task_.parts)}
            pipeline.check_ensemble_ = Ensemble.from_state(_under(arrays, "check/ensemble/"))
            pipeline.held_out_probs_ = arrays["held_out_probs"]
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"the run was made by another version of this program ({error}): train again")
        pipeline._require_answers()
        return pipeline

    def _require_answers(self) -> None:
        """A few questions, so that arrays of heads that do not fit each other are found here.

        Raises:
            UserError: some head cannot answer, or not with finite numbers.
        """
        task = self.task_
        # as many rows as no axis is long, so that no wrong one broadcasts
        n = next(n for n in range(2, 6) if n not in (task.num_classes, len(task), task.text.shape[1]))
        try:
            with np.errstate(all="ignore"):
                probs = self.answer(np.resize(task.text, (n, task.text.shape[1])), refine="off").probs
        except Exception as error:  # whatever NumPy and Jittor make of arrays that do not fit
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"the run's arrays do not fit together ({type(error).__name__}: {reason}): train again")
        if probs.shape != (n, task.num_classes) or not np.isfinite(probs).all():
            raise UserError("the run's arrays give answers that are not finite: train again")

    def settings(self) -> dict[str, dict]:
        """What each method chose on the shots, with its cross-validated score."""
        chosen = {name: one.settings_ for name, one in {**self.heads_, **self.tuned_}.items()}
        chosen["ensemble"] = self.ensemble_.settings_
        return chosen

    def histories(self) -> dict[str, list]:
        """The training curves of the trained heads."""
        return {name: head.history_ for name, head in self.heads_.items() if head.history_}


def _parts(arrays: dict[str, np.ndarray]) -> tuple[Part, ...]:
    """The encoders of a saved state; none for one."""
    if "parts/name" not in arrays:
        return ()
    return tuple(Part(*values) for values in zip(*(arrays[f"parts/{key}"].tolist() for key in Part._fields)))


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix):]: value for name, value in arrays.items() if name.startswith(prefix)}
