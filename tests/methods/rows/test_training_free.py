"""The methods that need no training: published numbers, limits, symmetries, edges, honest held-out logits."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats

from jclip_fewshot.backend.numerics import log_sum_exp
from jclip_fewshot.methods.base import keep_unseen, top1
from jclip_fewshot.methods.rows.evidence import fit_mixture
from jclip_fewshot.methods.rows.gda import GDA, gaussian_classifier, precision_matrix
from jclip_fewshot.methods.rows.proker import ProKeR
from jclip_fewshot.methods.rows.text_profile import FLOOR, TextProfile
from jclip_fewshot.methods.rows.tip_adapter import TipAdapter, capped_cache
from jclip_fewshot.methods.rows.tip_x import TipX, text_divergence
from jclip_fewshot.methods.rows.zero_shot import ZeroShot
from jclip_fewshot.task import Task, class_means, fold_of_shots, zero_shot_logits

TRAINING_FREE = (ZeroShot, TipAdapter, TipX, GDA, ProKeR, TextProfile)
WITH_ALPHA = (TipAdapter, GDA, ProKeR)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def small_case(K=8, counts=3, D=32, queries=11, seed=0, domains=1):
    """Classes around their text rows, moved by a common modality gap, in a space that CLIP's is like."""
    rng = np.random.default_rng(seed)
    text = unit(rng.normal(size=(K, D)) * 0.4 + rng.normal(size=D))
    centres = text + 0.15 * rng.normal(size=(K, D)) + 0.3 * rng.normal(size=D)
    counts = np.broadcast_to(counts, K)
    labels = np.repeat(np.arange(K), counts)
    truth = rng.integers(K, size=queries)
    task = Task(unit(centres[labels] + 0.15 * rng.normal(size=(len(labels), D))), labels, text,
                  np.arange(K) % domains)
    return task, unit(centres[truth] + 0.15 * rng.normal(size=(queries, D))), truth


def close(got, expected, tolerance=1e-4):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


# published numbers

@pytest.mark.parametrize("alpha, beta", [(1.0, 5.5), (1.17, 1.0), (3.0, 1.0)])
def test_tip_adapter_equals_the_authors_code(shared, alpha, beta):
    case = np.load(shared / "reference" / "heads" / "tip.npz")
    method = TipAdapter(alpha=alpha, beta=beta).fit(Task(case["support"], case["support_y"], case["text"]))
    close(method.logits(case["query"]), case[f"logits_a{alpha}_b{beta}_f32"])


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0])
def test_gda_equals_the_authors_code(shared, alpha):
    case = np.load(shared / "reference" / "heads" / "gda.npz")
    task = Task(case["support"], case["support_y"], case["text"])
    means = class_means(task)
    W, b = gaussian_classifier(means, precision_matrix(task, means))
    close(W, case["W_f64"])
    close(b, case["b_f64"])
    method = GDA(alpha=alpha, text_shots=0).fit(task)
    zero_shot = zero_shot_logits(case["query"], case["text"])
    got, expected = (logits - logits.mean(axis=1, keepdims=True)  # the method leaves a constant a row out
                     for logits in (method.logits(case["query"]), case[f"logits_alpha{alpha}_f64"]))
    close(got, expected)
    close(got - zero_shot, expected - zero_shot)


def test_proker_equals_the_authors_code(shared):
    case = np.load(shared / "reference" / "heads" / "proker.npz")
    task = Task(case["support"], case["support_y"], case["text"])
    method = ProKeR(alpha=1.0, beta=float(case["beta"]), lam=float(case["lmbda"])).fit(task)
    close(method.logits(case["query"]) / 100, case["logits_f64"])
    close(method.logits(case["query"]) / 100, case["logits_f32_authors"])
    assert (method.settings_["beta"], method.settings_["lambda"]) == (1.5, 0.05)


# float64 oracles

def test_tip_adapter_float64():
    task, x, _ = small_case(counts=4)
    F, t, L = task.features.astype(float), task.text.astype(float), task.one_hot
    expected = 100 * x @ t.T + 2.5 * np.exp(-3 * (1 - x @ F.T)) @ L
    close(TipAdapter(alpha=2.5, beta=3.0).fit(task).logits(x), expected)


def test_tip_x_float64():
    task, x, _ = small_case()
    softmax = scipy.special.softmax
    s = softmax(100 * x.astype(float) @ task.text.T, axis=1)
    S = softmax(100 * task.features.astype(float) @ task.text.T, axis=1)
    M = np.array([[scipy.stats.entropy(p, q) for q in S] for p in s])
    close(text_divergence(x, task.features, task.text, 0.01), M)
    method = TipX(alpha=0.0, gamma=0.7, beta=2.0).fit(task)
    largest, span, low, high = method.rescale_
    A = np.exp(-2 * (1 - np.array([low, high])))
    psi = A[0] + (A[1] - A[0]) * (largest - M) / span
    expected = 100 * x.astype(float) @ task.text.T + 0.7 * psi @ task.one_hot
    close(method.logits(x), expected)


