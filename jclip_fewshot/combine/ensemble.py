"""The heads' answers as one: a logarithmic opinion pool, its weights learned on the shots, held out.

Pool: Genest and Zidek 1986, Hinton 2002 (products of experts). Weights on held-out rows: stacking, Wolpert 1992.

    p(c | x) ∝ exp(Σ_m w_m log p_m(c | x) + b_c),   p_m = softmax(a_m logits_m)

    a_m   inverse temperature of head m alone
    w     mean of two minima of  Σ_s v_s (-log p(y_s | x_s))  +  κ Σ_m (w_m log(w_m / q_m) - w_m + q_m),   w ≥ 0:
          q equal, κ = 10 shots' evidence; and q few strong heads, κ = 30: q_m ∝ exp(-z_m² / 2) + 0.1 / M, z_m how many
          standard errors head m's held-out log-loss lies above the best head's, paired by shot
    b     minimises  Σ_s v_s (-log p(y_s | x_s))  +  ½ ρ Σ_c b_c²,   w as found; ρ = 4 shots' evidence

x_s are the shots, each answered by fits that did not see it; v_s = mean shots a class / shots of y_s, so that all
classes count alike. Each problem is convex. Σ w is free, so p comes out calibrated. What each part gives, and how
one-shot tasks and classes without shots are answered: docs/ensemble.md.

Letters: M heads, N rows, S shots, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend.numerics import log_softmax, log_sum_exp, softmax, temperature
from jclip_fewshot.console import warn
from jclip_fewshot.task import Task

EVIDENCE_FOR_EQUAL = 10.0  # κ of equal heads, in shots
EVIDENCE_FOR_STRONG = 30.0  # κ of few strong heads, in shots
LEFT_TO_WEAK = 0.1  # of the second prior: a head that stands far behind may still err elsewhere
EVIDENCE_FOR_FLAT = 4.0  # ρ, in shots
MAX_COLUMNS = 96  # classes a shot that take part in the search for w: the most likely ones
BIAS_STEPS = 100  # of the search for the class bias, at most
CLASS_GROUPS = 5  # called unseen in turn
OFFSETS = np.arange(0, 4.01, 0.25)  # o searched, in nats
FLOOR = 1e-30  # least probability: log and products stay finite


@dataclass(frozen=True)
class Pool:
    """a, w (M,), b (K seen,), and whether the searches for them came to an end."""

    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    converged: bool = True

    def __call__(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """M logits (N, K) → log p (N, K)."""
        total = np.repeat(self.bias[None].astype(np.float32), len(logits[0]), axis=0)
        for scale, weight, one in zip(self.scale, self.weights, logits):
            if weight > 0:
                total += np.float32(weight) * log_softmax(np.float32(scale) * one)
        return log_softmax(total)


def stack_weights(log_probs: np.ndarray, labels: np.ndarray, row_weights: np.ndarray, prior: np.ndarray,
                  kappa: float) -> tuple[np.ndarray, bool]:
    """One minimum w (M,) of the file's head under the prior q, and whether the search came to its end.
    log_probs (M, S, R), labels into its last axis; prior (M,) > 0."""
    from scipy.optimize import minimize  # half a second that only a fit should wait for

    C = log_probs - log_probs[:, np.arange(len(labels)), labels][:, :, None]

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        # einsum: waking BLAS's threads for so little, in turns with SciPy's own, takes longer than the sums
        total = np.einsum("m,msr->sr", w.astype(np.float32), C)
        lse = log_sum_exp(total)
        p = np.exp(total - lse) * row_weights[:, None].astype(np.float32)
        drawn = np.log(w / prior)
        return (float((row_weights * lse[:, 0]).sum()) + kappa * float((w * drawn - w + prior).sum()),
                np.einsum("msr,sr->m", C, p).astype(np.float64) + kappa * drawn)

    # ftol: what float32 sums of S terms can tell apart
    found = minimize(objective, prior, jac=True, method="L-BFGS-B", bounds=[(1e-9, None)] * len(prior),
                     options={"maxiter": 200, "ftol": 1e-8, "gtol": 1e-3})
    stuck = "ABNORMAL" in str(found.message)  # no descent left within float32
    return np.where(found.x > 1e-6, found.x, 0), bool(found.success or stuck)


def strong_heads(log_probs: np.ndarray, labels: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
    """q (M,) of the second prior, from paired differences of the held-out log-loss: (M, S, K), (S,), (S,)."""
    losses = -row_weights * log_probs[:, np.arange(len(labels)), labels]  # (M, S)
    behind = losses - losses[losses.mean(axis=1).argmin()]
    error = behind.std(axis=1) / np.sqrt(len(labels))
    z = behind.mean(axis=1) / np.maximum(error, 1e-9)  # 0 for the best
    likely = np.exp(-0.5 * z ** 2)
    return (1 - LEFT_TO_WEAK) * likely / likely.sum() + LEFT_TO_WEAK / len(likely)


def class_bias(log_probs: np.ndarray, labels: np.ndarray, row_weights: np.ndarray) -> tuple[np.ndarray, bool]:
    """b (K,) of the file's head, and whether it was found. log_probs (S, K).
    The Hessian, Σ v (diag p - p pᵀ) + ρ, lies under diag(mass) + ρ: each step of that size goes down."""
    num_classes = log_probs.shape[1]
    wanted = np.bincount(labels, weights=row_weights, minlength=num_classes)
    b = np.zeros(num_classes)
    for _ in range(BIAS_STEPS):
        mass = row_weights @ softmax(log_probs + b[None].astype(np.float32))
        step = (mass - wanted + EVIDENCE_FOR_FLAT * b) / (mass + EVIDENCE_FOR_FLAT)
        b -= step
        if np.abs(step).max() < 1e-3:
            return b, True
    return b, False


def fit_pool(logits: Sequence[np.ndarray], labels: np.ndarray, scale: np.ndarray | None = None) -> Pool:
    """The pool of M held-out logits (S, K), all classes seen; a where given is `scale`."""
    counts = np.bincount(labels, minlength=logits[0].shape[1])
    row_weights = counts[counts > 0].mean() / counts[labels]
    if scale is None:
        scale = np.array([temperature(one, labels, row_weights) for one in logits])
    log_probs = np.empty((len(logits), *logits[0].shape), np.float32)
    for one, a, out in zip(logits, scale, log_probs):
        out[:] = log_softmax(np.float32(a) * one)

    equal = np.full(len(logits), 1 / len(logits))
    strong = strong_heads(log_probs, labels, row_weights)
    columns, place = most_likely(log_probs.mean(axis=0), labels, MAX_COLUMNS)
    few = np.take_along_axis(log_probs, columns[None], axis=2) if columns is not None else log_probs
    found = [stack_weights(few, place, row_weights, prior, evidence)
             for prior, evidence in ((equal, EVIDENCE_FOR_EQUAL), (strong, EVIDENCE_FOR_STRONG))]
    weights = np.mean([w for w, _ in found], axis=0)
    bias, found_bias = class_bias(np.tensordot(weights.astype(np.float32), log_probs, 1), labels, row_weights)
    return Pool(scale, weights, bias, found_bias and all(converged for _, converged in found))


def most_likely(log_probs: np.ndarray, labels: np.ndarray, limit: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The `limit` best columns of each row (S, limit), its label's among them, and where that stands (S,).
    None for the columns where there are no more than `limit`."""
    if log_probs.shape[1] <= limit:
        return None, labels
    ranked = log_probs.copy()
    ranked[np.arange(len(labels)), labels] = np.inf
    columns = np.argpartition(-ranked, limit - 1, axis=1)[:, :limit]
    return columns, (columns == labels[:, None]).argmax(axis=1)


