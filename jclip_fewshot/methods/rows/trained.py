"""Training on the shots: the folds and the whole side by side, AdamW, cosine schedule, the epoch by held-out shots.

A method describes one fit: what it starts from (`start`) and how it answers (`forward`). `train` runs k + 1 of them in
step: fit j < k leaves fold j out and is scored on it after each epoch, the last one sees every shot. So the curve that
picks the epoch, the ratios chosen afterwards and `held_out_logits` all come from fits that did not see the shot they
answer for. Each fit is 2-d throughout: Jittor's batched product on the CPU is a plain loop.

Borrowed residuals (`augment`): a training row is x = f_i + s r, renormalised, where r is the residual (f_j - mean of
j's class) of another shot of the same fit, drawn again in each step (docs/methods.md).

Letters: S shots, K classes, D feature width, B batch, M = k + 1 fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import softmax, unit_rows, var
from jclip_fewshot.methods.base import Method, held_out_scores, keep_unseen
from jclip_fewshot.methods.training import Adam, Arrays, Vars, as_arrays, as_vars, cosine, descend
from jclip_fewshot.task import Fold, Task, class_means

MAX_STEPS = 8  # an epoch: with more shots batches grow instead, so that schedules mean the same
CHUNK = 4096  # rows answered at a time


def fits_of(task: Task) -> list[Fold]:
    """Return the folds, then the fit on all shots, judged on none; that one alone where nothing can be left out."""
    return [*task.folds(), Fold(task, np.arange(len(task)), np.zeros(0, np.int64))]


def residuals(task: Task) -> np.ndarray:
    """f − mean of its class, unbiased, (S, D) float32; 0 for a shot that is the only one of its class."""
    count = task.counts[task.labels][:, None]
    rest = task.features - class_means(task)[task.labels]
    return (rest * np.sqrt(count / np.maximum(count - 1, 1))).astype(np.float32)


def borrowed(features: np.ndarray, residuals: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """`features` (B, D), each moved by `strength` times a row drawn from `residuals`, renormalised."""
    if not strength or not len(residuals):
        return features
    return unit_rows(features + np.float32(strength) * residuals[rng.integers(len(residuals), size=len(features))])


def soft_top1(logits: np.ndarray, labels: np.ndarray, sharpness: float = 5.0) -> float:
    """Mean p(label) under softmax(sharpness · logits), in percent: top-1 made smooth, what settings are chosen by.

    Log-loss chooses confidence: it still falls when held-out top-1 has turned. Top-1 of a few hundred shots is a
    staircase. This has its optimum where top-1 has, without the steps.
    """
    if len(labels) == 0:
        return 0.0
    return float(100 * softmax(sharpness * logits)[np.arange(len(labels)), labels].mean())


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What an epoch's entry in `history_` says about the held-out shots."""
    return {**held_out_scores(logits, labels), "held_out_soft_top1": soft_top1(logits, labels)}


class TrainedMethod(Method):
    """A method that is trained by gradient descent. Subclasses give `start`, `forward`, perhaps `penalty`.

    epochs, batch (rows a step), lr, weight_decay, eps: AdamW with a cosine schedule to zero. augment: strength of
    the borrowed residuals. choose_epoch: keep the epoch with the best held-out soft top-1, not the last one.
    ratios: {name of a constant: values to try} after training, by held-out soft top-1.
    """

    state_dicts = ("learned_",)
    trains = True
    epochs, batch, lr, weight_decay, eps = 20, 256, 1e-3, 0.0, 1e-8
    augment, choose_epoch = 0.0, True
    ratios: ClassVar[dict[str, Sequence[float]]] = {}

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        """(constants, parameters) before the first step; a constant is never trained."""
        raise NotImplementedError

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        """Logits (B, K) of rows x (B, D) on CLIP's scale; `p` holds constants and parameters."""
        raise NotImplementedError

    def penalty(self, p: Vars, x: jt.Var, logits: jt.Var, rng: np.random.Generator) -> jt.Var | None:
        """Added to the cross-entropy of the batch x; None adds nothing."""
        return None

    def after_step(self, name: str, value: jt.Var, p: Vars, rate: float) -> jt.Var:
        """A parameter after each step of learning rate `rate`: for what is better solved than descended."""
        return value

    def _fit(self, task: Task) -> None:
        """Train all fits in step; epoch 0, the start, may be the one chosen.

        A class without a shot takes no part in the softmax, or training would push it under its seen neighbours
        (`base.keep_unseen` puts it back).
        """
        fits = _InStep(self, task)
        epochs = self.epochs if task.seen.sum() > 1 else 0  # one class alone: nothing to tell apart
        descend(fits.first, fits.loss, fits, cosine(self.lr, epochs * fits.steps), fits.watch, self.name)
        arrays = as_arrays(fits.kept)
        learned = [{**fixed, **{name: arrays[f"{m}/{name}"] for name in fits.names}}
                   for m, fixed in enumerate(fits.fixed)]
        folds = fits.fits[:-1]
        self.history_ = fits.history
        self.settings_ = {"epoch": fits.epoch, "epochs": self.epochs, "lr": self.lr, "augment": self.augment,
                          "chosen_by": "held-out soft top-1" if folds else "fixed"}
        self._choose(task, folds, learned)

    def _choose(self, task: Task, folds: list[Fold], learned: list[Arrays]) -> None:
        """Take over what was trained, with the ratios that the held-out shots like best."""
        names = list(self.ratios) if folds else []
        tested = task.can_be_left_out
        best: Any = None
        for values in itertools.product(*(self.ratios[name] for name in names)):
            chosen = {name: np.array([value], np.float32) for name, value in zip(names, values)}
            held_out = task.zero_shot(task.features)
            for fit, own in zip(folds, learned):
                answers = self._ask({**own, **chosen}, task.features[fit.left_out])
                held_out[fit.left_out] = keep_unseen(answers, held_out[fit.left_out], task.seen)
            score = soft_top1(held_out[tested], task.labels[tested])
            if best is None or score > best[0]:
                best = score, dict(zip(names, map(float, values))), chosen, held_out
        _, scalars, chosen, self.fold_logits_ = best
        self.learned_ = {**learned[-1], **chosen}
        self.settings_.update(scalars)
        if folds:
            self.settings_.update(scores(self.fold_logits_[tested], task.labels[tested]))

    def _ask(self, learned: Arrays, features: np.ndarray) -> np.ndarray:
        p = {name: var(value) for name, value in learned.items()}
        parts = [self.forward(p, var(features[i:i + CHUNK])).numpy() for i in range(0, len(features), CHUNK)]
        return np.concatenate(parts)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return self._ask(self.learned_, features)


