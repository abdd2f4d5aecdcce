"""The trained methods: limits, oracles in float64, determinism, odd shots, saving."""

import json

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import log_softmax, var
from jclip_fewshot.methods.rows.clap import CLAP, trust_in_text
from jclip_fewshot.methods.rows.clip_adapter import ClipAdapter
from jclip_fewshot.methods.rows.cross_modal import CrossModal
from jclip_fewshot.methods.rows.gda import GDA
from jclip_fewshot.methods.rows.jclip_adapter import JclipAdapter, whitening
from jclip_fewshot.methods.rows.linear_probe import LinearProbe, logistic_regression
from jclip_fewshot.methods.rows.lp_plus_plus import LPPlusPlus
from jclip_fewshot.methods.rows.tip_adapter_f import TipAdapterF
from jclip_fewshot.methods.rows.trained import borrowed, fits_of, residuals, soft_top1
from jclip_fewshot.task import Task, zero_shot_logits

WIDTH = 16
QUICK = {"epochs": 3}
ALL = [LinearProbe, CrossModal, ClipAdapter, JclipAdapter, TipAdapterF, CLAP, LPPlusPlus]
TRAINED = [CrossModal, ClipAdapter, JclipAdapter, TipAdapterF, CLAP]


def make(method, **settings):
    return method(**settings) if method is LinearProbe else method(**{**QUICK, **settings})


