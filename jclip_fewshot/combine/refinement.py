"""The refinement of a whole test set: better probabilities for the set from each image's own.

EM-Dirichlet (dirichlet.py) supposes few classes present and loses the answer where all of them are. Here each
image's calibrated probabilities stay in the sum for good, and what the set can tell is added to them:

    ln u_nk = ln p_nk - b_k + w_nk + c e_nk + r a_nk + const                          (rows sum to 1)

    b   the classes' bias, from the shots: over held-out shots a class should receive as much probability as
        it has shots. Minimises -sum_s ln softmax(ln p_s - b)[y_s] + rho/2 |b|^2, rho by cross-fitting
        (bias-corrected scaling, Alexandari et al. 2020).
    w   the classes' weights, from a Dirichlet(alpha) prior on the class proportions:
        w_nk = ln(o / (o + f)), o = m_k - u_nk + alpha, where most classes are absent, else 0;
        m_k = sum_n u_nk, f the images that a present class has on average.
    e   new evidence on features: the distance to the class's mean over shots and queries, against the
        distance to its mean over the shots alone,
        e_nk = -1/2 d2(x_n, mean_k without x_n) / (1 + 1/n_k) + 3/8 d2(x_n, shots' mean_k) / (1 + 1/s_k),
        d2 the Mahalanobis distance under one covariance, pooled within classes over shots and queries.
    a   agreement: a_nk = sum of cos(x_n, x_m) u_mk over the five nearest other queries m, features whitened.

    N queries · S shots · K classes · D feature width         p  start (N, K)     u  refined (N, K)
    x  queries (N, D)     y  shots' labels     s_k  shots of k and a text row
    n_k  s_k + m_k, with m_k at most its mean over the classes

Why these and no more:

* A weight of its own for each class is what one would estimate (Saerens et al. 2002), and on a whole test set
  it harms: what looks like a frequent class is mostly one that the classifier favours, and only the shots
  tell one from the other (b). Absence is different: a class without any image is plain to see. alpha is
  chosen by the likelihood of held-out queries. Below 1, the Dirichlet's own border between dense and sparse
  proportions, and where fewer than half of the possible classes then receive an image, weights are
  estimated; else they stay equal. They say absent from present (o / (o + f) levels off at f), and little of
  how frequent: tied to o itself they gain more where 5 of 400 classes are present, and lose up to 2 points
  in single draws of a quarter of them.
* No image votes for itself (m_k - u_nk; the mean without x_n), or a lone wrong answer would confirm itself.
  For the same reason copies of an image count as one.
* A mean of n images is known up to 1/n of an image's variance, hence 1 + 1/n; what a class has above the mean
  of all is not counted, or frequent classes would pay for being certain. Three quarters of the shots' own
  evidence are taken back: p holds it already.
* e and a stay only if held-out shots, put unlabelled among the queries, do not lose by them.
* Behind the first answer the ranking is half the start's: top-5 has little to win there and was bought dearly
  by whatever was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.combine.em_dirichlet import gamma_family
from jclip_fewshot.task import Task, fold_of_shots

MIN_QUERIES = 10  # fewer have nothing to tell each other
CONCENTRATIONS = (np.inf, 3.0, 1.0, 0.3, 0.1, 0.03)  # a
STRENGTHS = (np.inf, 30.0, 10.0, 3.0, 1.0)  # rho
EVIDENCE = {"dense": 0.1, "sparse": 0.05}  # c: D correlated dimensions count for a tenth of independent ones
TAKEN_BACK = 0.75  # of the shots' own evidence
AGREEMENT = 3.0  # r / c
NEIGHBOURS = 5
RIDGE = 3.0  # times the mean variance, added to the pooled covariance
ROUNDS = 6
TOLERANCE = 2e-3  # mean probability moved in a round
WEIGHT_ROUNDS = 8
SURE = 2.0  # standard errors that a's gain must exceed
SAMPLE = 4000  # queries at most that choose a
FOLDS = 4
BLOCK = 8192  # rows of a product
BLOCK_BYTES = 64 * 2**20  # of cosines at a time
TINY = 1e-12


@dataclass(frozen=True)
class Refinement:
    """probs (N, K) float32; changed: indices of the queries whose first answer is another than before.

    class_balance (K,): estimated share of each class.   domain_balance: the same by domain.
    trace: mean probability moved in each round.   gate: what was decided and why, in words and numbers.
    """

    probs: np.ndarray
    changed: np.ndarray
    class_balance: np.ndarray
    domain_balance: np.ndarray
    iterations: int
    converged: bool
    trace: List[float] = field(default_factory=list)
    gate: Dict[str, dict] = field(default_factory=dict)

    def record(self) -> dict:
        """What a run keeps, JSON-able."""
        return {"changed": len(self.changed), "queries": len(self.probs),
                "classes_present": self.classes_present, "iterations": self.iterations,
                "converged": self.converged, "trace": self.trace,
                "class_balance": [round(float(share), 6) for share in self.class_balance],
                "domain_balance": [round(float(share), 4) for share in self.domain_balance],
                "gate": self.gate}

    @property
    def classes_present(self) -> int:
        """Classes that receive at least half an image."""
        return int((self.class_balance * len(self.probs) >= 0.5).sum())

    def report(self) -> str:
        """Three or four lines for a person."""
        lines = [f"refinement: {len(self.changed)} of {len(self.probs)} first answers changed; about"
                 f" {self.classes_present} of {len(self.class_balance)} classes present"]
        return "\n".join(lines + [f"  {name}: {decision['why']}" for name, decision in self.gate.items()])


def refine(probs, features, task: Task, held_out=None, force: bool = False) -> Refinement:
    """Refines a whole set's probabilities.

    probs (N, K): calibrated, rows summing to 1.   features (N, D): unit rows.
    held_out (S, K): the shots' probabilities by models that did not see them; None: no bias, no audition.
    force: keep the evidence on features whatever the held-out shots say.
    Raises ValueError where shapes do not fit.
    """
    probs, features = np.asarray(probs, np.float32), np.asarray(features, np.float32)
    num_classes, width = task.text.shape
    if probs.ndim != 2 or probs.shape[1] != num_classes or features.shape != (len(probs), width):
        raise ValueError(f"probs {probs.shape} and features {features.shape} do not fit"
                         f" text {task.text.shape}")
    if held_out is not None and np.shape(held_out) != (len(task.labels), num_classes):
        raise ValueError(f"held_out must be {(len(task.labels), num_classes)}, not {np.shape(held_out)}")
    first, copy_of = distinct(features)
    given, probs, features = probs, probs[first], features[first]
    if len(probs) < MIN_QUERIES:
        why = f"{len(probs)} images are too few to learn from each other; the answers stay as they are"
        return _result(given, given, task, [], True, {"size": {"why": why}})

    bias, strength, gate = np.zeros(num_classes), np.inf, {}
    if held_out is not None and len(task.labels):
        log_held_out = np.log(np.asarray(held_out, np.float64) + TINY)
        strength, losses = choose_strength(log_held_out, task.labels)
        bias = class_bias(log_held_out, task.labels, strength)
        gate["class bias"] = {"strength": _number(strength), "losses": losses, "spread": float(bias.std()),
                              "why": _bias_words(strength, losses, bias)}
    start = _log_start(probs, bias)

    concentration, gains = choose_concentration(np.exp(start))
    present = int((_weighed(start, _softmax(start), concentration, np.inf).sum(0) >= 0.5).sum())
    possible = min(len(probs), num_classes)
    sparse = concentration < 1 and present < possible / 2
    gate["class weights"] = {"concentration": _number(concentration), "gains": gains, "present": present,
                             "why": _weight_words(sparse, concentration, gains, present, possible)}

    evidence = EVIDENCE["sparse" if sparse else "dense"]
    evidence, gate["evidence"] = _audition(start, features, task, held_out, bias, sparse, evidence, force)
    weights = (concentration, len(probs) / max(present, 1)) if sparse else None
    refined, trace = _rounds(start, features, task, evidence, weights)
    refined = keep_ranking(np.exp(start), refined)
    if copy_of is not None:
        refined = refined[copy_of]
    return _result(refined, given, task, trace, not trace or trace[-1] < TOLERANCE, gate)


def class_bias(log_probs, labels, strength, steps: int = 40) -> np.ndarray:
    """b (K,): minimises -sum_s ln softmax(log_probs_s - b)[labels_s] + strength/2 |b|^2; 0 without shots.

    Among the classes with shots: shots say nothing of the others, and would only drown them.
    Newton's steps with the diagonal of the Hessian, halved: the problem is convex and the diagonal dominates.
    """
    counts = np.bincount(labels, minlength=log_probs.shape[1])
    bias, seen = np.zeros(log_probs.shape[1]), counts > 0
    if not np.isfinite(strength):
        return bias
    for _ in range(steps):
        u = _softmax(log_probs[:, seen] - bias[seen])
        gradient = u.sum(0) - counts[seen] - strength * bias[seen]
        bias[seen] += 0.5 * gradient / ((u * (1 - u)).sum(0) + strength)
    return bias


def choose_strength(log_probs, labels) -> tuple:
    """rho whose bias, fitted on the other folds, gives held-out shots the least mean log-loss; all losses."""
    folds = fold_of_shots(labels, FOLDS)
    if folds.max() == 0:
        return np.inf, {}
    losses = {}
    for strength in STRENGTHS:
        loss = 0.0
        for fold in range(folds.max() + 1):
            out = folds == fold
            shifted = log_probs[out] - class_bias(log_probs[~out], labels[~out], strength)
            loss -= np.log(_softmax(shifted)[np.arange(out.sum()), labels[out]] + TINY).sum()
        losses[strength] = loss / len(labels)
    best = min(losses, key=losses.get)
    return best, {str(_number(strength)): float(loss) for strength, loss in losses.items()}


def choose_concentration(probs) -> tuple:
    """a by the likelihood of held-out queries: (a, {a: gain over equal weights in nats a query}).

    The queries are halved; class proportions estimated on one half under Dirichlet(a), by variational Bayes,
    score the other:  mean ln sum_k p_nk pi_k.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(probs))[:SAMPLE]
    halves = [probs[order[0::2]], probs[order[1::2]]]
    scores: Dict[float, list] = {a: [] for a in CONCENTRATIONS}
    for mine, other in (halves, halves[::-1]):
        weights = np.full(probs.shape[1], 1 / probs.shape[1])
        for a in CONCENTRATIONS:  # from equal to sparse, each starting from the one before
            weights, shares = _variational_weights(mine, weights, a)
            scores[a].append(np.log(other @ shares + TINY))
    better = {a: np.concatenate(score) - np.concatenate(scores[np.inf]) for a, score in scores.items()}
    gains = {a: float(gain.mean()) for a, gain in better.items()}
    best = max(gains, key=gains.get)
    if gains[best] < SURE * better[best].std() / np.sqrt(len(order)):
        best = np.inf  # a handful of images may look alike by chance
    return best, {str(_number(a)): gain for a, gain in gains.items()}