def text_explains(task: Task) -> float:
    """q in 0..1: the fraction of the label entropy ln K that zero-shot explains on the shots, at its best temperature.
    Zero-shot has learned nothing from them: with one shot a class it is all that they can judge."""
    columns, labels = task.seen_labels()
    if len(columns) < 2:
        return 1.0
    logits, ones = task.zero_shot(task.features)[:, columns], np.ones(len(labels))
    log_probs = log_softmax(np.float32(temperature(logits, labels, ones)) * logits)
    return float(np.clip(1 + log_probs[np.arange(len(labels)), labels].mean() / np.log(len(columns)), 0, 1))


def untested_weights(names: Sequence[str], task: Task, ignore_text: Sequence[str] = (),
                     ignore_shots: Sequence[str] = ()) -> tuple[np.ndarray, dict[str, float]]:
    """Weights (M,) where no shot can be left out: q² for the heads with text together, 1 − q for those without.
    One that ignores the shots counts among the former only where it is alone: the others contain it."""
    probes = np.array([name in ignore_text for name in names])
    q = text_explains(task) if len(task) else 1.0
    with_text = ~probes
    if len(task) and (learned := with_text & np.array([name not in ignore_shots for name in names])).any():
        with_text = learned
    weights = np.where(probes, (1 - q) / max(probes.sum(), 1), with_text * q ** 2 / max(with_text.sum(), 1))
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(names), 1 / len(names))
    return weights, {"text_explains": q} if len(task) else {}


