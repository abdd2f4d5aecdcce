"""Linear probe: multinomial logistic regression on image features alone. Radford et al. 2021, section 3.2
(https://arxiv.org/abs/2103.00020), and the contest's own baseline (scikit-learn, C = 8.96).

    minimise  C Σ_s −log softmax(W f_s + b)[y_s] + ½ ‖W‖²,   logits = W x + b

Symbols: W (K, D), b (K,), not penalised; C inverse strength of the penalty. The minimum is unique (b up to a common
constant): by L-BFGS (Liu and Nocedal 1989) on centred features, whose condition number is a tenth; only b moves by it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import matmul, product, var
from jclip_fewshot.console import progress
from jclip_fewshot.methods.base import SHOTS, Method, held_out_scores
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.task import Task

MAX_ITERATIONS = 200
MEMORY = 10  # steps that L-BFGS remembers


class Minimum(NamedTuple):
    """Where L-BFGS stopped, the objective after each iteration, and whether it had stopped falling."""

    at: np.ndarray
    trace: list[float]
    converged: bool


def lbfgs(objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray,
          tolerance: float = 1e-5) -> Minimum:
    """Limited-memory BFGS with Armijo backtracking; `objective` gives value and gradient at an array.

    Converged: the objective fell by less than `tolerance` of itself, three times running. In float32 this is faster
    than SciPy's, and ends lower.
    """
    at, (value, gradient) = start, objective(start)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []  # the last steps, and by how much each changed the gradient
    trace, still = [value], 0
    while len(trace) <= MAX_ITERATIONS and still < 3 and gradient.any():
        direction, weights = -gradient, []
        for s, g in reversed(pairs):
            weights.append(np.vdot(s, direction) / np.vdot(s, g))
            direction = direction - weights[-1] * g
        scale = np.vdot(*pairs[-1]) / np.vdot(pairs[-1][1], pairs[-1][1]) if pairs else 1 / np.linalg.norm(gradient)
        direction = direction * scale
        for (s, g), weight in zip(pairs, reversed(weights)):
            direction = direction + (weight - np.vdot(g, direction) / np.vdot(s, g)) * s
        slope, size = np.vdot(gradient, direction), np.float32(1)
        while True:
            new = at + size * direction
            new_value, new_gradient = objective(new)
            if new_value <= value + 1e-4 * size * slope or size < 1e-6:
                break
            size /= 2
        if new_value > value:
            return Minimum(at, trace, True)  # no descent left within float32
        step, change = new - at, new_gradient - gradient
        if np.vdot(step, change) > 1e-10 * np.vdot(change, change):
            pairs = [*pairs, (step, change)][-MEMORY:]
        still = still + 1 if value - new_value < tolerance * abs(value) else 0
        at, value, gradient = new, new_value, new_gradient
        trace.append(value)
    return Minimum(at, trace, still == 3 or not gradient.any())


def logistic_regression(task: Task, C: float) -> tuple[np.ndarray, np.ndarray, Minimum]:
    """W (K, D), b (K,) and how the solver went; rows of classes without shots are zero."""
    seen, labels = task.seen_labels()
    mean = task.features.mean(axis=0)
    x, y = var(task.features - mean), jt.array(labels.astype(np.int32))

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = var(weights[:, :-1]), var(weights[:, -1])
        loss = C * len(task) * cross_entropy(product(x, w) + b, y) + 0.5 * (w * w).sum()
        dw, db = jt.grad(loss, [w, b])
        jt.sync([loss, dw, db])
        return float(loss.item()), np.concatenate([dw.numpy(), db.numpy()[:, None]], axis=1)

    found = lbfgs(objective, np.zeros((len(seen), x.shape[1] + 1), np.float32))
    W, b = np.zeros_like(task.text), np.zeros(task.num_classes, np.float32)
    W[seen] = found.at[:, :-1]
    b[seen] = found.at[:, -1] - W[seen] @ mean
    return W, b, found


class LinearProbe(Method):
    """C: inverse strength of the penalty, the contest's 8.96."""

    name, title, paper = "linear_probe", "Linear probe", "Radford et al. 2021"
    needs = frozenset({SHOTS})
    trains = ignores_text = True
    state_names = ("weight_", "bias_")
    C = 8.96

    def _fit(self, task: Task) -> None:
        held_out, task = task.zero_shot(task.features), task.evidence
        fits, all_converged = fits_of(task), True
        for fit in progress(fits, stage=self.name, unit="fits"):
            W, b, found = logistic_regression(fit.task, self.C)
            all_converged &= found.converged
            held_out[fit.left_out] = matmul(task.features[fit.left_out], W.T) + b
        self.weight_, self.bias_, self.fold_logits_ = W, b, held_out
        self.history_ = [{"epoch": i, "loss": value / (self.C * len(task))} for i, value in enumerate(found.trace)]
        self.settings_ = {"C": self.C, "iterations": len(found.trace) - 1, "chosen_by": "fixed"}
        self._record_converged(all_converged)
        tested = np.concatenate([fit.left_out for fit in fits])
        if len(tested):
            self.settings_.update(held_out_scores(held_out[tested], task.labels[tested]))

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.evidence_rows(features), self.weight_.T) + self.bias_