def _variational_weights(probs, weights, a, steps: int = 12) -> tuple:
    """exp(E[ln pi_k]) and E[pi_k], both (K,), under Dirichlet(a) and the queries `probs`."""
    num_classes = probs.shape[1]
    if not np.isfinite(a):
        return weights, weights
    for _ in range(steps):
        joint = probs * weights
        mass = a + (joint / joint.sum(1, keepdims=True)).sum(0)
        weights = np.exp(gamma_family(mass)[1] - gamma_family(mass.sum(keepdims=True))[1])
    return weights, mass / (num_classes * a + len(probs))


def _rounds(start, features, task, evidence, weights=None) -> tuple:
    """The fixed point's rounds: refined rows (N, K) and the trace.   weights: (alpha, f), None: equal."""
    refined = _softmax(start)
    if weights:
        refined = _weighed(start, refined, *weights)
    if not evidence:
        return refined, []
    model, trace = _Means(features, task), []
    neighbours, closeness = model.neighbours(refined)
    for _ in range(ROUNDS):
        logits = start + np.float32(evidence) * model.evidence(refined)
        for place in range(neighbours.shape[1]):
            agreement = closeness[:, place, None] * refined[neighbours[:, place]]
            logits += np.float32(evidence * AGREEMENT) * agreement
        previous, refined = refined, _weighed(logits, refined, *weights) if weights else _softmax(logits)
        trace.append(float(np.abs(refined - previous).sum(1).mean() / 2))
        if trace[-1] < TOLERANCE:
            break
    return refined, trace


