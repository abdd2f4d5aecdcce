"""Fit and answer, wired once: one loop over methods, the ensemble and the refinement.

Letters: N images, S shots, K classes, D feature width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from jclip_fewshot.backend.numerics import blocks
from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.combine.refinement import Refinement, refine
from jclip_fewshot.combine.strength import HeldOutFold
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import TEXT, Given, Method, Queries
from jclip_fewshot.methods.plan import OF, Choice, choose, names_on, plan
from jclip_fewshot.storage.arrays import Field
from jclip_fewshot.task import EncoderSlice, Task

LARGEST = 1e9  # of a number in a run's arrays; larger ones would overflow float32 in a product of three
TASK_ARRAYS = ("features", "labels", "text", "domains", "scale")
ENSEMBLES = {"ensemble": "ensemble_", "rows_ensemble": "rows_ensemble_", "check/ensemble": "check_ensemble_"}
# what `state` must hold, for load_arrays; the methods' own arrays are checked by answering a few rows
STATE_SCHEMA = {
    "methods": Field("text", "H"), "seed": Field("whole", "", low=0), "shots/text": Field("float", "K D", rows=True),
    "shots/features": Field("float", "S D", rows=True), "shots/labels": Field("whole", "S", low=0, below="K"),
    "shots/domains": Field("whole", "K", low=0, below="K"), "shots/scale": Field("float", ""),
    "held_out_probs": Field("float", "S K", low=0, below=1.01), "ensemble/seen": Field("flag", "K"),
    "ensemble/names": Field("text", "M"), "ensemble/offset": Field("float", ""),
    "parts/name": Field("text", "E", needed=False), "parts/width": Field("whole", "E", low=1, needed=False),
    "parts/has_text": Field("flag", "E", needed=False), "parts/scale": Field("float", "E", needed=False)}
NOTHING = Given()
TOGETHER = "on_rows"  # the ensemble of the methods on rows, as one beside those that ask for images
OnFit = Callable[[str, float], None]  # told of each method as it is done: its name and the seconds of its fit
CHECKED_BY = [name for name, method in METHODS.items() if method.checks]  # the refinement's held-out folds


def _method_of(name: str) -> type[Method]:
    """The method's class: GDA of "gda@RN50"."""
    return METHODS[name.partition(OF)[0]]


def _encoder_of(name: str) -> str:
    """The encoder's name: "RN50" of "gda@RN50", "" of "gda"."""
    return name.partition(OF)[2]


@dataclass(frozen=True)
class Answers:
    """What a pipeline says about N images."""

    logits: dict[str, np.ndarray]  # (N, K) of each method
    probs: np.ndarray  # (N, K), the ensemble's, each image by itself
    refinement: Refinement | None = None  # of the images as a set; None where it was switched off
    on_rows: np.ndarray | None = None  # (N, K) probabilities by the methods on rows alone, where others have a say

    @property
    def final(self) -> np.ndarray:
        """(N, K) probabilities that result.txt is written from."""
        return self.probs if self.refinement is None else self.refinement.probs

    def by_method(self) -> dict[str, np.ndarray]:
        """Return (N, K) of every method, the ensemble and the refinement, in the order of the results table.

        Where zero-shot is alone, there is no ensemble, and the refinement is called zero_shot_refined.
        """
        answers, name = dict(self.logits), "zero_shot"
        if len(self.logits) > 1:
            answers["ensemble"], name = self.probs, "ensemble"
        if self.on_rows is not None:
            answers.update(ensemble=self.on_rows, ensemble_tuned=self.probs)
        if self.refinement is not None:
            answers[f"{name}_refined"] = self.refinement.probs
        return answers


