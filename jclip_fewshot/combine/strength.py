"""What decides how strongly a test set is refined, and how much each class counts.

With shots, each fold's held-out shots are refined as one more image each, all answered by fits that did not see them:

    gain_s(C) = p(y_s | start + C e) - p(y_s | start)       each at the temperature that suits the held-out shots best

weighed by how many images seem to be of class y_s. Without shots, C is the temperature at which the Gaussians explain
the names' answers best; nothing is done where these two disagree or classes have too few images.

With shots, class weights w come from a Dirichlet prior on the class proportions where most classes are absent, and
from a draw to equal shares where the set seems balanced (V the variance of its relative class masses, E its error):

    V_0  = s + nu K / N      V of a balanced set, s between classes and nu between images, by the held-out shots
    beta = clip(1 - (V + E - V_0) / (a² V_0), 0, 1),  share_k ~ (relative mass)^(1 - beta)      a  mean p of the label

Letters: N images, K classes, G held-out shots, D feature width. Measurements: docs/refinement.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jclip_fewshot.backend.numerics import log_softmax, softmax, temperature
from jclip_fewshot.task import Task

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0)  # C in nats: what an average distance to a class weighs
STANDARD = 16.0  # of these, where the shots leave a choice
MOST = 15.0  # C at most, where no shot can check it
CAUTION = 1.0  # standard errors that a gain must exceed
NEAR = 2.0  # standard errors behind the best strength that are no evidence against another
LEAST_GAIN = 1e-4  # less is none
MOST_APART = 1.25  # of the names' entropy: KL(names || Gaussians) beyond which the images are left alone
LEAST_IMAGES = 3.0  # a class that is present: with one or two nothing can be learned from names alone
CONCENTRATIONS = (np.inf, 3.0, 1.0, 0.3, 0.1, 0.03)  # alpha
SURE = 2.0  # standard errors that alpha's gain must exceed
SAMPLE = 4000  # images at most that choose alpha, or C
WEIGHT_STEPS = 12
ROUNDS = 30  # of Sinkhorn and Knopp
CLOSE = 1e-3  # of the share that is wanted
LEAST_CLASSES = 20  # a dozen cannot show how much their shares vary
SMOOTH = 0.5  # images added to every class: one that is hardly answered at all is not drawn up for good
TINY = 1e-12


@dataclass(frozen=True)
class HeldOutFold:
    """Held-out shots, and the answers of fits that did not see them."""

    task: Task  # with the kept shots
    features: np.ndarray  # (G, D) of the held-out shots
    labels: np.ndarray  # (G,)
    answer: Callable[[np.ndarray], np.ndarray]  # (N, D) rows -> (N, K) probabilities, without the held-out shots
    class_bias: np.ndarray | float = 0.0  # (K,) that ln of these answers carries, fitted to the other shots

    @cached_property
    def own_answers(self) -> np.ndarray:
        """(G, K): to the held-out shots themselves."""
        return self.answer(self.features)


@dataclass(frozen=True)
class ClassWeights:
    """w: of a sparse set, ln(o / (o + full)) with o = (mass of the other images) + concentration; or that which gives
    the classes `shares` (K,); or none."""

    present: float  # classes that seem to have an image
    sparse: bool = False
    concentration: float = np.inf
    full: float = 1.0
    shares: np.ndarray | None = None

    def apply(self, base: np.ndarray) -> np.ndarray:
        """Return base (N, K) with weights."""
        if self.shares is not None:
            return _normal(base * np.exp(balancing_weights(base, self.shares)))
        u = base
        for _ in range(WEIGHT_STEPS if self.sparse else 0):
            u = _normal(base * self._sparse(u, u))
        return u

    def of_held_out(self, answers: np.ndarray) -> tuple[np.ndarray | float, np.ndarray]:
        """Return w (K,) of a row that is not in the set with `answers` (N, K), and these with weights."""
        if self.shares is not None:
            w = balancing_weights(answers, self.shares)
            return w, _normal(answers * np.exp(w))
        u = self.apply(answers)
        return np.log(self._sparse(u, np.float32(0))) if self.sparse else 0.0, u

    def _sparse(self, u: np.ndarray, own: np.ndarray | np.float32) -> np.ndarray:
        """o / (o + full) of rows that are in the set with assignments `own`."""
        mass = u.sum(axis=0, dtype=np.float64).astype(np.float32)
        others = np.maximum(mass - own, 0) + np.float32(self.concentration)
        return others / (others + np.float32(self.full))


def by_shots(probs: np.ndarray, features: np.ndarray, folds: Iterable[HeldOutFold], weights: ClassWeights,
             force: bool, evidence: Callable[[np.ndarray, np.ndarray, HeldOutFold], np.ndarray]) -> dict:
    """Return C ("weight"), the temperature that refined answers need, and why, by shots among the images (N, D).

    probs (N, K). evidence: (features, assignments, fold) -> e (G, K) of the fold's shots. force: even if it loses.
    """
    features, mass = features[one_less(probs.argmax(axis=1))], probs.sum(axis=0, dtype=np.float64)
    if not len(features) or len(probs) < 2 * weights.present and not force:
        return {"weight": 0.0, "why": f"no image is compared with others: {len(probs)} images of about "
                                      f"{weights.present} classes, hardly two of one"}
    parts = []
    for fold in folds:
        own_weights, u = weights.of_held_out(fold.answer(features))
        start = np.log(fold.own_answers + np.float32(TINY)) + own_weights
        importance = mass[fold.labels] / np.bincount(fold.labels)[fold.labels]
        parts.append((start, evidence(features, u, fold), fold.labels, importance))
    start, e, labels, importance = map(np.concatenate, zip(*parts))
    importance /= max(importance.mean(), TINY)
    spread = spread_of(start)
    before, inverse = calibrated(start, labels, importance, spread)
    after = [calibrated(start + np.float32(c) * e, labels, importance, spread) for c in STRENGTHS]
    gains = np.stack([probs for probs, _ in after]) - before
    means, errors = mean_and_error(gains, importance)
    good = np.arange(len(means)) if force else np.flatnonzero(means > np.maximum(CAUTION * errors, LEAST_GAIN))
    if not len(good):
        return {"weight": 0.0, "held_out": len(labels), "why": "no image is compared with others: "
                f"{len(labels)} held-out shots were not answered better by looking at the images"}
    behind, noise = mean_and_error(gains[good[means[good].argmax()]] - gains, importance)
    near = np.intersect1d(np.flatnonzero(behind <= NEAR * noise), good)
    chosen = min(near, key=lambda i: abs(np.log(STRENGTHS[i] / STANDARD)))
    c, mean, error = STRENGTHS[chosen], float(means[chosen]), float(errors[chosen])
    # two digits: what float32 sums in another order agree on
    warmer = round(inverse / after[chosen][1], 2)
    return {"weight": c, "temperature": warmer, "gain": mean, "error": error, "held_out": len(labels),
            "why": f"strength {c:g}: put among the images, {len(labels)} held-out shots find their class with a "
                   f"probability that is {100 * mean:.1f} ± {100 * error:.1f} points higher"}


def by_images(probs: np.ndarray, e: np.ndarray, images: int, present: float, force: bool) -> dict:
    """Return C ("weight") and why, by start and evidence (n, K) of some of so many images of `present` classes.

    C, up to `MOST`, is that at which softmax(C e) is nearest to probs. KL ("apart") and entropy in nats a row.
    """
    from scipy.optimize import minimize_scalar  # half a second that only a refinement without shots should wait for

    def kl(log_c: float) -> float:
        return float((probs * (np.log(probs + TINY) - log_softmax(np.float32(np.exp(log_c)) * e))).sum(axis=1).mean())

    best = minimize_scalar(kl, bounds=np.log([0.25, MOST]), method="bounded", options={"xatol": 0.02})
    c, apart = float(np.exp(best.x)), float(best.fun)
    entropy = -float((probs * np.log(probs + TINY)).sum(axis=1).mean())
    about, objection = f"about {present:.0f} of {probs.shape[1]} classes seem to have an image here", ""
    if images < LEAST_IMAGES * present:
        objection = f"{about}: {images} images are too few of a class to learn from each other"
    elif apart > MOST_APART * entropy:
        objection = f"the images lie {apart:.2f} nats away, too far for how unsure the names are ({entropy:.2f} nats)"
    return {"weight": 0.0 if objection and not force else c, "temperature": 1.0, "apart": apart, "entropy": entropy,
            "why": f"{objection}; the answers stay as they are" if objection else
                   f"strength {c:.1f}, by the images alone; {about}"}


def one_less(labels: np.ndarray) -> np.ndarray:
    """Return all rows but one, drawn at random, of every class, (N',): a held-out shot, like an image of n in its
    class, shall see n - 1 others, or there was a gain where each class has one image."""
    order = np.random.default_rng(0).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return np.sort(np.delete(order, first))


def mean_and_error(gains: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of (C, G) gains and its standard error, (C,); importance (G,) has mean 1."""
    means = (importance * gains).mean(axis=1)
    return means, np.sqrt((importance ** 2 * (gains - means[:, None]) ** 2).sum(axis=1)) / gains.shape[1]


def calibrated(logits: np.ndarray, labels: np.ndarray, importance: np.ndarray, spread: float
               ) -> tuple[np.ndarray, float]:
    """Return the probability of each row's label (G,) at the inverse temperature that suits the rows best, and that.
    spread: of all logits that are compared. `temperature` keeps near 1, and would leave the larger ones too sure."""
    scale = spread / max(spread_of(logits), TINY)
    inverse = scale * temperature(np.float32(scale) * logits, labels, importance)
    return softmax(np.float32(inverse) * logits)[np.arange(len(labels)), labels], inverse


def spread_of(logits: np.ndarray) -> float:
    """Return the standard deviation of logits (G, K) within rows."""
    return float((logits - logits.mean(axis=1, keepdims=True)).std())


def class_weights(probs: np.ndarray, folds: Sequence[HeldOutFold], seen: np.ndarray) -> tuple[ClassWeights, dict]:
    """Return weights where most classes are absent or all are equally frequent, by held-out shots, and the decision.

    Absent: the best alpha is below 1, the border between dense and sparse proportions, and fewer than half of the
    classes then receive an image that would if all were there, as with the held-out shots, all of whose classes are.
    """
    if not folds:
        return ClassWeights(classes_present(probs)), {}
    concentration, present = _presence(probs)
    known = np.concatenate([fold.own_answers for fold in folds])
    sparse = concentration < 1 and present < min(probs.shape) / 2 * _presence(known)[1] / min(known.shape)
    shares, found = (None, {"beta": 0.0}) if sparse else balanced_shares(probs, folds, seen)
    about = f"about {present} of {probs.shape[1]} classes seem to have an image here"
    if sparse:
        why = f"only {about}; the other classes are given less weight"
    elif shares is not None:
        why = (f"classes seem to be equally frequent here: answers spread by {100 * found['spread']:.0f} %, and would "
               f"by {100 * found['spread_if_balanced']:.0f} % if they were; the classes are weighed accordingly")
    else:
        why = f"{about}; no class is given less weight"
    found = {"concentration": concentration if np.isfinite(concentration) else None, "present": present,
             "sparse": sparse, **found, "why": why}
    return ClassWeights(present, sparse, concentration, len(probs) / max(present, 1), shares), {"classes": found}


def classes_present(probs: np.ndarray) -> float:
    """Return how many classes seem to have an image, by the entropy of their shares (K,) in answers (N, K)."""
    shares = probs.mean(axis=0, dtype=np.float64)
    return float(np.exp(-(shares * np.log(shares + TINY)).sum()))


def _presence(probs: np.ndarray) -> tuple[float, int]:
    """alpha (`choose_concentration`) and how many classes then receive half an image or more."""
    concentration = choose_concentration(probs)
    # without a level o / (o + f) tends to o / f: what a class of its own weight would receive
    sparse = ClassWeights(0, np.isfinite(concentration), concentration, 1e6)
    return concentration, int((sparse.apply(probs).sum(axis=0, dtype=np.float64) >= 0.5).sum())


def choose_concentration(probs: np.ndarray) -> float:
    """Return alpha by held-out images (infinite: equal weights): class proportions of one half of them, by variational
    Bayes under Dirichlet(alpha), score the other,  mean ln sum_k p_nk pi_k."""
    order = np.random.default_rng(0).permutation(len(probs))[:SAMPLE]
    halves = [probs[order[0::2]], probs[order[1::2]]]
    scores = np.zeros((len(CONCENTRATIONS), len(order)))
    for one, columns in ((0, slice(len(halves[1]))), (1, slice(len(halves[1]), None))):
        weights = np.full(probs.shape[1], 1 / probs.shape[1])
        for row, a in enumerate(CONCENTRATIONS):  # from equal to sparse, each starting from the one before
            weights, shares = _variational_weights(halves[one], weights, a)
            scores[row, columns] = np.log(halves[1 - one] @ shares + TINY)
    better = scores - scores[0]
    best = int(better.mean(axis=1).argmax())
    # a handful of images may look alike by chance
    sure = better[best].mean() >= SURE * better[best].std() / np.sqrt(len(order))
    return CONCENTRATIONS[best] if sure else np.inf


def _variational_weights(probs: np.ndarray, weights: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    """exp(E[ln pi_k]) and E[pi_k], both (K,), under Dirichlet(a) and the images `probs`."""
    from scipy.special import digamma

    if not np.isfinite(a):
        return weights, weights
    for _ in range(WEIGHT_STEPS):
        joint = probs * weights.astype(probs.dtype)
        mass = a + (joint / joint.sum(axis=1, keepdims=True)).sum(axis=0, dtype=np.float64)
        weights = np.exp(digamma(mass) - digamma(mass.sum()))
    return weights, mass / (probs.shape[1] * a + len(probs))


def balanced_shares(probs: np.ndarray, folds: Sequence[HeldOutFold], seen: np.ndarray
                    ) -> tuple[np.ndarray | None, dict]:
    """Return which share of the images (N, K) each class should have, (K,), None: as it comes; and what was found.
    Those not `seen` (K,), which have no shots, keep their share."""
    mass = probs.sum(axis=0, dtype=np.float64)
    images = mass[seen].sum() / max(seen.sum(), 1)  # a class
    given = np.stack([np.bincount(fold.labels, minlength=len(seen)) for fold in folds])
    columns = given.any(axis=0)
    whole = [number for number in range(len(folds)) if given[number, columns].all()]
    classes = int(columns.sum())
    if images < 0.99 or len(whole) < 2 or classes < max(LEAST_CLASSES, seen.sum() / 2):
        return None, {"beta": 0.0}
    shots = given[whole][:, columns].mean()  # of a class in a fold
    surplus, own = [], []
    for number in whole:
        # without the class bias, which is fitted to the other shots: with it s came out as zero
        p = _normal(folds[number].own_answers * np.exp(-np.asarray(folds[number].class_bias, np.float64)))
        surplus.append((p.sum(axis=0) - given[number])[columns] / shots)
        own.append(p[np.arange(len(folds[number].labels)), folds[number].labels])
    of_a_fold = float(np.var(surplus, axis=0, ddof=1).mean())
    between = max(float(np.mean(surplus, axis=0).var()) - of_a_fold / len(whole), 0.0)
    shown = max((float(np.concatenate(own).mean()) - 1 / classes) / (1 - 1 / classes), 1e-9)
    relative = mass[seen] / images
    spread, expected = float(relative.var()), max(between + of_a_fold * shots / images, 1e-9)
    most = spread + CAUTION * expected * np.sqrt(2 / classes)
    beta = float(np.clip(1 - (most - expected) / (shown ** 2 * expected), 0, 1))
    shares = mass / mass.sum()
    drawn = relative ** (1 - beta)
    shares[seen] = drawn / drawn.sum() * shares[seen].sum()
    return shares if beta else None, {"beta": beta, "spread": spread ** 0.5, "spread_if_balanced": expected ** 0.5}


def balancing_weights(probs: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return ln v (K,) float32 with sum_n p_nk v_k / sum_j p_nj v_j = N share_k, nearly."""
    probs = np.asarray(probs, np.float32)
    wanted = len(probs) * shares + SMOOTH
    weights = np.ones(probs.shape[1])
    for _ in range(ROUNDS):
        scaled = 1 / (probs @ weights.astype(np.float32))
        missing = wanted / (weights * (scaled @ probs) + SMOOTH)
        weights *= missing
        weights /= weights.max()
        if np.abs(missing - 1).max() < CLOSE:
            break
    return np.log(weights).astype(np.float32)


def _normal(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their sums, in place."""
    rows /= np.maximum(rows.sum(axis=1, keepdims=True), TINY)
    return rows
