"""Linear probe: multinomial logistic regression on image features alone. Radford et al. 2021, section 3.2
(https://arxiv.org/abs/2103.00020), and the contest's own baseline (scikit-learn, C = 8.96).

    minimise  C Σ_s −log softmax(W f_s + b)[y_s] + ½ ‖W‖²,   logits = W x + b

Symbols: W (K, D), b (K,), not penalised; C inverse strength of the penalty. The minimum is unique (b up to a common
constant): by SciPy's L-BFGS on centred features, whose condition number is a tenth; only b moves by it.
"""

import math

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import matmul, product, var
from jclip_fewshot.console import progress
from jclip_fewshot.methods.base import SHOTS, Method, held_out_scores
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.task import Task

MAX_ITERATIONS = 200
TOLERANCE = 2e-6  # of the objective's fall in an iteration, as a share of itself


def logistic_regression(task: Task, C: float) -> tuple[np.ndarray, np.ndarray, list[float], bool]:
    """W (K, D), b (K,), the objective after each iteration, and whether it had stopped falling; rows of classes without
    shots are zero."""
    from scipy.optimize import minimize  # half a second that only a fit should wait for
    seen, labels = task.seen_labels()
    mean, shape = task.features.mean(axis=0), (len(seen), task.text.shape[1] + 1)
    x, y = var(task.features - mean), jt.array(labels.astype(np.int32))
    values, trace = list[float](), list[float]()

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        both = weights.reshape(shape).astype(np.float32)
        w, b = var(both[:, :-1]), var(both[:, -1])
        loss = C * len(task) * cross_entropy(product(x, w) + b, y) + 0.5 * (w * w).sum()
        dw, db = jt.grad(loss, [w, b])
        jt.sync([loss, dw, db])
        values.append(float(loss.item()))
        return values[-1], np.concatenate([dw.numpy(), db.numpy()[:, None]], axis=1).reshape(-1)

    found = minimize(objective, np.zeros(math.prod(shape)), jac=True, method="L-BFGS-B",
                     callback=lambda _: trace.append(values[-1]),
                     options={"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE, "gtol": 0.0})
    W, b = np.zeros_like(task.text), np.zeros(task.num_classes, np.float32)
    best = found.x.reshape(shape)
    W[seen] = best[:, :-1]
    b[seen] = best[:, -1] - W[seen] @ mean
    return W, b, [values[0], *trace], found.status != 1  # 1: out of iterations; 2: no descent left within float32


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
            W, b, trace, converged = logistic_regression(fit.task, self.C)
            all_converged &= converged
            held_out[fit.left_out] = matmul(task.features[fit.left_out], W.T) + b
        self.weight_, self.bias_, self.fold_logits_ = W, b, held_out
        self.history_ = [{"epoch": i, "loss": value / (self.C * len(task))} for i, value in enumerate(trace)]
        self.settings_ = {"C": self.C, "iterations": len(trace) - 1, "chosen_by": "fixed"}
        self._record_converged(all_converged)
        tested = np.concatenate([fit.left_out for fit in fits])
        if len(tested):
            self.settings_.update(held_out_scores(held_out[tested], task.labels[tested]))

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.evidence_rows(features), self.weight_.T) + self.bias_
