"""Transductive refinement: better probabilities for a whole test set than for each image by itself.

    ln u_nk = (ln p_nk + w_nk + c e_nk + r a_nk) / T + const                          (rows sum to 1)

    w   class weights. Where most classes are absent: w_nk = ln(o / (o + f)), o = m_k - u_nk + alpha, m_k = sum_n u_nk,
        f the images of a present class on average; Dirichlet(alpha) prior, alpha by the likelihood of held-out images.
        Where classes seem to be equally frequent: w_k that makes the answers so (`balance`). Else 0
    e   distance to the class's mean over shots and images, against that over the shots alone:
        e_nk = -1/2 d2(x_n, mean_k without x_n) / (1 + 1/n_k) + 3/8 d2(x_n, shots' mean_k) / (1 + 1/s_k)
    a   agreement: sum of cos(x_n, x_m) u_mk over the nearest other images m, features whitened
    c, r, T   chosen for each test set by its shots (`held_out`)

    N images · S shots · K classes · D feature width      p  start (N, K)     u  refined (N, K)     x  images (N, D)
    s_k  shots of k and a text row     n_k  s_k + m_k, m_k at most its mean     d2  Mahalanobis, one pooled covariance

Related to EM-Dirichlet (`em_dirichlet`), TransCLIP and StatA, and none of them: ln p stays in the sum for good, no
image votes for itself (m_k - u_nk, the mean without x_n), copies count once, one step is taken. Why, what else was
tried and what it gives: docs/refinement.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jclip_fewshot.backend.numerics import matmul, softmax, unit_rows
from jclip_fewshot.combine.balance import balanced_shares, balancing_weights
from jclip_fewshot.combine.em_dirichlet import gamma_family
from jclip_fewshot.combine.held_out import Choice, HeldOutFold, choose
from jclip_fewshot.task import Task, class_sums

MIN_IMAGES = 10  # fewer have nothing to tell each other
CONCENTRATIONS = (np.inf, 3.0, 1.0, 0.3, 0.1, 0.03)  # alpha
TAKEN_BACK = 0.75  # of the shots' own evidence: p holds it already
NEIGHBOURS = 5  # at most
RIDGE = 3.0  # times the mean variance, added to the pooled covariance
WEIGHT_ROUNDS = 8
CAUTION = 2.0  # standard errors that alpha's gain must exceed
SAMPLE = 4000  # images at most that choose alpha
BLOCK = 4096  # rows at a time
WEIGHT_STEPS = 12  # of the class weights
TINY = 1e-12
UNCHECKED = Choice(0.05, 0.0, 1.0)  # for --refine on where no shot can say anything: half of what shots choose at most


@dataclass(frozen=True)
class Refinement:
    """probs (N, K) float32; changed: indices of the images whose first answer is another than before.

    class_balance (K,): estimated share of each class. domain_balance: the same by domain. classes_present: how many
    classes seem to have an image. decisions: what was decided, in numbers and, under "why", in words.
    """

    probs: np.ndarray
    changed: np.ndarray
    class_balance: np.ndarray
    domain_balance: np.ndarray
    classes_present: int
    decisions: dict[str, dict] = field(default_factory=dict)

    def record(self) -> dict:
        """What a run keeps, JSON-able."""
        return {"changed": len(self.changed), "queries": len(self.probs), "classes_present": self.classes_present,
                "class_balance": [round(float(share), 6) for share in self.class_balance],
                "domain_balance": [round(float(share), 4) for share in self.domain_balance],
                "decisions": self.decisions}

    def report(self) -> str:
        """Two or three lines for a person."""
        lines = [f"refinement: the first answer of {len(self.changed)} of {len(self.probs)} images changed"]
        return "\n".join(lines + [f"  {name}: {decision['why']}" for name, decision in self.decisions.items()])


@dataclass(frozen=True)
class ClassWeights:
    """w's alpha and f where `sparse`; shares (K,) that w brings about; neither: no weights.

    present: classes that at least half an image falls to.
    """

    sparse: bool
    concentration: float
    full: float
    present: int
    shares: np.ndarray | None = None

    def log_weights(self, assignments: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """w of rows with assignments `own` (n, K) among the set's u (N, K); None: w (K,) of one that is not in it."""
        mass = assignments.sum(axis=0, dtype=np.float64).astype(np.float32)
        others = (mass if own is None else np.maximum(mass - own, 0)) + np.float32(self.concentration)
        return np.log(others / (others + np.float32(self.full)))

    def of_guests(self, probs: np.ndarray) -> tuple[np.ndarray | float, np.ndarray]:
        """w (K,) of one that is not in the set with answers `probs` (N, K), and these with weights."""
        if self.shares is None and not self.sparse:
            return 0.0, probs
        logits = np.log(probs + np.float32(TINY))
        if self.shares is not None:
            balancing = balancing_weights(probs, self.shares)
            return balancing, softmax(logits + balancing)
        settled = self.settle(logits, probs)
        return self.log_weights(settled, None), settled

    def settle(self, logits: np.ndarray, assignments: np.ndarray) -> np.ndarray:
        """u = softmax(logits + w(u)) by a few rounds of substitution; softmax(logits) without weights."""
        if self.shares is not None:
            return softmax(logits + balancing_weights(softmax(logits), self.shares))
        if not self.sparse:
            return softmax(logits)
        for _ in range(WEIGHT_ROUNDS):
            assignments = softmax(logits + self.log_weights(assignments, assignments))
        return assignments


