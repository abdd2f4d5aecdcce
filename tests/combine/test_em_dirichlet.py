"""EM-Dirichlet: against the authors' results, scipy, plain updates, and by property."""

import numpy as np
import pytest
from scipy import special

from jclip_fewshot.combine.em_dirichlet import em_dirichlet, fit_alpha
from tests.methods.rows.references import FILE, SETTINGS, simplex_case


def simplex_rows(rng, rows, classes, labels=None, sharp=3.0):
    logits = rng.standard_normal((rows, classes))
    if labels is not None:
        logits[np.arange(rows), labels] += sharp
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.fixture(scope="module")
def case():
    """Six classes, two supports each, 60 queries of classes 0 to 3: enough for every property."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 2)
    return simplex_rows(rng, 60, 6, rng.integers(0, 4, 60)), simplex_rows(rng, 12, 6, labels), labels


def mm_update(alpha, mean_log, steps):
    """The authors' majorise-minimise updates of one alpha step."""
    for _ in range(steps):
        psi = special.digamma(alpha + 1)
        curvature = np.abs(2 * (alpha * psi - special.gammaln(alpha + 1)) / alpha ** 2)
        b = psi - special.digamma(alpha.sum(1, keepdims=True)) - curvature * alpha - mean_log
        alpha = (np.sqrt(b * b + 4 * curvature) - b) / (2 * curvature)
    return alpha


def likelihood(alpha, mean_log):
    return (special.gammaln(alpha.sum(1)) - special.gammaln(alpha).sum(1) + ((alpha - 1) * mean_log).sum(1))


@pytest.mark.parametrize("name", ["soft_lamK5", "soft_lamQ", "hard_lamK5", "hard_lamQ"])
def test_equals_the_authors_code(shared, name):
    reference = np.load(shared / "reference/heads/em_dirichlet.npz")
    expected = {key: reference[f"{name}_f64_{key}"]
                for key in ("u_final", "soft_final", "alpha_final", "v_final", "lam")}
    fit = em_dirichlet(reference["z_query"], reference["z_support"], reference["y_support"],
                       hard=name.startswith("hard"), weight=float(expected["lam"]), tolerance=0)
    assert np.array_equal(fit.assignments.argmax(1), expected["u_final"].argmax(1))
    assert np.abs(fit.assignments - expected["u_final"]).max() < 1e-3
    assert np.abs(fit.scores - expected["soft_final"]).max() < 1e-3
    assert np.abs(fit.alpha / expected["alpha_final"] - 1).max() < 1e-3
    assert np.abs(fit.class_weights - expected["v_final"]).max() < 1e-3


def test_equals_the_published_updates_run_to_their_end(case):
    probs, support, labels = case
    counts = np.bincount(labels, minlength=6)
    sums = np.zeros((6, 6))
    np.add.at(sums, labels, np.log(support + 1e-15))
    mean_log = (sums + probs.T @ np.log(probs + 1e-15)) / (counts + probs.sum(0))[:, None]
    expected = mm_update(np.ones((6, 6)), mean_log, 20000)
    ours = fit_alpha(mean_log)
    assert ours.converged and len(ours.trace) < 21
    assert np.abs(ours.alpha / expected - 1).max() < 1e-5
    stopped_short = mm_update(np.ones((6, 6)), mean_log, 50)
    assert (likelihood(ours.alpha, mean_log) >= likelihood(stopped_short, mean_log) - 1e-12).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_published_updates_with_what_is_stored(name):
    """Parity where the development data is absent."""
    hard, weight = SETTINGS[name]
    with np.load(FILE) as stored:
        u, alpha = stored[f"em/{name}/u"], stored[f"em/{name}/alpha"]
    fit = em_dirichlet(*simplex_case(), hard=hard, weight=weight, iterations=8, tolerance=0)
    assert np.abs(fit.assignments - u).max() < 1e-3 and np.abs(fit.alpha / alpha - 1).max() < 1e-3


def test_an_alpha_step_that_does_not_converge_is_said(case, monkeypatch, capsys):
    monkeypatch.setattr("jclip_fewshot.combine.em_dirichlet.NEWTON_STEPS", 1)
    assert not em_dirichlet(*case, weight=60.0).converged
    assert "did not converge" in capsys.readouterr().err