class _InStep(Adam):
    """Every fit of a method, trained by one loop; as its optimiser AdamW, and what the method does after each step."""

    def __init__(self, method: TrainedMethod, task: Task) -> None:
        super().__init__(method.weight_decay, eps=method.eps)
        self.method, self.task, self.rng = method, task, np.random.default_rng(method.seed)
        self.fits = fits_of(task)
        starts = [method.start(fit.task, np.random.default_rng(method.seed)) for fit in self.fits]
        self.fixed = [constants for constants, _ in starts]
        self.constants = [{name: var(value) for name, value in constants.items()} for constants in self.fixed]
        self.names = list(starts[0][1])
        self.first = {f"{m}/{name}": value for m, (_, start) in enumerate(starts) for name, value in start.items()}
        self.class_mask = None if task.seen.all() else var(-1e9 * ~task.seen[None])
        self.residuals = [residuals(fit.task)[fit.task.can_be_left_out] for fit in self.fits]
        self.held_out = [(var(task.features[fit.left_out]), task.zero_shot(task.features[fit.left_out]))
                         for fit in self.fits[:-1]]
        self.tested = np.concatenate([task.labels[fit.left_out] for fit in self.fits])
        self.steps = min(MAX_STEPS, max(1, -(-len(task) // method.batch)))  # an epoch
        self.batches: list[list[np.ndarray]] = []  # an epoch's, of each fit
        self.said: list[tuple] = []  # of the fit on all shots, this epoch: each step's loss, hits, rows
        self.kept, self.epoch = as_vars(self.first), 0
        self.history = [{"epoch": 0, **self.score(self.kept)}]

    def of(self, values: Vars, m: int) -> Vars:
        """What `forward` reads of fit m."""
        return {**self.constants[m], **{name: values[f"{m}/{name}"] for name in self.names}}

    def step(self, values: Vars, gradients: Vars, lr: float) -> Vars:
        moved = super().step(values, gradients, lr)
        parts = {key: key.partition("/") for key in moved}
        return {key: self.method.after_step(name, moved[key], self.of(moved, int(m)), lr)
                for key, (m, _, name) in parts.items()}

    def score(self, values: Vars) -> dict[str, float]:
        """Of the shots held out, each by the fit that did not see it."""
        if not self.held_out:
            return {}
        logits = [keep_unseen(self.method.forward(self.of(values, m), rows).numpy(), zero_shot, self.task.seen)
                  for m, (rows, zero_shot) in enumerate(self.held_out)]
        return scores(np.concatenate(logits), self.tested)

    def loss(self, values: Vars, step: int) -> jt.Var:
        """The sum over the fits of their mean cross-entropy over the seen classes (+ penalty)."""
        if step % self.steps == 0:
            self.batches = [np.array_split(self.rng.permutation(len(fit.kept)), self.steps) for fit in self.fits]
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
                self.said.append((own.detach(), (jt.argmax(logits, 1)[0] == y).detach(), share))
            extra = self.method.penalty(p, x, logits, self.rng)
            total = total + (own if extra is None else own + extra)
        return total

    def watch(self, step: int, objective: jt.Var, gradients: Vars, values: Vars) -> None:
        """Keep the epoch's scores, and its parameters where they are the ones to choose."""
        self.said[-1:] = [(one.item(), float(hit.numpy().mean()), share) for one, hit, share in self.said[-1:]]
        if step % self.steps < self.steps - 1:
            return
        best = max((one["held_out_soft_top1"] for one in self.history), default=0.0) if self.held_out else 0.0
        loss, hits = (sum(one[place] * one[2] for one in self.said) / len(self.task) for place in (0, 1))
        self.history.append({"epoch": step // self.steps + 1, "loss": loss, "train_top1": 100 * hits,
                             **self.score(values)})
        self.said.clear()
        chooses = bool(self.held_out) and self.method.choose_epoch
        if not chooses or self.history[-1]["held_out_soft_top1"] > best:
            self.kept, self.epoch = values, step // self.steps + 1
