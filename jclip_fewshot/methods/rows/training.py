"""Training on the shots: the folds and the whole side by side, AdamW, cosine schedule, the epoch by held-out shots.

A trained head describes ONE fit: what it starts from (`start`) and how it answers (`answer`). `train` runs k + 1
of them in step: fit j < k leaves fold j out and is scored on it after each epoch, the last one sees every shot.
So the curve that picks the epoch, the ratios chosen afterwards and `held_out_logits` all come from fits that did
not see the shot they answer for. Each fit is 2-d throughout: Jittor's batched product on the CPU is a plain loop.

Borrowed residuals (`augment`): a training row is x = f_i + s r, renormalised, where r is the residual (f_j - mean
of j's class) of another shot of the same fit, drawn again in each step. Classes of one data set vary alike (pose,
light, crop), which is what GDA's shared covariance says; here the shots themselves say it (measured: docs/heads.md).

Letters: S shots, K classes, D feature width, B batch, M = k + 1 fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.adamw import AdamW
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import softmax, unit_rows, var
from jclip_fewshot.console import progress
from jclip_fewshot.methods.base import Method, keep_unseen, log_loss, top1
from jclip_fewshot.task import Fold, Task, class_means

Arrays = dict[str, np.ndarray]
Vars = dict[str, "jt.Var"]  # a name: evaluating it would start Jittor
MAX_STEPS = 8  # an epoch: with more shots batches grow instead, so that schedules mean the same
CHUNK = 4096  # rows answered at a time


def fits_of(task: Task) -> list[Fold]:
    """The folds, then the fit on all shots; that one alone where nothing can be left out."""
    return [*task.folds(), Fold.whole(task)]


def residuals(task: Task) -> np.ndarray:
    """f − mean of its class, unbiased, (S, D) float32; 0 for a shot that is the only one of its class."""
    count = task.counts[task.labels][:, None]
    rest = task.features - class_means(task)[task.labels]
    return (rest * np.sqrt(count / np.maximum(count - 1, 1))).astype(np.float32)


def borrowed(features: np.ndarray, bank: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """`features` (B, D), each moved by `strength` times a row drawn from `bank`, renormalised."""
    if not strength or not len(bank) or not len(features):
        return features
    moved = features + np.float32(strength) * bank[rng.integers(len(bank), size=len(features))]
    return unit_rows(moved)


def random_weights(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) uniform within 1/sqrt(rows), as torch and Jittor start a linear layer."""
    return (rng.uniform(-1, 1, (rows, columns)) / np.sqrt(rows)).astype(np.float32)


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
    return {"held_out_loss": log_loss(logits, labels), "held_out_top1": top1(logits, labels),
            "held_out_soft_top1": soft_top1(logits, labels)}


@dataclass(frozen=True)
class Trained:
    """The fits at the chosen epoch."""

    fits: list[Fold]
    learned: list[Arrays]  # of each fit: constants and parameters, all that `answer` reads
    epoch: int  # 0: the start
    history: list[dict]


class TrainedHead(Method):
    """A head that is trained by gradient descent. Subclasses give `start`, `answer`, perhaps `penalty`.

    epochs, batch (rows a step), lr, weight_decay, eps: AdamW with a cosine schedule to zero. augment: strength of
    the borrowed residuals. choose_epoch: keep the epoch with the best held-out soft top-1, not the last one.
    ratios: {name of a constant: values to try} after training, by held-out soft top-1. seed: same seed, same bytes.
    """

    state_names = ("learned_",)
    trains = True
    epochs, batch, lr, weight_decay, eps = 20, 256, 1e-3, 0.0, 1e-8
    augment, choose_epoch, seed = 0.0, True, 0
    ratios: dict[str, Sequence[float]] = {}

    @classmethod
    def make(cls, seed: int) -> TrainedHead:
        return cls(seed=seed)

    def __init__(self, **settings):
        for name, value in settings.items():
            if name.startswith("_") or not hasattr(type(self), name) or callable(getattr(type(self), name)):
                raise TypeError(f"{self.name} has no setting {name!r}")
            setattr(self, name, value)

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        """(constants, parameters) before the first step; a constant is never trained."""
        raise NotImplementedError

    def answer(self, p: Vars, x: jt.Var) -> jt.Var:
        """Logits (B, K) of rows x (B, D) on CLIP's scale; `p` holds constants and parameters."""
        raise NotImplementedError

    def penalty(self, p: Vars, x: jt.Var, logits: jt.Var, rng: np.random.Generator) -> jt.Var | None:
        """Added to the cross-entropy of the batch x; None adds nothing."""
        return None

    def settle(self, name: str, value: jt.Var, p: Vars, rate: float) -> jt.Var:
        """A parameter after each step of learning rate `rate`: for what is better solved than descended."""
        return value

    def _fit(self, task: Task) -> None:
        trained = train(self, task)
        self.history_ = trained.history
        self.settings_ = {"epoch": trained.epoch, "epochs": self.epochs, "lr": self.lr, "augment": self.augment,
                          "chosen_by": "held-out soft top-1" if len(trained.fits) > 1 else "fixed"}
        self._choose(trained)

    def _choose(self, trained: Trained) -> None:
        """Takes over what was trained, with the ratios that the held-out shots like best."""
        task, folds = trained.fits[-1].task, trained.fits[:-1]
        names = list(self.ratios) if folds else []
        best = None
        for values in itertools.product(*(self.ratios[name] for name in names)):
            chosen = {name: np.float32([value]) for name, value in zip(names, values)}
            held_out = task.zero_shot(task.features)
            tested = np.zeros(len(task), bool)
            for fit, learned in zip(folds, trained.learned):
                held_out[fit.left_out] = keep_unseen(
                    self._ask({**learned, **chosen}, task.features[fit.left_out]), held_out[fit.left_out],
                    task.seen)
                tested[fit.left_out] = True
            score = soft_top1(held_out[tested], task.labels[tested])
            if best is None or score > best[0]:
                best = score, dict(zip(names, map(float, values))), chosen, held_out, tested
        _, scalars, chosen, self._trained_held_out, tested = best
        self.learned_ = {**trained.learned[-1], **chosen}
        self.settings_.update(scalars)
        if folds:
            self.settings_.update(scores(self._trained_held_out[tested], task.labels[tested]))

    def _ask(self, learned: Arrays, features: np.ndarray) -> np.ndarray:
        p = {name: var(value) for name, value in learned.items()}
        parts = [self.answer(p, var(features[i:i + CHUNK])).numpy() for i in range(0, len(features), CHUNK)]
        return np.concatenate(parts)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return self._ask(self.learned_, features)

    def _held_out_logits(self, task: Task) -> np.ndarray:
        return self._trained_held_out

    def state(self) -> Arrays:
        state = super().state()
        if "learned_" in state:
            del state["learned_"]
            state.update({f"learned.{name}": value for name, value in self.learned_.items()})
        return state

    @classmethod
    def from_state(cls, state: Arrays) -> TrainedHead:
        learned = {name[len("learned."):]: np.asarray(v) for name, v in state.items() if name.startswith("learned.")}
        rest = {name: v for name, v in state.items() if not name.startswith("learned.")}
        head = super().from_state({**rest, "learned_": np.zeros(0)} if learned else rest)
        if learned:
            head.learned_ = learned
        return head