def refine(probs: np.ndarray, features: np.ndarray, task: Task, folds: Iterable[HeldOutFold] = (),
           force: bool = False) -> Refinement:
    """Refines a whole set's probabilities.

    probs (N, K): calibrated, rows summing to 1. features (N, D): unit rows. folds: shots left out, and fits without
    them: what chooses c, r and T. force: refine whatever the shots say.
    Raises:
        ValueError: shapes that do not fit.
    """
    probs, features = checked(probs, features, task)
    first, copy_of = distinct(features)
    given, probs, features = probs, probs[first], features[first]
    if len(probs) < MIN_IMAGES:
        return too_few(given, len(probs), task)

    folds = list(folds)
    weights, decisions = choose_class_weights(probs, folds, task.seen)
    neighbours = neighbours_of(len(probs), weights.present)
    if neighbours or force:
        others = features[one_less(probs.argmax(axis=1))]
        choice, decisions["features"] = choose(others, probs.sum(axis=0, dtype=np.float64), folds, force,
                                               lambda rows, fold: _guests(rows, fold, weights))
    else:
        why = (f"no image is compared with others: {len(probs)} images of about {weights.present} classes, hardly two "
               "of one")
        choice, decisions["features"] = None, {"distances": 0.0, "agreement": 0.0, "why": why}
    if choice is None:
        choice = UNCHECKED if force else Choice(0.0, 0.0, 1.0)
    start = np.log(probs + np.float32(TINY))
    assignments = weights.settle(start, probs)
    if choice.distances:
        evidence = SetEvidence(features, assignments, task, neighbours)
        for rows in blocks(len(probs)):
            e, a = evidence(rows)
            start[rows] += np.float32(choice.distances) * e + np.float32(choice.agreement) * a
        assignments = weights.settle(start, assignments)
    if choice.temperature != 1:
        assignments = assignments ** np.float32(1 / choice.temperature)
        assignments /= assignments.sum(axis=1, keepdims=True)
    refined = keep_ranking(probs, assignments)
    return result_of(refined if copy_of is None else refined[copy_of], given, task, weights.present, decisions)