def test_text_profile_float64():
    task, x, _ = small_case(counts=[3, 3, 1, 4, 2, 3, 3, 3])
    F, t, y = task.features.astype(float), task.text.astype(float), task.labels
    mu = np.stack([F[y == c].mean(axis=0) for c in range(8)])
    text, image = t - t.mean(axis=0), mu - mu.mean(axis=0)
    m = mu.mean(axis=0) + (text * image).sum() / (text ** 2).sum() * text
    m /= np.linalg.norm(m, axis=1, keepdims=True)
    s = [scipy.special.softmax(100 * rows @ t.T, axis=1) for rows in (x.astype(float), F, m)]
    P = np.stack([(s[1][y == c].sum(axis=0) + s[2][c]) / ((y == c).sum() + 1) for c in range(8)])
    method = TextProfile(alpha=0.0, gamma=0.8).fit(task)
    close(method.logits(x), 100 * x.astype(float) @ t.T + 0.8 * s[0] @ np.log(P + FLOOR).T)


def test_gda_float64():
    task, x, _ = small_case(counts=5)
    F, y = task.features.astype(float), task.labels
    mu = np.stack([F[y == c].mean(axis=0) for c in range(task.num_classes)])
    sigma = np.cov((F - mu[y]).T)
    inverse = F.shape[1] * scipy.linalg.pinvh((len(F) - 1) * sigma + np.trace(sigma) * np.eye(F.shape[1]))
    W, b = gaussian_classifier(class_means(task), precision_matrix(task, class_means(task)))
    assert np.allclose(W, (mu @ inverse).T, rtol=1e-5)
    assert np.allclose(b, np.log(1 / len(mu)) - 0.5 * np.einsum("kd,de,ke->k", mu, inverse, mu), rtol=1e-5)


@pytest.mark.parametrize("block", [1, 5, 11, 2048])  # of 22 shots
def test_proker_in_float64_and_its_folds(block, monkeypatch):
    monkeypatch.setattr("jclip_fewshot.methods.rows.proker.BLOCK", block)
    task, x, _ = small_case(counts=[3, 3, 1, 4, 2, 3, 3, 3])

    def kernel_part(kept, queries):
        F, t = kept.features.astype(float), kept.text.astype(float)
        A = scipy.linalg.solve(np.exp(-2.0 * (1 - F @ F.T)) / 0.1 + np.eye(len(F)), kept.one_hot - F @ t.T)
        return np.exp(-2.0 * (1 - queries.astype(float) @ F.T)) @ A

    method = ProKeR(alpha=0.6, beta=2.0, lam=0.1).fit(task)
    close(method.logits(x), 100 * (x.astype(float) @ task.text.T + 0.6 * kernel_part(task, x)))
    held_out = method.held_out_logits()
    for fold in task.folds():
        rows = fold.left_out
        learned = kernel_part(fold.task, task.features[rows])
        expected = task.features[rows] @ task.text.T + 0.6 * learned
        close(held_out[rows], 100 * expected)


def test_mixture_is_the_optimum():
    rng = np.random.default_rng(0)
    components, labels = rng.normal(size=(3, 60, 7)).astype(np.float32), rng.integers(7, size=60)
    prior, spread = np.array([1.0, 0.5, 0.1]), np.array([1.0, 1.5, 0.3])

    def objective(w):
        logits = np.tensordot(w, components.astype(float), 1)
        return (scipy.special.logsumexp(logits, axis=1) - logits[np.arange(60), labels]).sum() \
            + 0.5 * (((w - prior) / spread) ** 2).sum()

    expected = scipy.optimize.minimize(objective, prior, method="BFGS", options={"gtol": 1e-8})
    mixture = fit_mixture(components, labels, prior, spread)
    assert mixture.converged and (np.diff(mixture.trace) <= 0).all()
    assert np.allclose(mixture.weights, expected.x, atol=1e-3)
    assert mixture.trace[-1] == pytest.approx(expected.fun, rel=1e-5)


# limits and symmetries