def distinct(features) -> tuple:
    """First row of each distinct image, in order, and which of them each row copies (None: no copies)."""
    _, first, inverse = np.unique(features.view(np.uint32), axis=0, return_index=True, return_inverse=True)
    if len(first) == len(features):
        return np.arange(len(features)), None
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def _weighed(logits, refined, a, full) -> np.ndarray:
    """u with u_nk proportional to exp(logits_nk) o / (o + full), o = m_k - u_nk + a; full = inf: to o itself.

    The others' count, as in a Polya urn, that levels off at `full` images.
    """
    if not np.isfinite(a):
        return refined
    for _ in range(WEIGHT_ROUNDS):
        others = refined.sum(0, dtype=np.float64).astype(np.float32) - refined
        others = np.maximum(others, 0) + np.float32(a)
        weights = np.log(others / (others + np.float32(full)) if np.isfinite(full) else others)
        refined = _softmax(logits + weights)
    return refined


class _Means:
    """Class means over shots, text and queries, and the distances to them.

    Features and text are centred, each on its own mean, which closes most of the gap between the two.
    """

    def __init__(self, features, task):
        centre = task.features.mean(0) if len(task.labels) else features.mean(0)
        self.x = features - centre
        shot_rows, text = task.features - centre, task.text - task.text.mean(0)
        num_classes, width = text.shape
        self.shot_sums = text.astype(np.float64)
        np.add.at(self.shot_sums, task.labels, shot_rows)
        self.shot_counts = 1.0 + np.bincount(task.labels, minlength=num_classes)
        self.scatter = np.zeros((width, width))
        for rows in (shot_rows, text, self.x):
            for block in blocks(len(rows)):
                self.scatter += _product(rows[block].T, rows[block])

    def fit(self, u) -> tuple:
        """Means (K, D), counts (K,), inverse of the pooled covariance (D, D) for assignments u (N, K)."""
        sums = self.shot_sums.copy()
        for block in blocks(len(u)):
            sums += _product(u[block].T, self.x[block])
        counts = self.shot_counts + u.sum(0, dtype=np.float64)
        means = sums / counts[:, None]
        covariance = (self.scatter - (means * counts[:, None]).T @ means) / counts.sum()
        width = len(covariance)
        precision = np.linalg.inv(covariance + RIDGE * np.trace(covariance) / width * np.eye(width))
        return means, counts, precision

    def evidence(self, u) -> np.ndarray:
        """e (N, K) for assignments u (N, K)."""
        means, counts, precision = self.fit(u)
        shot_means = self.shot_sums / self.shot_counts[:, None]
        extra = (counts - self.shot_counts).mean()
        result = np.empty_like(u)
        for block in blocks(len(u)):
            x, mine = self.x[block], u[block]
            norms = (_product(x, precision) * x).sum(1, keepdims=True)
            others = (counts - mine).astype(np.float32)
            # x - mean without x = (x - mean) counts / (counts - u)
            new = _distances(x, norms, means, precision) * (counts.astype(np.float32) / others) ** 2
            old = _distances(x, norms, shot_means, precision)
            known = np.minimum(others, (self.shot_counts + extra).astype(np.float32))
            result[block] = -0.5 * new / (1 + 1 / known)
            result[block] += 0.5 * TAKEN_BACK * old / (1 + 1 / self.shot_counts).astype(np.float32)
        return result

    def neighbours(self, u) -> tuple:
        """Each query's nearest others, (N, NEIGHBOURS), and their whitened cosines, 0 where negative."""
        white = _product(self.x, np.linalg.cholesky(self.fit(u)[2]))
        white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), TINY)
        count = min(NEIGHBOURS, len(white) - 1)
        nearest = np.empty((len(white), count), np.int64)
        closeness = np.empty((len(white), count), np.float32)
        step = max(1, BLOCK_BYTES // (4 * len(white)))
        for first in range(0, len(white), step):
            cosines = _product(white[first:first + step], white.T)
            rows = np.arange(len(cosines))
            cosines[rows, first + rows] = -np.inf  # not itself
            best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            nearest[first:first + step] = best
            closeness[first:first + step] = np.maximum(cosines[rows[:, None], best], 0)
        return nearest, closeness


def _distances(x, norms, means, precision) -> np.ndarray:
    """d2 (n, K) of rows x (n, D), whose x' precision x is norms (n, 1), to the means (K, D)."""
    projected = means @ precision
    squares = (projected * means).sum(1).astype(np.float32)
    return np.maximum(norms - 2 * _product(x, projected.T) + squares, 0)


def _audition(start, features, task, held_out, bias, sparse, evidence, force) -> tuple:
    """Whether the evidence on features stays: (c or 0, the decision).

    Held-out shots are put unlabelled among the queries, one fold at a time, the other shots remaining; their
    own labels are then scored with and without the evidence.
    """
    if not len(task.labels):
        return (evidence, {"why": "forced"}) if force else (0.0, {"why": "off: no shots to begin with"})
    if force:
        return evidence, {"weight": evidence, "why": "on: forced"}
    if held_out is None or sparse:
        reason = "the shots' classes are mostly absent here" if sparse else "no held-out probabilities"
        return evidence, {"weight": evidence, "why": f"on, unmeasured: {reason}"}
    folds = fold_of_shots(task.labels, FOLDS)
    if folds.max() == 0:
        return evidence, {"weight": evidence, "why": "on, unmeasured: one shot a class"}
    gains = []
    for fold in range(folds.max() + 1):
        out = np.flatnonzero(folds == fold)
        guests = _log_start(np.asarray(held_out, np.float32)[out], bias)
        together = np.concatenate([start, guests])
        rows = np.concatenate([features, task.features[out]])
        refined, _ = _rounds(together, rows, task.take(folds != fold), evidence)
        labels = task.labels[out]
        after = np.log(refined[len(start):][np.arange(len(out)), labels] + TINY)
        gains.append(after - guests[np.arange(len(out)), labels])
    gains = np.concatenate(gains)
    gain, error = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
    stays = gain + error > 0
    why = (f"{'on' if stays else 'off'}: held-out shots among the images {'gain' if gain > 0 else 'lose'}"
           f" {abs(gain):.3f} ± {error:.3f} nats")
    return (evidence if stays else 0.0), {"weight": evidence if stays else 0.0, "gain": gain, "error": error,
                                          "why": why}


def _log_start(probs, bias) -> np.ndarray:
    """ln p - b, normalised, (N, K) float32."""
    logits = np.log(probs + np.float32(TINY)) - bias.astype(np.float32)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _softmax(logits) -> np.ndarray:
    logits = logits - logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def _product(a, b) -> np.ndarray:
    """a @ b in float32 by Jittor."""
    return jt.matmul(jt.array(np.ascontiguousarray(a, np.float32)),
                     jt.array(np.ascontiguousarray(b, np.float32))).numpy()


def blocks(rows, size=BLOCK) -> list:
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def keep_ranking(start, refined) -> np.ndarray:
    """Refined rows: the first answer stays, with its probability; the rest is ranked half as in the start."""
    rows, first = np.arange(len(refined)), refined.argmax(1)
    share = refined[rows, first]
    fused = np.sqrt(start * refined)
    fused[rows, first] = 0
    fused *= ((1 - share) / np.maximum(fused.sum(1), TINY))[:, None]
    fused = np.minimum(fused, 0.999 * share[:, None])
    fused[rows, first] = share
    return fused / fused.sum(1, keepdims=True)


def _result(refined, probs, task, trace, converged, gate) -> Refinement:
    balance = refined.mean(0, dtype=np.float64)
    domains = np.bincount(task.domains, weights=balance)
    changed = np.flatnonzero(refined.argmax(1) != probs.argmax(1))
    return Refinement(refined.astype(np.float32), changed, balance, domains, len(trace), bool(converged),
                      trace, gate)


def _number(value) -> Optional[float]:
    """JSON has no infinity: None."""
    return float(value) if np.isfinite(value) else None


def _bias_words(strength, losses, bias) -> str:
    if not np.isfinite(strength):
        return "none: held-out shots are predicted best without"
    return (f"held-out shots favour correcting it (log-loss {losses['None']:.3f} to"
            f" {losses[str(_number(strength))]:.3f}), spread {bias.std():.2f} nats")


def _weight_words(sparse, concentration, gains, present, possible) -> str:
    if sparse:
        return (f"estimated: held-out images gain {gains[str(_number(concentration))]:.2f} nats at"
                f" concentration {concentration:g}, and only about {present} of {possible} possible classes"
                f" are present")
    if concentration < 1:
        return f"equal: uneven, but {present} of {possible} possible classes are present"
    return f"equal: concentration {concentration:g} fits best, and only below 1 are classes absent"