def checked(probs: np.ndarray, features: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """probs (N, K) and features (N, D) in float32.

    Raises:
        ValueError: shapes that do not fit the task.
    """
    probs, features = np.asarray(probs, np.float32), np.asarray(features, np.float32)
    num_classes, width = task.text.shape
    if probs.ndim != 2 or probs.shape[1] != num_classes or features.shape != (len(probs), width):
        raise ValueError(f"probs {probs.shape} and features {features.shape} do not fit text {task.text.shape}")
    return probs, features


def neighbours_of(images: int, present: int) -> int:
    """How many of an image's nearest can be of its class: a class of n images gives each n - 1; five at most."""
    return int(np.clip(images / max(present, 1) - 1, 0, NEIGHBOURS))


def one_less(labels: np.ndarray) -> np.ndarray:
    """All rows but one, drawn at random, of every class, (N',): an image of n in its class sees n - 1 others.

    A guest among all n would see one more than the images that it stands for: enough to promise a gain where every
    class has a single image.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return np.sort(np.delete(order, first))


def _guests(features: np.ndarray, fold: HeldOutFold, weights: ClassWeights) -> tuple[np.ndarray, ...]:
    """A fold's shots refined as one more image each, by the images alone: guests may outnumber them.

    Returns start (G, K) with class weights, e (G, K) and a (G, K) of the guests.
    """
    if not len(features):
        nothing = np.zeros((len(fold.labels), fold.task.num_classes), np.float32)
        return nothing, nothing, nothing
    probs = fold.answer(features)
    own_weights, settled = weights.of_guests(probs)
    start = np.log(fold.own_answers + np.float32(TINY)) + own_weights
    evidence = SetEvidence(features, settled, fold.task, neighbours_of(len(features), weights.present))
    return (start, *evidence.of_guests(fold.features))


class SetEvidence:
    """e and a of rows in a set whose rows are assigned to classes by u (N, K), together with the shots of `task`.

    Features and text are centred, each on its own mean, which closes most of the gap between the two, and whitened
    by the covariance pooled within classes over shots, text and set.
    """

    def __init__(self, features: np.ndarray, assignments: np.ndarray, task: Task, neighbours: int) -> None:
        self.centre = task.features.mean(axis=0) if len(task) else features.mean(axis=0)
        x, shots = features - self.centre, task.features - self.centre
        text = task.text - task.text.mean(axis=0)
        self.assignments, self.neighbours = assignments, min(neighbours, len(x) - 1)
        self.shot_counts = 1.0 + task.counts
        shot_sums = text + class_sums(shots, task.labels, task.num_classes)
        self.counts = self.shot_counts + assignments.sum(axis=0, dtype=np.float64)
        sums = shot_sums + matmul(assignments.T, x)
        means = sums / self.counts[:, None]
        scatter = sum(matmul(rows.T, rows).astype(np.float64) for rows in (x, shots, text))
        covariance = (scatter - (means * self.counts[:, None]).T @ means) / self.counts.sum()
        width = len(covariance)
        ridge = RIDGE * np.trace(covariance) / width + TINY
        precision = np.linalg.inv(covariance + ridge * np.eye(width))
        self.whiten = np.linalg.cholesky(precision).astype(np.float32)
        self.x = matmul(x, self.whiten)
        self.unit = unit_rows(self.x) if neighbours else self.x
        self.means = matmul(means.astype(np.float32), self.whiten)
        self.shot_means = matmul((shot_sums / self.shot_counts[:, None]).astype(np.float32), self.whiten)

    def __call__(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """e (n, K) and a (n, K) of the set's own rows."""
        return (self.distances(self.x[rows], self.assignments[rows]),
                self.agreement(self.unit[rows], np.arange(len(self.x))[rows]))

    def of_guests(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """e (G, K) and a (G, K) of rows that are not in the set."""
        x = matmul(features - self.centre, self.whiten)
        return self.distances(x, np.float32(0)), self.agreement(unit_rows(x))

    def distances(self, x: np.ndarray, own: np.ndarray) -> np.ndarray:
        """e (n, K) of whitened rows x, which take part in the means with assignments `own` (n, K)."""
        counts, shot_counts = self.counts.astype(np.float32), self.shot_counts.astype(np.float32)
        others = counts - own
        known = np.minimum(others, shot_counts + (counts - shot_counts).mean())
        # x - mean without x = (x - mean) counts / others
        new = squared_distances(x, self.means) * (counts / others) ** 2 / (1 + 1 / known)
        return -0.5 * new + 0.5 * TAKEN_BACK * squared_distances(x, self.shot_means) / (1 + 1 / shot_counts)

    def agreement(self, unit: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
        """a (n, K) of whitened unit rows; `numbers`: where they stand in the set, or they would agree with themselves.

        0 where a class has one image.
        """
        return agreement(unit, self.unit, self.assignments, self.neighbours, numbers)


def agreement(unit: np.ndarray, others: np.ndarray, assignments: np.ndarray, neighbours: int,
              numbers: np.ndarray | None = None) -> np.ndarray:
    """sum of cos(x_n, x_m) u_mk over the nearest m: rows (n, D), others (N, D), u (N, K) -> (n, K).

    numbers: where the rows stand among the others, or they would agree with themselves.
    """
    found = np.zeros((len(unit), assignments.shape[1]), np.float32)
    for block in blocks(len(unit), max(1, 2 ** 24 // len(others))) if neighbours else ():
        cosines = matmul(unit[block], others.T)
        own = np.arange(len(cosines))
        if numbers is not None:
            cosines[own, numbers[block]] = -np.inf
        for _ in range(neighbours):  # the nearest, then the nearest of the others
            nearest = cosines.argmax(axis=1)
            found[block] += np.maximum(cosines[own, nearest], 0)[:, None] * assignments[nearest]
            cosines[own, nearest] = -np.inf
    return found


def squared_distances(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """|x - mean|^2: (n, D), (K, D) -> (n, K)."""
    product = matmul(x, means.T)
    return np.maximum((x ** 2).sum(axis=1, keepdims=True) - 2 * product + (means ** 2).sum(axis=1), 0)


def choose_class_weights(probs: np.ndarray, folds: Sequence[HeldOutFold] = (), seen: np.ndarray | None = None
                         ) -> tuple[ClassWeights, dict[str, dict]]:
    """Whether most classes are absent or all are equally frequent, and the decision for the record.

    Answers to shots that were left out say how unequal classes look to this classifier that are not. Classes count
    less where the best alpha is below 1, the Dirichlet's own border between dense and sparse proportions, and fewer
    than half of the classes then receive an image that would if all were there. Without folds nothing is weighed.
    """
    concentration, gains, present = _presence(probs)
    sparse, shares, found = False, None, {"beta": 0.0}
    if folds and concentration < 1:
        known = np.concatenate([fold.own_answers for fold in folds])
        sparse = present < min(probs.shape) / 2 * _presence(known)[2] / min(known.shape)
    if not sparse:
        shares, found = balanced_shares(probs, folds, np.ones(probs.shape[1], bool) if seen is None else seen)
    weights = ClassWeights(sparse, concentration, len(probs) / max(present, 1), present, shares)
    if sparse:
        why = f"only about {present} of {probs.shape[1]} classes seem to have an image here; the others count less"
    elif shares is not None:
        why = (f"classes seem to be equally frequent here: answers spread by {100 * found['spread']:.0f} %, and would "
               f"by {100 * found['spread_if_balanced']:.0f} % if they were; the classes are weighed accordingly")
    else:
        why = f"about {present} of {probs.shape[1]} classes seem to have an image here; none counts less"
    return weights, {"classes": {"concentration": _number(concentration), "gains": gains, "present": present,
                                 "sparse": sparse, **found, "why": why}}


def _presence(probs: np.ndarray) -> tuple[float, dict[str, float], int]:
    """alpha, its gains (`choose_concentration`) and how many classes then receive half an image or more."""
    concentration, gains = choose_concentration(probs)
    settled = probs
    if np.isfinite(concentration):
        # without a level o / (o + f) tends to o / f: what a class of its own weight would receive
        start = np.log(probs + np.float32(TINY))
        for _ in range(WEIGHT_ROUNDS):
            others = np.maximum(settled.sum(axis=0, dtype=np.float64).astype(np.float32) - settled, 0)
            settled = softmax(start + np.log(others + np.float32(concentration)))
    return concentration, gains, int((settled.sum(axis=0, dtype=np.float64) >= 0.5).sum())


def choose_concentration(probs: np.ndarray) -> tuple[float, dict[str, float]]:
    """alpha by the likelihood of held-out images: (alpha, {alpha: gain over equal weights in nats an image}).

    The images are halved; class proportions estimated on one half under Dirichlet(alpha), by variational Bayes,
    score the other:  mean ln sum_k p_nk pi_k. Infinite: equal weights.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(probs))[:SAMPLE]
    halves = [probs[order[0::2]], probs[order[1::2]]]
    scores: dict[float, list] = {a: [] for a in CONCENTRATIONS}
    for mine, other in (halves, halves[::-1]):
        weights = np.full(probs.shape[1], 1 / probs.shape[1])
        for a in CONCENTRATIONS:  # from equal to sparse, each starting from the one before
            weights, shares = _variational_weights(mine, weights, a)
            scores[a].append(np.log(other @ shares + TINY))
    better = {a: np.concatenate(score) - np.concatenate(scores[np.inf]) for a, score in scores.items()}
    gains = {a: float(gain.mean()) for a, gain in better.items()}
    best = max(gains, key=gains.get)
    if gains[best] < CAUTION * better[best].std() / np.sqrt(len(order)):
        best = np.inf  # a handful of images may look alike by chance
    return best, {str(_number(a)): gain for a, gain in gains.items()}


def _variational_weights(probs: np.ndarray, weights: np.ndarray, a: float) -> tuple:
    """exp(E[ln pi_k]) and E[pi_k], both (K,), under Dirichlet(a) and the images `probs`."""
    num_classes = probs.shape[1]
    if not np.isfinite(a):
        return weights, weights
    for _ in range(WEIGHT_STEPS):
        joint = probs * weights.astype(probs.dtype)
        mass = a + (joint / joint.sum(axis=1, keepdims=True)).sum(axis=0, dtype=np.float64)
        weights = np.exp(gamma_family(mass)[1] - gamma_family(mass.sum(keepdims=True))[1])
    return weights, mass / (num_classes * a + len(probs))


def distinct(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """First row of each distinct image, in order, and which of them each row copies (None: no copies)."""
    rows = np.ascontiguousarray(features).view(np.dtype((np.void, features.dtype.itemsize * features.shape[1])))
    _, first, inverse = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    if len(first) == len(features):
        return np.arange(len(features)), None
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def keep_ranking(start: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """Refined rows: the first answer stays, with its probability; the rest is ranked half as in the start."""
    result = np.empty_like(refined)
    for rows in blocks(len(refined)):
        share = refined[rows].max(axis=1)
        at = np.arange(len(share)), refined[rows].argmax(axis=1)
        fused = np.sqrt(start[rows] * refined[rows])
        fused[at] = 0
        fused *= ((1 - share) / np.maximum(fused.sum(axis=1), TINY))[:, None]
        fused = np.minimum(fused, 0.999 * share[:, None])
        fused[at] = share
        result[rows] = fused / fused.sum(axis=1, keepdims=True)
    return result


def blocks(rows: int, size: int = BLOCK) -> list[slice]:
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def result_of(refined: np.ndarray, probs: np.ndarray, task: Task, present: int, decisions: dict) -> Refinement:
    """The refinement from probs (N, K) to refined (N, K)."""
    balance = refined.mean(axis=0, dtype=np.float64)
    changed = np.flatnonzero(refined.argmax(axis=1) != probs.argmax(axis=1))
    return Refinement(refined, changed, balance, np.bincount(task.domains, weights=balance), present, decisions)


def unrefined(probs: np.ndarray, task: Task, decisions: dict) -> Refinement:
    """Probabilities (N, K) as they are, and why."""
    return result_of(probs, probs, task, task.num_classes, decisions)


def too_few(probs: np.ndarray, distinct_images: int, task: Task) -> Refinement:
    """Probabilities (N, K) of a set with fewer than `MIN_IMAGES` different images, as they are."""
    images = "1 image is too few" if len(probs) == 1 else f"{len(probs)} images are too few"
    if distinct_images < len(probs):
        images = f"{len(probs)} images, {distinct_images} without copies, are too few"
    why = f"{images} to learn from each other; the answers stay as they are"
    return unrefined(probs, task, {"size": {"why": why}})


def _number(value: float) -> float | None:
    """JSON has no infinity: None."""
    return float(value) if np.isfinite(value) else None