def test_likelihood_never_falls_in_an_alpha_step():
    rng = np.random.default_rng(1)
    mean_log = np.log(rng.dirichlet(np.full(9, 0.3), size=(7, 40)) + 1e-15).mean(1)
    for start in (None, np.ones((7, 9)), np.full((7, 9), 1e4), 10 ** rng.uniform(-6, 6, (7, 9))):
        fit = fit_alpha(mean_log, start)
        assert fit.converged
        steps = np.diff(np.array(fit.trace), axis=0)
        assert (steps >= 0).all()
        assert np.allclose(fit.alpha, fit_alpha(mean_log).alpha, rtol=1e-4)


@pytest.mark.parametrize("hard", [False, True])
def test_objective_never_falls(case, hard):
    fit = em_dirichlet(*case, hard=hard, weight=60.0, tolerance=0)
    assert (np.diff(fit.objective) >= -1e-7).all()


def test_order_of_queries_and_classes_does_not_matter(case):
    probs, support, labels = case
    fit = em_dirichlet(probs, support, labels, weight=60.0)
    rng = np.random.default_rng(2)
    queries, classes = rng.permutation(60), rng.permutation(6)
    moved = em_dirichlet(probs[queries], support, labels, weight=60.0)
    assert np.allclose(moved.assignments, fit.assignments[queries], atol=1e-6)
    renamed = em_dirichlet(probs[:, classes], support[:, classes], np.argsort(classes)[labels], weight=60.0)
    assert np.allclose(renamed.assignments, fit.assignments[:, classes], atol=1e-6)
    assert np.allclose(renamed.alpha, fit.alpha[classes][:, classes], rtol=1e-5)


def test_blocks_of_rows_change_nothing(case, monkeypatch):
    whole = em_dirichlet(*case, weight=60.0)
    monkeypatch.setattr("jclip_fewshot.combine.em_dirichlet.BLOCK_BYTES", 7 * 6 * 8)
    assert np.allclose(em_dirichlet(*case, weight=60.0).assignments, whole.assignments, atol=1e-9)


def sane(fit, rows, classes):
    assert fit.assignments.shape == (rows, classes) and fit.alpha.shape == (classes, classes)
    assert all(np.isfinite(part).all() for part in (fit.alpha, fit.class_weights, fit.objective))
    assert np.allclose(fit.assignments.sum(1), 1, atol=1e-5) and (fit.assignments >= 0).all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("rows, classes", [(1, 6), (20, 2), (30, 1000)])
def test_sizes(rows, classes, hard):
    rng = np.random.default_rng(3)
    probs = simplex_rows(rng, rows, classes).astype(np.float32)
    sane(em_dirichlet(probs, hard=hard, iterations=2), rows, classes)


@pytest.mark.parametrize("hard", [False, True])
def test_extremes(case, hard):
    probs, support, labels = case
    unshot = labels != 5  # class 5 loses its supports; no query is of it
    sane(em_dirichlet(probs, support[unshot], labels[unshot], hard=hard), 60, 6)
    duplicated = np.repeat(probs[:3], 20, 0)
    sane(em_dirichlet(duplicated, support, labels, hard=hard), 60, 6)
    sane(em_dirichlet(duplicated, hard=hard), 60, 6)
    certain = np.eye(6)[np.arange(60) % 4]  # probabilities of exactly 0 and 1, two classes without any
    sane(em_dirichlet(certain, hard=hard, weight=60.0), 60, 6)
    sane(em_dirichlet(certain, np.eye(6)[labels], labels, hard=hard, weight=60.0), 60, 6)


def test_inputs_are_left_alone_and_runs_repeat(case):
    before = [array.copy() for array in case]
    first, second = em_dirichlet(*case), em_dirichlet(*case)
    assert all(np.array_equal(a, b) for a, b in zip(before, case))
    assert np.array_equal(first.assignments, second.assignments)


def test_errors_name_the_shape(case):
    probs, support, labels = case
    with pytest.raises(ValueError, match="support_probs must be"):
        em_dirichlet(probs, support[:, :5], labels)
    with pytest.raises(ValueError, match="0..5"):
        em_dirichlet(probs, support, labels + 1)
    with pytest.raises(ValueError, match="go together"):
        em_dirichlet(probs, support)
    with pytest.raises(ValueError, match="N >= 1"):
        em_dirichlet(probs[:0])