def train(head: TrainedHead, task: Task) -> Trained:
    """Minimises the mean cross-entropy over the seen classes (+ penalty) of every fit, all fits in step.

    A class without a shot takes no part in the softmax, or training would push it under its seen neighbours
    (`base.keep_unseen` puts it back). Epoch 0, the start, may be the one chosen.
    """
    rng = np.random.default_rng(head.seed)
    fits = fits_of(task)
    starts = [head.start(fit.task, np.random.default_rng(head.seed)) for fit in fits]
    constants = [{name: var(value) for name, value in start[0].items()} for start in starts]
    names = list(starts[0][1])
    width = len(names)
    values = [var(start[1][name]) for start in starts for name in names]
    closed = None if task.seen.all() else var(-1e9 * ~task.seen[None])
    banks = [residuals(fit.task)[fit.task.can_be_left_out] for fit in fits]
    held_out = [(fit, var(task.features[fit.left_out]), task.zero_shot(task.features[fit.left_out]))
                for fit in fits[:-1]]
    tested = np.concatenate([task.labels[fit.left_out] for fit in fits])
    stepper = AdamW(head.lr, head.weight_decay, head.eps)
    steps = min(MAX_STEPS, max(1, -(-len(task) // head.batch)))

    def of(m: int) -> Vars:
        return {**constants[m], **dict(zip(names, values[m * width:(m + 1) * width]))}

    def score() -> dict:
        if not held_out:
            return {}
        logits = np.concatenate([keep_unseen(head.answer(of(m), rows).numpy(), zero_shot, task.seen)
                                 for m, (fit, rows, zero_shot) in enumerate(held_out)])
        return scores(logits, tested)

    history = [{"epoch": 0, **score()}]
    kept, epoch = list(values), 0
    epochs = head.epochs if task.seen.sum() > 1 else 0  # one class alone: nothing to tell apart
    for e in progress(range(1, epochs + 1), stage=head.name, unit="epochs"):
        batches = [np.array_split(rng.permutation(len(fit.kept)), steps) for fit in fits]
        losses, hits = [], []  # of the fit on all shots
        for s in range(steps):
            pace = 0.5 * (1 + np.cos(np.pi * ((e - 1) * steps + s) / (epochs * steps)))
            objective = 0
            for m, fit in enumerate(fits):
                rows = batches[m][s]
                if len(rows) == 0:  # a fold with fewer shots than steps
                    continue
                share = len(rows)
                if share == 1:  # Jittor 1.3.11 cannot compile the gradient of a mean over one row
                    rows = np.repeat(rows, 2)
                x = var(borrowed(fit.task.features[rows], banks[m], head.augment, rng))
                y = jt.array(fit.task.labels[rows].astype(np.int32))
                p = of(m)
                logits = head.answer(p, x)
                loss = cross_entropy(logits if closed is None else logits + closed, y)
                if m == len(fits) - 1:
                    losses.append((loss * float(share)).detach())
                    hits.append(((jt.argmax(logits, 1)[0] == y).float32().mean() * float(share)).detach())
                extra = head.penalty(p, x, logits, rng)
                objective = objective + (loss if extra is None else loss + extra)
            values = stepper.step(values, jt.grad(objective, values), pace)
            values = [head.settle(names[i % width], value, of(i // width), head.lr * pace)
                      for i, value in enumerate(values)]
            jt.sync(values + stepper.means + stepper.squares + losses[-1:] + hits[-1:])
        history.append({"epoch": e, "loss": float(sum(v.item() for v in losses) / len(task)),
                        "train_top1": float(100 * sum(v.item() for v in hits) / len(task)), **score()})
        better = held_out and history[-1]["held_out_soft_top1"] > max(h["held_out_soft_top1"] for h in history[:-1])
        if better or not (held_out and head.choose_epoch):
            kept, epoch = list(values), e
    arrays = [value.numpy() for value in kept]
    learned = [{**start[0], **dict(zip(names, arrays[m * width:(m + 1) * width]))} for m, start in enumerate(starts)]
    jt.sync_all()
    jt.gc()
    return Trained(fits, learned, epoch, history)