def rows(rng, n, width=WIDTH):
    x = rng.standard_normal((n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draw(counts, seed=0, noise=0.8, **kwargs):
    """Shots around class centres, text rows near them."""
    rng = np.random.default_rng(seed)
    centres = rows(rng, len(counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    around = lambda c: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(  # noqa: E731
        c + noise * rng.standard_normal(c.shape).astype(np.float32) / np.sqrt(WIDTH))
    return Task(around(centres[labels]).reshape(-1, WIDTH), labels, around(centres), **kwargs)


@pytest.fixture(scope="module")
def task():
    return draw([4] * 6)


@pytest.fixture(scope="module")
def queries():
    return rows(np.random.default_rng(9), 20)


@pytest.mark.parametrize("method", [JclipAdapter, CrossModal, CLAP])
def test_no_epochs_is_zero_shot(method, task, queries):
    logits = make(method, epochs=0).fit(task).logits(queries)
    np.testing.assert_allclose(logits, zero_shot_logits(queries, task.text), atol=2e-4)


def test_jclip_ratios_at_zero_are_zero_shot(task, queries):
    method = make(JclipAdapter, alpha=0.0, beta=0.0, ratios={}).fit(task)
    np.testing.assert_allclose(method.logits(queries), zero_shot_logits(queries, task.text), atol=2e-4)


def test_tip_f_without_cache_weight_is_zero_shot(task, queries):
    method = make(TipAdapterF, ratios={"alpha": (0.0,)}).fit(task)
    np.testing.assert_allclose(method.logits(queries), zero_shot_logits(queries, task.text), atol=2e-4)


def test_clap_with_boundless_trust_is_zero_shot(task, queries):
    method = make(CLAP, strength=1e12).fit(task)
    np.testing.assert_allclose(method.logits(queries), zero_shot_logits(queries, task.text), atol=2e-4)


def test_clap_trust_is_zero_shot_probability(task):
    p = np.exp(log_softmax(100 * task.features.astype(np.float64) @ task.text.T.astype(np.float64)))
    expected = [p[task.labels == c, c].mean() for c in range(6)]
    np.testing.assert_allclose(trust_in_text(task)[:, 0], expected, rtol=1e-3)


def test_jclip_gradient_against_finite_differences():
    """d(cross-entropy + κ KL)/dW₂ of both sides, float64 differences of the formulas written out in NumPy."""
    task = draw([3] * 4)
    method = JclipAdapter(rank=(5, 5), anchor=0.3)
    rng = np.random.default_rng(1)
    constants, parameters = method.start(task, rng)
    parameters = {k: (0.5 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in parameters.items()}
    constants["tau"] = np.float32([0.1])  # softer, so that float32 gradients have digits

    def loss(values):
        p = {k: np.asarray(v, np.float64) for k, v in {**constants, **values}.items()}
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
        x = task.features.astype(np.float64)
        moved = np.maximum(x @ p["image_in"] + p["image_shift"], 0) @ p["image_out"]
        f = unit(p["alpha"] * moved + (1 - p["alpha"]) * x)
        t = unit(p["beta"] * p["codes"] @ p["text_out"] + (1 - p["beta"]) * p["text"])
        log_p, log_q = log_softmax(f @ t.T / p["tau"]), log_softmax(x @ p["text"].T / p["tau"])
        kl = (np.exp(log_q) * (log_q - log_p)).sum(1).mean()
        return -log_p[np.arange(len(x)), task.labels].mean() + 0.3 * kl

    p = {k: var(v) for k, v in {**constants, **parameters}.items()}
    x = var(task.features)
    logits = method.forward(p, x)
    objective = cross_entropy(logits, jt.array(task.labels.astype(np.int32))) + method.penalty(p, x, logits, rng)
    np.testing.assert_allclose(objective.item(), loss(parameters), rtol=1e-4)
    for name in parameters:
        gradient = jt.grad(objective, p[name]).numpy()
        for index in zip(*np.unravel_index(rng.integers(gradient.size, size=8), gradient.shape)):
            step = np.zeros(gradient.shape)
            step[index] = 1e-5
            slope = (loss({**parameters, name: parameters[name] + step}) -
                     loss({**parameters, name: parameters[name] - step})) / 2e-5
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-2, atol=2e-5)


def test_whitening_decorrelates():
    rng = np.random.default_rng(0)
    for n in (200, 8):  # both sides of the Gram matrix
        x = rng.standard_normal((n, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))
        mean, P = whitening(x.astype(np.float32), WIDTH, 0.0)
        z = (x - mean) @ P * np.sqrt(P.shape[1])
        np.testing.assert_allclose(z.T @ z / n, np.eye(P.shape[1]), atol=2e-2)


def test_lp_plus_plus_gradient_and_steps_against_float64():
    task = draw([4, 3, 0, 2, 5])
    method = LPPlusPlus()
    constants, first = method.start(task, np.random.default_rng(0))
    W, a, (rate_w, rate_a) = first["W"], first["a"], constants["rates"]
    F, t = task.features.astype(np.float64), task.text.astype(np.float64)
    T, L, S = F @ t.T, task.one_hot.astype(np.float64), len(task)
    means = np.stack([F[task.labels == c].mean(0) if c != 2 else np.zeros(WIDTH) for c in range(5)])
    np.testing.assert_allclose(W, means, atol=1e-6)
    np.testing.assert_allclose(a, 250 * np.mean([T[task.labels == c, c].mean() for c in (0, 1, 3, 4)]), rtol=1e-4)
    np.testing.assert_allclose(rate_w, 4 * S / np.linalg.norm(F, 2) ** 2, rtol=1e-4)
    np.testing.assert_allclose(rate_a, S / (4 * (T ** 2).sum(0).max()), rtol=1e-4)
    assert method.optimiser([constants]).lr_factors == {"0/W": rate_w, "0/a": rate_a}
    closed = -1e9 * ~task.seen[None]
    a = a / 30  # softer, so that errors are not all 0 or 1
    p, x = {**{name: var(value) for name, value in constants.items()}, "W": var(W), "a": var(a)}, var(F)
    loss = cross_entropy(method.forward(p, x) + var(closed), jt.array(task.labels.astype(np.int32)))
    dw, da = jt.grad(loss, [p["W"], p["a"]])
    log_p = log_softmax(F @ W.T.astype(np.float64) + a.T * T + closed)
    error = (np.exp(log_p) - L) / S
    np.testing.assert_allclose(loss.item(), -(log_p[np.arange(S), task.labels]).mean(), rtol=1e-4)
    np.testing.assert_allclose(dw.numpy(), error.T @ F, atol=1e-5)
    np.testing.assert_allclose(da.numpy()[:, 0], (error * T).sum(0), atol=1e-5)


def test_logistic_regression_is_at_the_minimum(task):
    W, b, trace, converged = logistic_regression(task, C=8.96)
    assert converged and (np.diff(trace) <= 0).all()
    log_p = log_softmax(task.features.astype(np.float64) @ W.T + b)
    error = np.exp(log_p) - task.one_hot
    gradient = 8.96 * error.T @ task.features + W
    assert np.linalg.norm(gradient) < 0.01 * 8.96 * np.linalg.norm((1 / 6 - task.one_hot).T @ task.features)


def test_a_search_that_stops_early_is_said_and_recorded(task, monkeypatch, capsys):
    monkeypatch.setattr("jclip_fewshot.methods.rows.linear_probe.MAX_ITERATIONS", 1)
    assert LinearProbe().fit(task).settings_["converged"] is False
    assert "linear_probe: the search did not converge" in capsys.readouterr().err


def test_borrowed_residuals():
    task = draw([4, 1, 3])
    activations = residuals(task)[task.can_be_left_out]
    assert activations.shape == (7, WIDTH)
    assert not residuals(task)[~task.can_be_left_out].any()  # the only shot of its class
    np.testing.assert_allclose(activations[:4].sum(0), 0, atol=1e-5)
    rng = np.random.default_rng(0)
    moved = borrowed(task.features, activations, 1.0, rng)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, rtol=1e-5)
    assert borrowed(task.features, activations, 0.0, rng) is task.features
    assert borrowed(task.features, activations[:0], 1.0, rng) is task.features


def test_the_last_fit_sees_every_shot():
    task = draw([4, 1, 0, 6, 2])
    last = fits_of(task)[-1]
    assert len(last.left_out) == 0 and len(last.kept) == len(task)
    assert len(fits_of(draw([1, 1, 1]))) == 1


def test_soft_top1_goes_to_top1():
    logits, labels = np.float32([[2, 1], [0, 3], [5, 4]]), np.array([0, 1, 1])
    assert soft_top1(logits, labels, 1e3) == pytest.approx(200 / 3)


@pytest.mark.parametrize("method", ALL)
def test_held_out_answers_do_not_see_their_shot(method, task):
    """Moving one shot may not move the held-out logits of its own fold (settings chosen on all shots apart)."""
    fixed = {} if method in (LinearProbe, LPPlusPlus) else {"ratios": {}, "choose_epoch": False}
    if method is LPPlusPlus:
        fixed = {"every": 99}  # scored once, at the last epoch
    moved = task.features.copy()
    moved[0] = -moved[0]
    before = make(method, **fixed).fit(Task(task.features, task.labels, task.text)).held_out_logits()
    after = make(method, **fixed).fit(Task(moved, task.labels, task.text)).held_out_logits()
    fold = np.arange(4, 24, 4)  # first shots of the other classes: left out together with shot 0
    np.testing.assert_allclose(after[fold], before[fold], atol=1e-3)
    assert before.shape == (24, 6) and before.dtype == np.float32
    assert np.abs(after[1:4] - before[1:4]).max() > 1e-4  # the others' fits did see it


@pytest.mark.parametrize("method", ALL)
def test_same_seed_same_bytes_and_saved_state(method, task, queries, tmp_path):
    first, second = make(method).fit(task), make(method).fit(task)
    logits = first.logits(queries)
    assert logits.shape == (20, 6) and logits.dtype == np.float32
    assert logits.tobytes() == second.logits(queries).tobytes()
    assert first.held_out_logits().tobytes() == second.held_out_logits().tobytes()
    np.savez(tmp_path / "method.npz", **first.state())
    with np.load(tmp_path / "method.npz") as state:
        loaded = type(first).from_state(dict(state))
    assert loaded.logits(queries).tobytes() == logits.tobytes()
    json.dumps([first.settings_, first.history_])


def test_another_seed_another_fit(task, queries):
    one, two = (make(JclipAdapter, seed=seed, choose_epoch=False).fit(task).logits(queries) for seed in (0, 1))
    assert np.abs(one - two).max() > 1e-4


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("counts", [[4, 0, 2, 1, 0, 5], [1, 1], [1, 0, 0], [2, 2], [0, 0, 0]])
def test_odd_shots(method, counts, queries):
    task = draw(counts, domains=np.arange(len(counts)) % 2)
    fitted = make(method).fit(task)
    logits, zero_shot = fitted.logits(queries), zero_shot_logits(queries, task.text)
    assert np.isfinite(logits).all() and logits.shape == zero_shot.shape
    held_out = fitted.held_out_logits()
    assert held_out.shape == (len(task), len(counts)) and np.isfinite(held_out).all()
    alone = task.counts[task.labels] < 2
    np.testing.assert_allclose(held_out[alone], zero_shot_logits(task.features, task.text)[alone], atol=1e-4)
    if not task.seen.any():
        np.testing.assert_allclose(logits, zero_shot, atol=1e-4)
    elif not task.seen.all():  # the unseen keep zero-shot's share of probability
        share = np.exp(log_softmax(logits))[:, ~task.seen]
        np.testing.assert_allclose(share, np.exp(log_softmax(zero_shot))[:, ~task.seen], atol=1e-3)
    assert fitted.logits(queries[:0]).shape == (0, len(counts))


@pytest.mark.parametrize("method", TRAINED)
def test_twin_text_rows_and_half_precision(method, queries):
    task = draw([3, 3, 3])
    text = task.text.copy()
    text[1] = text[0]
    logits = make(method).fit(Task(task.features.astype(np.float16), task.labels, text.astype(np.float16))).logits(
        queries.astype(np.float16))
    assert np.isfinite(logits).all() and logits.dtype == np.float32


def test_twin_text_rows_part(queries):
    """Where text cannot tell two classes apart, both sides' adapters learn to from the shots."""
    task = draw([4] * 6, noise=0.3)
    text = task.text.copy()
    text[1] = text[0]
    method = JclipAdapter(epochs=20, lr=1e-2).fit(Task(task.features, task.labels, text))
    twins = task.labels < 2
    assert (method.logits(task.features)[twins].argmax(1) == task.labels[twins]).all()


def test_shots_unchanged_and_history(task):
    copy = task.features.copy()
    method = make(JclipAdapter).fit(task)
    np.testing.assert_array_equal(task.features, copy)
    assert [h["epoch"] for h in method.history_] == [0, 1, 2, 3]
    assert {"loss", "train_top1", "held_out_loss", "held_out_top1"} <= set(method.history_[-1])
    assert method.settings_["epoch"] in (0, 1, 2, 3)


def test_wrong_settings_are_named():
    with pytest.raises(TypeError, match="jclip_adapter has no setting 'bottleneck'"):
        JclipAdapter(bottleneck=3)
    with pytest.raises(TypeError, match="gda has no setting 'shots'"):
        GDA(shots=3)


def test_measured_on_genuine_features(shared):
    """caltech65, default settings; numbers are this code's own, with room for another machine's rounding."""
    z = np.load(shared / "features" / "caltech65_4shot.npz", allow_pickle=True)
    task = Task(z["train_x"], z["train_y"], z["text"])
    test = z["test_x"].astype(np.float32)
    for method, least in ((JclipAdapter(), 94.6), (CLAP(), 94.6), (LinearProbe(), 91.0)):
        assert 100 * (method.fit(task).logits(test).argmax(1) == z["test_y"]).mean() > least