class Pipeline:
    """Methods fitted on the same shots, the ensemble that combines them, and the refinement of its answers.

    methods: what `choose` takes, or has chosen. seed: of all that draws at random. After `fit`: `task_`, `methods_`
    {name: Method}, `ensemble_`, `held_out_probs_` (S, K), its answers to the shots held out, `seconds_` of each fit
    and its folds; `check_methods_`, `check_ensemble_`, the faster ones that the refinement is checked with;
    `rows_ensemble_` of the methods on rows; `unlabelled_` (U, D), what the refinement sees beside its images, or None.

    Of several encoders the rows are joined (see Task), each has methods on rows of its own, and the first one's tower
    may be tuned.
    """

    def __init__(self, methods: str | Sequence[str] | Choice = "auto", seed: int = 0) -> None:
        self.methods, self.seed = methods, seed

    def fit(self, task: Task, given: Given = NOTHING, on_fit: OnFit | None = None) -> Pipeline:
        """Fit every method on the shots, and the ensemble on their held-out logits. Return self.

        given: what some methods need beside the task. Raise UserError if a method that was named cannot be fitted.
        """
        choice = self.methods if isinstance(self.methods, Choice) else choose(self.methods)
        cuda = given.tower is not None and given.tower.encoder.device == "cuda"
        self.task_, extra = task, given.unlabelled
        self.methods_: dict[str, Method] = {}
        self.seconds_: dict[str, float] = {}
        self.unlabelled_ = extra.rows[:extra.beside] if extra is not None and extra.beside else None
        held_out: dict[str, np.ndarray] = {}

        def done(name: str, begun: float) -> None:
            self.seconds_[name] = time.perf_counter() - begun
            if on_fit is not None:
                on_fit(name, self.seconds_[name])
        for name in plan(choice, task, given, cuda):
            begun = time.perf_counter()
            self.methods_[name] = self._fitted(name, self.seed, given)
            held_out[name] = self.methods_[name].held_out_logits()
            done(name, begun)
        begun = time.perf_counter()
        self.rows_ensemble_ = self._ensemble({name: held_out[name] for name in self._on_rows})
        self.ensemble_ = self._with_tuned(held_out)
        self.held_out_probs_ = self.ensemble_.held_out_probs_
        self._fit_check(held_out)
        done("ensemble", begun)
        return self

    def _ensemble(self, held_out: dict[str, np.ndarray]) -> Ensemble:
        ignore_text = [name for name in held_out if _method_of(name).ignores_text]
        ignore_shots = [name for name in held_out if _method_of(name).needs == {TEXT}]
        return Ensemble().fit(held_out, self.task_, ignore_text, ignore_shots)

    def _with_tuned(self, held_out: dict[str, np.ndarray]) -> Ensemble:
        """The ensemble on rows and those methods that ask for images which the held-out shots want, as a pool.

        The methods on rows look at one set of rows and count as one here: many of them are not independent evidence. A
        method that was trained must lower the held-out log-loss by a standard error of the paired difference; one that
        was not, and so cannot have fitted the shots too closely, must only not raise it by as much.
        """
        task, best = self.task_, self.rows_ensemble_
        tuned = [method for method in self.methods_.values() if method.asks_images]
        known = {TOGETHER: np.log(best.held_out_probs_)}
        if not tuned:
            return best
        if not len(task):  # all of them have learned without labels, and count alike
            for method in tuned:
                method.settings_["in_ensemble"] = True
            return Ensemble().fit({**known, **{method.name: held_out[method.name] for method in tuned}}, task)
        rows = np.flatnonzero(task.can_be_left_out)

        def losses(ensemble: Ensemble) -> np.ndarray:
            return -np.log(ensemble.held_out_probs_[rows, task.labels[rows]])
        least = losses(Ensemble().fit(known, task)) if len(rows) else None  # pooled twice, as with the others
        for method in sorted(tuned, key=lambda one: one.trains):
            wanted, why = False, "no class has two shots, so none can be held out to weigh it by"
            if least is not None:
                joined = Ensemble().fit({**known, method.name: held_out[method.name]}, task)
                worse = losses(joined) - least
                error = worse.std() / np.sqrt(len(worse))
                wanted = bool(worse.mean() <= (-error if method.trains else error))
                why = "it does not improve the log-loss of held-out shots"
            if wanted:
                best, least, known[method.name] = joined, losses(joined), held_out[method.name]
            else:
                tell(f"  {method.name} gets no weight: {why}")
            method.settings_["in_ensemble"] = wanted
        return best

    def _fit_check(self, held_out: dict[str, np.ndarray]) -> None:
        """The methods that the refinement is checked with, and their ensemble, where they are not fitted already."""
        self.check_methods_ = {name: self.methods_[name] if name in self.methods_ else self._fitted(name, 0)
                               for name in names_on(CHECKED_BY, self.task_.parts)}
        self.check_ensemble_ = self.rows_ensemble_
        if set(self.rows_ensemble_.names_) != set(self.check_methods_):
            self.check_ensemble_ = self._ensemble({
                name: held_out[name] if name in held_out else method.held_out_logits()
                for name, method in self.check_methods_.items()})

    @property
    def _first(self) -> str:
        """The encoder whose tower may be tuned and whose logits the others correct; "" where it is the only one."""
        return self.task_.parts[0].name if self.task_.parts else ""

    def _fitted(self, name: str, seed: int, given: Given = NOTHING) -> Method:
        method = _method_of(name)
        encoder = _encoder_of(name) or (self._first if method.asks_images else "")
        return method(seed=seed).fit(self.task_.of(encoder), **given.for_method(method))

    def _logits(self, methods: dict[str, Method], features: np.ndarray) -> dict[str, np.ndarray]:
        """Each method's answers to (N, D) rows, of which it reads its encoder's columns."""
        return {name: method.logits(features[:, self.task_.columns(_encoder_of(name))])
                for name, method in methods.items()}

    @property
    def _on_rows(self) -> dict[str, Method]:
        return {name: method for name, method in self.methods_.items() if not method.asks_images}

    @property
    def asks_images(self) -> list[str]:
        """The methods with weight whose answers need the images once more."""
        return [name for name in self.ensemble_.names_ if name in self.methods_ and self.methods_[name].asks_images]

    def answer(self, queries: Queries | np.ndarray, refine: str = "auto", every_method: bool = False) -> Answers:
        """Answer N images: queries, or their rows (N, D), by which the methods on rows answer alone.

        every_method: ask methods without weight too, for a table of scores; some encode the images anew.
        refine: "off" takes each image by itself; "auto" refines the set where the held-out shots do not object;
            "on" refines it whatever they say.
        """
        queries = queries if isinstance(queries, Queries) else Queries(queries)
        features = queries.rows
        logits = self._logits(self._on_rows, features)
        probs, on_rows = self.rows_ensemble_.probs(logits), None
        tuned = [name for name, method in self.methods_.items() if method.asks_images]
        if tuned and queries.under is not None:
            first = replace(queries, rows=features[:, self.task_.columns(self._first)])
            logits.update({name: self.methods_[name].answer(first)
                           for name in (tuned if every_method else self.asks_images)})
            on_rows = probs
            if TOGETHER in self.ensemble_.names_:
                probs = self.ensemble_.probs({**logits, TOGETHER: np.log(on_rows)})
        refinement = None if refine == "off" else self.refine(features, probs, refine == "on")
        return Answers(logits, probs, refinement, on_rows)

    def refine(self, features: np.ndarray, probs: np.ndarray, force: bool = False) -> Refinement:
        """Return the refinement of a whole test set: features (N, D), the ensemble's probs (N, K)."""
        count = len(features)
        if self.unlabelled_ is not None:
            others = self.rows_ensemble_.probs(self._logits(self._on_rows, self.unlabelled_))
            features, probs = np.concatenate([features, self.unlabelled_]), np.concatenate([probs, others])
        refined = refine(probs, features, self.task_, self.held_out_folds(), force)
        return replace(refined, probs=refined.probs[:count], changed=refined.changed[refined.changed < count])

    def held_out_folds(self) -> Iterator[HeldOutFold]:
        """Each fold of the shots, with answers by the cheaper ensemble without that fold."""
        task = self.task_
        for number, fold in enumerate(task.folds()):
            methods = {name: method.refit(fold.task.of(_encoder_of(name)))
                       for name, method in self.check_methods_.items()}
            ensemble = self.check_ensemble_.without_fold(number)
            yield HeldOutFold(fold.task, task.features[fold.left_out], task.labels[fold.left_out],
                              partial(self._answer_by, methods, ensemble), ensemble.class_bias)

    def _answer_by(self, methods: dict[str, Method], ensemble: Ensemble, features: np.ndarray) -> np.ndarray:
        return np.concatenate([ensemble.probs(self._logits(methods, features[rows])) for rows in blocks(len(features))])

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that a test run needs, as arrays with names like `methods/gda/weight`."""
        states = {where: getattr(self, name).state() for where, name in ENSEMBLES.items()}
        states |= {f"methods/{name}": one.state() for name, one in {**self.check_methods_, **self.methods_}.items()}
        states["shots"] = {key: getattr(self.task_, key) for key in TASK_ARRAYS}
        if self.task_.parts:
            states["parts"] = dict(zip(EncoderSlice._fields, map(np.array, zip(*self.task_.parts))))
        arrays = {f"{where}/{key}": np.asarray(value) for where in states for key, value in states[where].items()}
        arrays.update(methods=np.array(list(self.methods_)), seed=np.array(self.seed),
                      held_out_probs=self.held_out_probs_)
        return arrays if self.unlabelled_ is None else {**arrays, "unlabelled": self.unlabelled_}

    def report_arrays(self) -> dict[str, np.ndarray]:
        """Return what the report draws of single methods, of the first encoder."""
        found: dict[str, np.ndarray] = {}
        for name, method in self.methods_.items():
            if _encoder_of(name) in ("", self._first):
                found.update(method.report_arrays(self.task_.of(_encoder_of(name))))
        return found

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray]) -> Pipeline:
        """Return the pipeline that `state` was taken of; raise UserError if arrays do not fit, or give no answers."""
        huge = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.size
                and not np.abs(array).max() < LARGEST]
        if huge:
            raise UserError(f"{huge[0]} of the run holds a number beyond {LARGEST:.0e}: train again")
        try:
            with np.errstate(all="ignore"):
                pipeline = cls._from_arrays(arrays)
                text = pipeline.task_.text
                # as many questions as no axis is long, so that no wrong one broadcasts
                n = next(n for n in range(2, 6) if n not in (len(pipeline.task_), *text.shape))
                probs = pipeline.answer(np.resize(text, (n, text.shape[1])), refine="off").probs
        except Exception as error:  # whatever NumPy and Jittor make of arrays that do not fit
            reason = " ".join(str(error).split())[:120]
            raise UserError("the run's arrays do not fit together, or another version of this program made them "
                            f"({type(error).__name__}: {reason}): train again") from None
        if probs.shape != (n, len(text)) or not np.isfinite(probs).all():
            raise UserError("the run's arrays give answers that are not finite: train again")
        return pipeline

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> Pipeline:
        def under(prefix: str) -> dict[str, np.ndarray]:
            return {name[len(prefix):]: value for name, value in arrays.items() if name.startswith(prefix)}
        names = arrays["methods"].tolist()
        pipeline = cls(sorted({_method_of(name).name for name in names}), int(arrays["seed"]))
        pipeline.unlabelled_, pipeline.held_out_probs_ = arrays.get("unlabelled"), arrays["held_out_probs"]
        parts = under("parts/")
        features, labels, text, domains, scale = (arrays[f"shots/{key}"] for key in TASK_ARRAYS)
        pipeline.task_ = Task(features, labels, text, domains, float(scale), tuple(
            EncoderSlice(*values) for values in zip(*(parts[key].tolist() for key in EncoderSlice._fields if parts))))
        check = names_on(CHECKED_BY, pipeline.task_.parts)
        methods = {name: _method_of(name).from_state(under(f"methods/{name}/"))
                   for name in dict.fromkeys([*names, *check])}
        pipeline.methods_ = {name: methods[name] for name in names}
        pipeline.check_methods_ = {name: methods[name] for name in check}
        for where, name in ENSEMBLES.items():
            setattr(pipeline, name, Ensemble.from_state(under(f"{where}/")))
        return pipeline

    def settings(self) -> dict[str, dict]:
        """What each method chose on the shots, with its cross-validated score."""
        return {**{name: method.settings_ for name, method in self.methods_.items()},
                "ensemble": self.ensemble_.settings_}

    def histories(self) -> dict[str, list]:
        """Return the training curves of what was trained."""
        return {name: method.history_ for name, method in self.methods_.items() if method.history_}