@pytest.mark.parametrize("make", WITH_ALPHA)
def test_no_evidence_is_zero_shot(make):
    task, x, _ = small_case()
    zero_shot = zero_shot_logits(x, task.text)
    assert np.abs(make(alpha=0.0).fit(task).logits(x) - zero_shot).max() < 1e-4
    assert np.abs(TipX(alpha=0.0, gamma=0.0).fit(task).logits(x) - zero_shot).max() < 1e-4


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_orders_do_not_matter(make):
    task, x, _ = small_case(counts=4, domains=2)
    rng = np.random.default_rng(1)
    classes, queries = rng.permutation(task.num_classes), rng.permutation(len(x))
    new_number = np.argsort(classes)
    permuted = Task(task.features, new_number[task.labels], task.text[classes], task.domains[classes])
    plain, other = make().fit(task), make().fit(permuted)
    close(other.logits(x[queries]), plain.logits(x)[queries][:, classes], 1e-3)
    close(other.held_out_logits(), plain.held_out_logits()[:, classes], 1e-3)


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_a_row_does_not_hang_on_its_neighbours(make):
    task, x, _ = small_case()
    method = make().fit(task)
    close(method.logits(x[3:4]), method.logits(x)[3:4])


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_inputs_stay_as_they_are_and_runs_repeat(make):
    task, x, _ = small_case(counts=4)
    before = [array.copy() for array in (task.features, task.labels, task.text, task.domains, x)]
    first, second = make().fit(task), make().fit(task)
    assert (first.logits(x) == second.logits(x)).all()
    with pytest.raises(ValueError):  # the caller's writing reaches nobody
        first.held_out_logits()[:] = 0
    assert (first.held_out_logits() == second.held_out_logits()).all()
    after = (task.features, task.labels, task.text, task.domains, x)
    assert all((a == b).all() for a, b in zip(before, after))


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_state_is_all_that_logits_needs(make):
    task, x, _ = small_case(counts=[3, 3, 0, 1, 4, 2, 3, 0], domains=2)
    method = make().fit(task)
    again = make.from_state({name: np.array(value) for name, value in method.state().items()})
    assert (again.logits(x) == method.logits(x)).all()
    with pytest.raises(KeyError, match="seen_"):
        make.from_state({})


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_held_out_logits_do_not_see_the_shot(make):
    """With the few chosen scalars fixed, a shot's label moves no logit of the shots left out with it."""
    fixed = {TipAdapter: dict(alpha=1.0, beta=3.0), TipX: dict(alpha=1.0, gamma=1.0, beta=3.0),
             GDA: dict(alpha=0.01, text_shots=1.0),
             TextProfile: dict(alpha=0.01, gamma=1.0, text_shots=1.0), ProKeR: dict(alpha=1.0)}.get(make, {})
    task, _, _ = small_case(counts=3)
    task = task.take(np.argsort(fold_of_shots(task.labels), kind="stable"))
    place = fold_of_shots(task.labels)
    # exchange the labels of two shots of fold 1: what folds 0 and 2 left out may change, fold 1 may not
    a, b = np.flatnonzero(place == 1)[:2]
    labels = task.labels.copy()
    labels[[a, b]] = labels[[b, a]]
    exchanged = Task(task.features, labels, task.text, task.domains)
    rows = np.setdiff1d(np.flatnonzero(place == 1), [a, b])
    plain, other = make(**fixed).fit(task).held_out_logits(), make(**fixed).fit(exchanged).held_out_logits()
    assert (fold_of_shots(labels) == place).all()
    close(other[rows], plain[rows], 1e-3)
    close(other[[a, b]], plain[[a, b]], 1e-3)


def test_the_cache_holds_at_most_sixteen_a_class():
    rng = np.random.default_rng(0)
    features, labels = unit(rng.normal(size=(45, 8))), np.repeat([0, 2], [40, 5])
    keys, classes = capped_cache(features, labels)
    assert np.bincount(classes).tolist() == [16, 0, 5]
    close(keys[0], unit(features[[0, 16, 32]].mean(axis=0, keepdims=True))[0])
    close(np.linalg.norm(keys, axis=1), np.ones(len(keys)))
    assert capped_cache(features[40:], labels[40:])[0].shape == (5, 8)


# shapes a contest may bring

