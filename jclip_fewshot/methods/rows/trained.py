"""Training on the shots: the folds and the whole side by side, the epoch and the ratios by held-out shots.

k + 1 fits train in step: fit j < k leaves fold j out and is scored on it after each epoch, the last one sees every
shot. So the curve that picks the epoch, the ratios chosen afterwards and `held_out_logits` all come from fits that did
not see the shot they answer for. Each fit is 2-d throughout: Jittor's batched product on the CPU is a plain loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import blocks, softmax, unit_rows, var
from jclip_fewshot.methods.base import Method, held_out_scores, keep_unseen
from jclip_fewshot.methods.training import SGD, Adam, Arrays, Vars, as_vars, cosine, descend
from jclip_fewshot.task import Fold, Task, class_means

MAX_STEPS = 8  # an epoch: with more shots batches grow instead, so that schedules mean the same


def fits_of(task: Task) -> list[Fold]:
    """Return the folds, then the fit on all shots, judged on none; that one alone where nothing can be left out."""
    return [*task.folds(), Fold(task, np.arange(len(task)), np.zeros(0, np.int64))]


def residuals(task: Task) -> np.ndarray:
    """f − mean of its class, unbiased, (S, D) float32; 0 for a shot that is the only one of its class."""
    count = task.counts[task.labels][:, None]
    rest = task.features - class_means(task)[task.labels]
    return (rest * np.sqrt(count / np.maximum(count - 1, 1))).astype(np.float32)


def borrowed(features: np.ndarray, residuals: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Borrowed residuals (docs/methods.md): rows x + strength · r, renormalised; r a row drawn from `residuals`."""
    if not strength or not len(residuals):
        return features
    return unit_rows(features + np.float32(strength) * residuals[rng.integers(len(residuals), size=len(features))])


def soft_top1(logits: np.ndarray, labels: np.ndarray, sharpness: float = 5.0) -> float:
    """Mean p(label) under softmax(sharpness · logits), in percent: what settings are chosen by.

    Log-loss still falls when held-out top-1 has turned; this has its optimum where top-1 has, without its steps.
    """
    return float(100 * softmax(sharpness * logits)[np.arange(len(labels)), labels].mean())


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What an epoch's entry in `history_` says about the held-out shots."""
    return {**held_out_scores(logits, labels), "held_out_soft_top1": soft_top1(logits, labels)}


class TrainedMethod(Method):
    """A method that is trained by gradient descent: what a fit starts from (`start`) and how it answers (`forward`).

    epochs, lr, weight_decay, eps: AdamW with a cosine schedule from lr to least_lr. batch: rows a step; None: all
    shots in order. augment: strength of the borrowed residuals. every: epochs between two scores. patience: epochs
    without a better score before it stops; None: it does not. choose_epoch: keep the epoch of the best score, held-out
    soft top-1, not the last one. ratios: {name of a constant: values to try} after training, by the same score.
    """

    state_dicts: ClassVar[tuple[str, ...]] = ("learned_",)
    trains = True
    epochs, lr, least_lr, weight_decay, eps = 20, 1e-3, 0.0, 0.0, 1e-8
    batch: int | None = 256
    augment, every, choose_epoch = 0.0, 1, True
    patience: int | None = None
    ratios: ClassVar[dict[str, Sequence[float]]] = {}

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        """(constants, parameters) before the first step; a constant is never trained."""
        raise NotImplementedError

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        """Logits (B, K) of rows x (B, D) on CLIP's scale; `p` holds constants and parameters."""
        raise NotImplementedError

    def penalty(self, p: Vars, x: jt.Var, logits: jt.Var, rng: np.random.Generator) -> jt.Var | float:
        """Added to the cross-entropy of the batch x."""
        return 0.0

    def optimiser(self, constants: list[Arrays]) -> SGD | Adam:
        """What trains all fits, whose constants these are; a parameter of fit m is called "m/name"."""
        return Adam(self.weight_decay, eps=self.eps)

    def _fit(self, task: Task) -> None:
        """Train all fits in step; epoch 0, the start, may be the one chosen."""
        fits = _InStep(self, task)
        rates = cosine(self.lr, fits.epochs * fits.steps, self.least_lr)
        descend(fits.first, fits.loss, self.optimiser(fits.fixed), rates, fits.watch, self.name)
        learned = [{**fixed, **{name: fits.kept[f"{m}/{name}"].numpy() for name in fits.names}}
                   for m, fixed in enumerate(fits.fixed)]
        self.history_ = fits.history
        self.settings_ = {"epoch": fits.epoch, "epochs": self.epochs, "lr": self.lr, "augment": self.augment,
                          "chosen_by": "held-out soft top-1" if fits.asked else "fixed"}

        names, tested = list(self.ratios) if fits.asked else [], task.can_be_left_out
        best: dict[str, float] | None = None
        for values in itertools.product(*(self.ratios[name] for name in names)):
            chosen = {name: np.array([value], np.float32) for name, value in zip(names, values)}
            held_out = fits.held_out(self._ask({**own, **chosen}, rows) for own, rows in zip(learned, fits.asked))
            found = scores(held_out[tested], task.labels[tested]) if fits.asked else {}
            if best is None or found["held_out_soft_top1"] > best["held_out_soft_top1"]:
                best, self.fold_logits_, self.learned_ = found, held_out, {**learned[-1], **chosen}
                self.settings_.update(zip(names, map(float, values)), **found)

    def _ask(self, learned: Arrays, features: np.ndarray) -> np.ndarray:
        p = as_vars(learned)
        return np.concatenate([self.forward(p, var(features[rows])).numpy() for rows in blocks(len(features))])

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return self._ask(self.learned_, features)