class Ensemble:
    """The heads' logits → calibrated probabilities.

    After `fit`: `settings_` (weights, offset, held-out scores), and `held_out_probs_` (S, K): the shots' own
    probabilities, each from a pool fitted without the shots of its fold.
    """

    def fit(self, held_out: dict[str, np.ndarray], task: Task, ignore_text: Sequence[str] = (),
            ignore_shots: Sequence[str] = ()) -> Ensemble:
        """held_out: each head's `held_out_logits()` of the shots, (S, K). ignore_text: heads that answer by the shots
        alone. ignore_shots: by the text alone. Return self."""
        if not held_out:
            raise ValueError("ensemble: needs at least one head")
        self.names_: list[str] = list(held_out)
        logits = self._gather(held_out)
        if logits[0].shape != (len(task), task.num_classes):
            raise ValueError(f"ensemble: held-out logits {logits[0].shape} of {len(task)} shots "
                             f"and {task.num_classes} classes")
        self.seen_, self.offset_ = task.seen, 0.0
        self.fold_pools_: list[Pool] = []
        usable = task.can_be_left_out
        if not usable.any():
            prior, found = untested_weights(self.names_, task, ignore_text, ignore_shots)
            self.pool_ = Pool(np.ones(len(prior)), prior, np.zeros(int(task.seen.sum()) or task.num_classes))
            self.held_out_probs_ = self._probs(logits)
            self.settings_ = {"weights": self._named(prior), "chosen_by": "fixed: nothing can be left out", **found}
            return self

        columns, labels = task.seen_labels()
        inner = logits if task.seen.all() else [one[:, columns] for one in logits]
        self.pool_ = fit_pool(inner if usable.all() else [one[usable] for one in inner], labels[usable])
        crossed = self._cross_fitted(inner, labels, task)
        converged = all(pool.converged for pool in (self.pool_, *self.fold_pools_))
        if not converged:
            warn("ensemble: the search for the heads' weights did not converge; they are near the best, not the best")
        if not task.seen.all():
            zero_shot = log_softmax(task.zero_shot(task.features[usable]))
            self.offset_, found = unseen_offset(crossed[usable], zero_shot, task.labels[usable], task.seen,
                                                task.domains)
        self.held_out_probs_ = self._with_unseen(crossed, logits)
        chance = self.held_out_probs_[usable, task.labels[usable]]
        hits = self.held_out_probs_[usable].argmax(axis=1) == task.labels[usable]
        self.settings_ = {"weights": self._named(self.pool_.weights), "chosen_by": "held-out log-loss",
                          "converged": converged, "bias_spread": float(self.pool_.bias.std()),
                          "held_out_loss": float(-np.log(np.maximum(chance, FLOOR)).mean()),
                          "held_out_top1": float(100 * hits.mean())}
        if not task.seen.all():
            self.settings_.update(unseen_offset=self.offset_, **found)
        return self

    def probs(self, logits: dict[str, np.ndarray]) -> np.ndarray:
        """Each head's (N, K) logits → (N, K) float32 probabilities."""
        return self._probs(self._gather({name: logits[name] for name in self.names_}))

    def state(self) -> dict[str, np.ndarray]:
        pools = [self.pool_, *self.fold_pools_]  # all with the same scale
        return {"names": np.array(self.names_), "scale": self.pool_.scale,
                "weights": np.stack([pool.weights for pool in pools]), "bias": np.stack([pool.bias for pool in pools]),
                "seen": self.seen_, "offset": np.array(self.offset_)}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Ensemble:
        """The inverse of `state`, for `probs` alone. Raise KeyError if an array is missing."""
        ensemble = cls()
        ensemble.names_ = [str(name) for name in state["names"]]
        ensemble.pool_, *ensemble.fold_pools_ = [
            Pool(np.asarray(state["scale"], float), weights, bias)
            for weights, bias in zip(np.asarray(state["weights"], float), np.asarray(state["bias"], float))]
        ensemble.seen_, ensemble.offset_ = np.asarray(state["seen"], bool), float(state["offset"])
        return ensemble

    def _gather(self, logits: dict[str, np.ndarray]) -> list[np.ndarray]:
        arrays = [np.asarray(value, np.float32) for value in logits.values()]
        for name, array in zip(logits, arrays):
            if array.ndim != 2 or array.shape != arrays[0].shape:
                raise ValueError(f"ensemble: {name}'s logits have shape {array.shape}, not {arrays[0].shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"ensemble: the logits of {name} hold a value that is not finite")
        return arrays

    def _named(self, weights: np.ndarray) -> dict[str, float]:
        return {name: round(float(weight), 4) for name, weight in zip(self.names_, weights)}

    def without_fold(self, fold: int) -> Ensemble:
        """The ensemble whose pool did not see the shots that fold number `fold` of the task leaves out."""
        other = copy.copy(self)
        other.pool_ = self.fold_pools_[fold]
        return other

    @property
    def class_bias(self) -> np.ndarray:
        """b (K,) of the pool; 0 for classes without shots."""
        bias = np.zeros(len(self.seen_))
        bias[self.seen_ if self.seen_.any() else slice(None)] = self.pool_.bias
        return bias

    def _cross_fitted(self, inner: Sequence[np.ndarray], labels: np.ndarray, task: Task) -> np.ndarray:
        """log p (S, K seen) of every shot by a pool that did not see the shots of its fold."""
        crossed = self.pool_(inner)
        for fold in task.folds():
            rest = task.can_be_left_out.copy()
            rest[fold.left_out] = False
            self.fold_pools_.append(fit_pool([one[rest] for one in inner], labels[rest], self.pool_.scale)
                                    if rest.any() else self.pool_)
            crossed[fold.left_out] = self.fold_pools_[-1]([one[fold.left_out] for one in inner])
        return crossed

    def _probs(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        if not self.seen_.any():
            return _normalised(self.pool_(logits))
        return self._with_unseen(self.pool_([one[:, self.seen_] for one in logits]), logits)

    def _with_unseen(self, log_seen: np.ndarray, logits: Sequence[np.ndarray]) -> np.ndarray:
        """log p among the seen (N, K seen) and the heads' M logits (N, K) → probabilities (N, K)."""
        if self.seen_.all():
            return _normalised(log_seen)
        log_unseen = np.mean([log_softmax(one)[:, ~self.seen_] for one in logits], axis=0)
        return _normalised(join(log_seen, log_unseen, self.seen_, self.offset_))


def _normalised(log_probs: np.ndarray) -> np.ndarray:
    """log p up to a constant → float32 rows that sum to 1, none of them 0."""
    p = np.maximum(softmax(log_probs.astype(np.float64)), FLOOR)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def join(log_seen: np.ndarray, log_unseen: np.ndarray, seen: np.ndarray, offset: float) -> np.ndarray:
    """log p (N, K) up to a constant: unseen as given, plus `offset`; the seen share what that leaves at 0."""
    joined = np.empty((len(log_seen), len(seen)), np.float64)
    left = np.log1p(-np.minimum(np.exp(log_sum_exp(log_unseen.astype(np.float64))), 1 - 1e-9))
    joined[:, seen] = log_seen + left
    joined[:, ~seen] = log_unseen + offset
    return joined


def unseen_offset(log_seen: np.ndarray, zero_shot: np.ndarray, labels: np.ndarray, seen: np.ndarray,
                  domains: np.ndarray) -> tuple[float, dict]:
    """o, and top-1 of hidden and other shots with it, when each class in turn is called unseen, a fifth at a time.

    log_seen (S, K seen): the pool's held-out log p; zero_shot (S, K): log p; labels (S,) into all K. o is the least of
    OFFSETS at which the shots of hidden classes are found as often as by zero-shot, or the best where none is enough.
    """
    columns = np.flatnonzero(seen)
    order = np.random.default_rng(0).permutation(len(columns))
    order = order[np.argsort(domains[columns][order], kind="stable")]  # every domain spread over the groups
    group = np.empty(len(columns), np.int64)
    group[order] = np.arange(len(columns)) % CLASS_GROUPS
    zero_shot_hit = zero_shot.argmax(axis=1) == labels

    hidden_hits, other_hits = np.zeros(len(OFFSETS)), np.zeros(len(OFFSETS))
    hidden_total = other_total = 0
    for g in range(CLASS_GROUPS):
        hidden = ~seen
        hidden[columns[group == g]] = True
        if hidden.all() or not (group == g).any():
            continue
        joined = join(log_softmax(log_seen[:, group != g]), zero_shot[:, hidden], ~hidden, 0.0)
        best_hidden, best_open = joined[:, hidden].max(axis=1), joined[:, ~hidden].max(axis=1)
        own = joined[np.arange(len(labels)), labels]
        lead = best_open - best_hidden
        is_hidden = hidden[labels]
        first = own >= np.where(is_hidden, best_hidden, best_open)  # among the classes on its side
        hidden_hits += [(first & is_hidden & (lead <= o)).sum() for o in OFFSETS]
        other_hits += [(first & ~is_hidden & (lead > o)).sum() for o in OFFSETS]
        hidden_total += is_hidden.sum()
        other_total += (~is_hidden).sum()
    if not hidden_total:
        return 0.0, {}
    enough = np.flatnonzero(hidden_hits >= zero_shot_hit.sum() * hidden_total / len(labels))
    chosen = enough[0] if len(enough) else int(hidden_hits.argmax())
    return float(OFFSETS[chosen]), {
        "held_out_top1_called_unseen": float(100 * hidden_hits[chosen] / hidden_total),
        "held_out_top1_called_unseen_zero_shot": float(100 * zero_shot_hit.mean()),
        "held_out_top1_others": float(100 * other_hits[chosen] / max(other_total, 1))}