@pytest.mark.parametrize("make", TRAINING_FREE)
@pytest.mark.parametrize("name, case", [
    ("classes without shots", dict(counts=[3, 0, 3, 0, 3, 3, 3, 0])),
    ("unequal shots", dict(counts=[1, 2, 3, 4, 5, 9, 1, 20])),
    ("one shot", dict(counts=1)),
    ("one class a domain", dict(counts=4, domains=8)),
    ("two classes", dict(K=2, counts=2)),
    ("one class", dict(K=1, counts=3)),
    ("one seen class", dict(counts=[0, 0, 3, 0, 0, 0, 0, 0])),
    ("many classes", dict(K=1000, counts=np.where(np.arange(1000) < 200, 2, 1), D=16)),
    ("no shot", dict(counts=0)),
])
def test_edge_cases(make, name, case):
    task, x, _ = small_case(**case)
    method = make().fit(task)
    logits, held_out = method.logits(x), method.held_out_logits()
    assert logits.shape == (len(x), task.num_classes) and logits.dtype == np.float32
    assert held_out.shape == (len(task), task.num_classes) and held_out.dtype == np.float32
    assert np.isfinite(logits).all() and np.isfinite(held_out).all()
    assert method.logits(x[:0]).shape == (0, task.num_classes)
    alone = task.counts[task.labels] < 2
    if alone.any() and task.seen.all():
        close(held_out[alone], zero_shot_logits(task.features[alone], task.text))
    if not len(task):
        assert (logits == zero_shot_logits(x, task.text)).all()
        assert (make.from_state(method.state()).logits(x) == logits).all()


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_float16_rows_and_duplicate_text(make):
    task, x, _ = small_case(counts=3)
    half = make().fit(Task(task.features.astype(np.float16), task.labels, task.text.astype(np.float16)))
    assert np.abs(half.logits(x.astype(np.float16)) - make().fit(task).logits(x)).max() < 1.5
    text = task.text.copy()
    text[5] = text[2]
    logits = make().fit(Task(task.features, task.labels, text)).logits(x)
    assert np.isfinite(logits).all()
    same = make().fit(Task(np.repeat(text[:1], 4, axis=0), np.arange(4), np.repeat(text[:1], 4, axis=0)))
    assert np.isfinite(same.logits(x)).all()


def test_shots_say_what_is_wrong():
    rows = unit(np.random.default_rng(0).normal(size=(4, 8)))
    for features, labels, text, domains, message in (
            (rows, [0, 1], rows, None, "do not fit"),
            (rows, [0, 1, 2, 4], rows, None, "labels must lie in 0..3"),
            (rows, [0, 1, 2, 3], rows, [0], "as many domains"),
            (rows * np.nan, [0, 1, 2, 3], rows, None, "not finite")):
        with pytest.raises(ValueError, match=message):
            Task(features, labels, text, domains)
    with pytest.raises(ValueError, match="call fit"):
        TipAdapter().logits(rows)
    with pytest.raises(ValueError, match="width 8"):
        TipAdapter().fit(Task(rows, [0, 1, 2, 3], rows)).logits(rows[:, :5])


# classes without shots

def test_unseen_classes_keep_their_share():
    rng = np.random.default_rng(0)
    zero_shot, logits = (5 * rng.normal(size=(2, 9, 6))).astype(np.float32)
    seen = np.array([True, True, False, True, False, True])
    kept = keep_unseen(logits, zero_shot, seen)
    share = [np.exp(log_sum_exp(z[:, ~seen]) - log_sum_exp(z)) for z in (kept, zero_shot)]
    close(share[0], share[1])
    assert (kept[:, seen] == logits[:, seen]).all()
    close(np.diff(kept[:, ~seen]), np.diff(zero_shot[:, ~seen]))
    assert (keep_unseen(logits, zero_shot, np.ones(6, bool)) == logits).all()
    assert (keep_unseen(logits, zero_shot, np.zeros(6, bool)) == zero_shot).all()


# what they are worth

@pytest.mark.parametrize("make, least", [(TipAdapter, 75.0), (TipX, 77.3), (GDA, 77.9), (ProKeR, 77.6),
                                         (TextProfile, 79.4)])
def test_replica_dev(shared, make, least):
    suite = np.load(shared / "features" / "replica_dev.npz")
    names = [str(name).split("_")[0] for name in suite["classes"]]
    domains = np.unique(names, return_inverse=True)[1]
    method = make().fit(Task(suite["train_x"], suite["train_y"], suite["text"], domains))
    assert top1(method.logits(suite["test_x"]), suite["test_y"]) >= least
    assert 60 < top1(method.held_out_logits(), method.task_.labels) < 90


def test_weights_that_do_not_converge_are_said_and_recorded(monkeypatch, capsys):
    task, _, _ = small_case()
    assert GDA().fit(task).settings_["converged"] is True
    monkeypatch.setattr("jclip_fewshot.methods.rows.evidence.MAX_STEPS", 0)
    assert GDA().fit(task).settings_["converged"] is False
    assert "gda: the search did not converge" in capsys.readouterr().err


@pytest.mark.parametrize("make", TRAINING_FREE)
def test_refit_on_the_same_shots_is_the_same_head(make):
    task, queries, _ = small_case(counts=4)
    method = make().fit(task)
    close(method.refit(task).logits(queries), method.logits(queries))
    fold = task.folds()[0]
    assert not np.allclose(method.refit(fold.task).logits(queries), method.logits(queries)) or make.name == "zero_shot"
    if make.name in ("gda", "text_profile", "proker", "tip_adapter"):  # what a fold's fit says is what was held out
        close(method.refit(fold.task).logits(task.features[fold.left_out]),
              method.held_out_logits()[fold.left_out], 2e-2)