class _InStep:
    """Every fit of a method, trained by one loop."""

    def __init__(self, method: TrainedMethod, task: Task) -> None:
        self.method, self.task, self.rng = method, task, np.random.default_rng(method.seed)
        self.epochs = method.epochs if task.seen.sum() > 1 else 0  # one class alone: nothing to tell apart
        self.fits = fits_of(task)
        starts = [method.start(fit.task, np.random.default_rng(method.seed)) for fit in self.fits]
        self.fixed = [constants for constants, _ in starts]
        self.constants = [as_vars(constants) for constants in self.fixed]
        self.names = list(starts[0][1])
        self.first = {f"{m}/{name}": value for m, (_, start) in enumerate(starts) for name, value in start.items()}
        # training would push a class without a shot under its seen neighbours: it takes no part in the softmax
        self.class_mask = None if task.seen.all() else var(-1e9 * ~task.seen[None])
        self.residuals = [residuals(fit.task)[fit.task.can_be_left_out] for fit in self.fits]
        self.asked = [task.features[fit.left_out] for fit in self.fits[:-1]]  # by fold
        self.tested = np.concatenate([fit.left_out for fit in self.fits])
        self.zero_shot = task.zero_shot(task.features)
        self.steps = 1 if method.batch is None else min(MAX_STEPS, max(1, -(-len(task) // method.batch)))
        self.batches: list[list[np.ndarray]] = []  # an epoch's, of each fit
        self.said: tuple = ()  # of the fit on all shots: the last step's loss, hits, rows
        self.sums = np.zeros(2)  # of these, this epoch: loss and hits, times rows
        self.kept, self.epoch = as_vars(self.first), 0
        self.history = [{"epoch": 0, **self.score(self.kept)}]

    def of(self, values: Vars, m: int) -> Vars:
        """What `forward` reads of fit m."""
        return {**self.constants[m], **{name: values[f"{m}/{name}"] for name in self.names}}

    def held_out(self, answers: Iterable[np.ndarray]) -> np.ndarray:
        """Each fold's answers to what it left out as one (S, K); zero-shot's to the other shots."""
        held_out = self.zero_shot.copy()
        for fit, own in zip(self.fits, answers):
            held_out[fit.left_out] = keep_unseen(own, held_out[fit.left_out], self.task.seen)
        return held_out

    def score(self, values: Vars) -> dict[str, float]:
        """Of the shots held out, each by the fit that did not see it."""
        if not self.asked:
            return {}
        answers = (self.method.forward(self.of(values, m), var(rows)).numpy() for m, rows in enumerate(self.asked))
        return scores(self.held_out(answers)[self.tested], self.task.labels[self.tested])

    def loss(self, values: Vars, step: int) -> jt.Var:
        """The sum over the fits of their mean cross-entropy over the seen classes (+ penalty)."""
        if step % self.steps == 0:
            self.batches = [[np.arange(len(fit.kept))] if self.method.batch is None
                            else np.array_split(self.rng.permutation(len(fit.kept)), self.steps) for fit in self.fits]
        total = 0
        for m, fit in enumerate(self.fits):
            rows = self.batches[m][step % self.steps]
            if len(rows) == 0:  # a fold with fewer shots than steps
                continue
            share = len(rows)
            if share == 1:  # Jittor 1.3.11 cannot compile the gradient of a mean over one row
                rows = np.repeat(rows, 2)
            x = var(borrowed(fit.task.features[rows], self.residuals[m], self.method.augment, self.rng))
            y, p = jt.array(fit.task.labels[rows].astype(np.int32)), self.of(values, m)
            logits = self.method.forward(p, x)
            own = cross_entropy(logits if self.class_mask is None else logits + self.class_mask, y)
            if m == len(self.fits) - 1:
                self.said = own.detach(), (jt.argmax(logits, 1)[0] == y).detach(), share
            total = total + (own + self.method.penalty(p, x, logits, self.rng))
        return total

    def watch(self, step: int, objective: jt.Var, gradients: Vars, values: Vars) -> bool:
        """Keep the epoch's scores, and its parameters where they are the ones to choose; True ends the training."""
        own, hits, share = self.said
        self.sums += share * np.array([own.item(), hits.numpy().mean()])
        epoch, begun = divmod(step + 1, self.steps)
        if begun:
            return False
        (loss, right), self.sums = (self.sums / len(self.task)).tolist(), np.zeros(2)
        if epoch % self.method.every and epoch < self.epochs:
            return False
        found = self.score(values)
        best = max(one.get("held_out_soft_top1", 0.0) for one in self.history)
        self.history.append({"epoch": epoch, "loss": loss, "train_top1": 100 * right, **found})
        if not (found and self.method.choose_epoch) or found["held_out_soft_top1"] > best:
            self.kept, self.epoch = values, epoch
        return self.method.patience is not None and epoch - self.epoch >= self.method.patience
