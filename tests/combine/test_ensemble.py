"""The ensemble: by property, on a small made-up problem with heads of known worth."""

import numpy as np
import pytest
from scipy.optimize import minimize

from jclip_fewshot.backend.numerics import log_softmax, unit_rows
from jclip_fewshot.combine import ensemble as ensemble_module
from jclip_fewshot.combine.ensemble import (
    Ensemble,
    class_bias,
    fit_pool,
    most_likely,
    stack_weights,
    strong_heads,
    temperature,
    unseen_offset,
)
from jclip_fewshot.task import Task, zero_shot_logits


def make_shots(num_classes=6, per_class=4, width=16, unseen=(), seed=0):
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((num_classes, width))
    labels = np.repeat(np.setdiff1d(np.arange(num_classes), list(unseen)), per_class).astype(int)
    features = 3 * text[labels] / np.linalg.norm(text[labels], axis=1, keepdims=True)
    features = features + rng.standard_normal(features.shape)
    return Task(features, labels, text, np.arange(num_classes) % 2)


def noisy_head(labels, num_classes, skill, seed):
    """Logits whose label column is raised by `skill`."""
    logits = np.random.default_rng(seed).standard_normal((len(labels), num_classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += skill
    return logits


def heads_of(task, labels, skills=(3.0, 2.0, 0.0), seed=1):
    K = task.num_classes
    return {f"head{i}": noisy_head(labels, K, skill, seed + i) for i, skill in enumerate(skills)}


def check_probs(probs, shape):
    assert probs.shape == shape and probs.dtype == np.float32
    assert np.isfinite(probs).all() and (probs > 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_better_heads_weigh_more_and_beat_a_plain_mean():
    task = make_shots(num_classes=20)
    labels = np.random.default_rng(9).integers(0, 20, 2000)
    ensemble = Ensemble().fit(heads_of(task, task.labels), task)
    test = heads_of(task, labels, seed=50)
    probs = ensemble.probs(test)
    check_probs(probs, (2000, 20))
    weights = list(ensemble.settings_["weights"].values())
    assert weights[0] > weights[1] > weights[2]
    mean = np.mean(list(test.values()), axis=0)
    assert (probs.argmax(1) == labels).mean() > (mean.argmax(1) == labels).mean()


def test_probabilities_are_calibrated_whatever_the_heads_scale():
    task = make_shots(num_classes=20, per_class=16)
    labels = np.random.default_rng(9).integers(0, 20, 4000)
    scales = {"head0": 30.0, "head1": 0.1, "head2": 1.0}
    held_out = {name: scales[name] * one for name, one in heads_of(task, task.labels).items()}
    test = {name: scales[name] * one for name, one in heads_of(task, labels, seed=50).items()}
    probs = Ensemble().fit(held_out, task).probs(test)
    assert abs(probs.max(1).mean() - (probs.argmax(1) == labels).mean()) < 0.05


@pytest.mark.parametrize("task", [
    make_shots(num_classes=2), make_shots(per_class=1), make_shots(unseen=(1, 4)),
    make_shots(unseen=range(6)), make_shots(num_classes=2, unseen=(0,)),
    make_shots(per_class=2, unseen=(0,))])
def test_odd_shapes(task):
    labels = np.arange(30) % task.num_classes
    for count in (1, 2):
        held_out = heads_of(task, task.labels, (2.0,) * count)
        ensemble = Ensemble().fit(held_out, task)
        check_probs(ensemble.held_out_probs_, (len(task), task.num_classes))
        check_probs(ensemble.probs(heads_of(task, labels, (2.0,) * count)), (30, task.num_classes))


def test_unequal_counts_and_lonely_shots():
    task = make_shots()
    task = task.take(np.r_[0:4, 4:6, 8:9, 12:24])
    ensemble = Ensemble().fit(heads_of(task, task.labels), task)
    check_probs(ensemble.held_out_probs_, (len(task), 6))


def test_with_one_shot_a_class_the_text_is_judged_by_the_shots():
    """Heads with text have the more weight the better zero-shot knows the shots; the probe has the rest."""
    rng = np.random.default_rng(0)
    text = unit_rows(rng.standard_normal((20, 32)))
    shares = []
    for noise in (0.02, 0.3, 100.0):
        task = Task(unit_rows(text + noise * rng.standard_normal(text.shape)), np.arange(20), text)
        held_out = {name: task.zero_shot(task.features) for name in ("zero_shot", "gda", "proker", "linear_probe")}
        settings = Ensemble().fit(held_out, task, ["linear_probe"], ["zero_shot"]).settings_
        weights, q = settings["weights"], settings["text_explains"]
        assert weights["zero_shot"] == 0 and weights["proker"] == weights["gda"]  # both contain zero-shot
        np.testing.assert_allclose(weights["linear_probe"] * q ** 2, 2 * weights["gda"] * (1 - q), atol=1e-3)
        shares.append(weights["linear_probe"])
        alone = Ensemble().fit({"linear_probe": held_out["linear_probe"]}, task, ["linear_probe"])
        assert alone.settings_["weights"] == {"linear_probe": 1.0}
        alone = Ensemble().fit({"zero_shot": held_out["zero_shot"]}, task, (), ["zero_shot"])
        assert alone.settings_["weights"] == {"zero_shot": 1.0}
    assert shares[0] < 0.05 and shares[0] < shares[1] < shares[2] and shares[2] > 0.8


def test_one_head_alone_keeps_its_order_up_to_the_bias(monkeypatch):
    monkeypatch.setattr(ensemble_module, "EVIDENCE_FOR_FLAT", 1e9)
    task = make_shots(num_classes=8)
    test = heads_of(task, np.arange(8), (2.0,))
    probs = Ensemble().fit(heads_of(task, task.labels, (2.0,)), task).probs(test)
    np.testing.assert_array_equal(np.argsort(probs, axis=1), np.argsort(test["head0"], axis=1))


def test_state_returns_the_same_answers():
    task = make_shots(unseen=(2,))
    ensemble = Ensemble().fit(heads_of(task, task.labels), task)
    test = heads_of(task, np.arange(6))
    back = Ensemble.from_state(ensemble.state())
    np.testing.assert_array_equal(back.probs(test), ensemble.probs(test))
    with pytest.raises(KeyError, match="bias"):
        Ensemble.from_state({k: v for k, v in ensemble.state().items() if k != "bias"})


def test_is_deterministic_and_leaves_its_input_alone():
    task = make_shots(unseen=(2,))
    held_out = heads_of(task, task.labels)
    copies = {name: one.copy() for name, one in held_out.items()}
    first, second = Ensemble().fit(held_out, task), Ensemble().fit(held_out, task)
    np.testing.assert_array_equal(first.held_out_probs_, second.held_out_probs_)
    for name, one in held_out.items():
        np.testing.assert_array_equal(one, copies[name])


def test_permuting_the_heads_changes_nothing():
    task = make_shots()
    held_out, test = heads_of(task, task.labels), heads_of(task, np.arange(6))
    probs = Ensemble().fit(held_out, task).probs(test)
    turned = Ensemble().fit(dict(reversed(list(held_out.items()))), task).probs(test)
    np.testing.assert_allclose(turned, probs, atol=1e-4)


def test_held_out_probs_do_not_know_their_own_shot(monkeypatch):
    """With heads that know nothing, the cross-fitted answers stay near chance, however little equal weights count."""
    for name, evidence in (("EQUAL", 1e-3), ("STRONG", 3e-3), ("FLAT", 1e-2)):
        monkeypatch.setattr(ensemble_module, f"EVIDENCE_FOR_{name}", evidence)
    task = make_shots(num_classes=10, per_class=8)
    held_out = heads_of(task, task.labels, (0.0,) * 6)
    probs = Ensemble().fit(held_out, task).held_out_probs_
    assert -np.log(probs[np.arange(80), task.labels]).mean() > np.log(10) - 0.02


def test_errors_say_what_is_wrong():
    task = make_shots()
    held_out = heads_of(task, task.labels)
    with pytest.raises(ValueError, match="at least one head"):
        Ensemble().fit({}, task)
    with pytest.raises(ValueError, match="head1 hold"):
        Ensemble().fit({**held_out, "head1": np.full((24, 6), np.nan)}, task)


def test_stack_weights_reach_the_optimum():
    labels = np.arange(60) % 6
    log_probs = log_softmax(np.stack([noisy_head(labels, 6, 2 - seed, seed) for seed in range(3)]))
    prior, v = np.float64([0.5, 0.3, 0.2]), np.ones(60)
    w, converged = stack_weights(log_probs, labels, v, prior, 10.0)
    assert converged

    def objective(w):
        p = log_softmax(np.tensordot(w, log_probs.astype(float), 1))
        return -p[np.arange(60), labels].sum() + 10 * (w * np.log(w / prior) - w + prior).sum()

    best = minimize(objective, prior, bounds=[(1e-9, None)] * 3)
    assert objective(w) < best.fun + 1e-3
    strong, _ = stack_weights(log_probs, labels, v, prior, 1e6)
    np.testing.assert_allclose(strong, prior, atol=1e-3)


def test_temperature_and_bias_reach_their_optima():
    labels = np.arange(60) % 6
    logits, v = noisy_head(labels, 6, 2, 0), np.ones(60)
    a = temperature(7 * logits, labels, v)

    def loss(log_a):
        p = log_softmax(np.exp(log_a[0]) * 7 * logits.astype(float))
        return -p[np.arange(60), labels].sum() + 0.5 * log_a[0] ** 2

    assert loss([np.log(a)]) < minimize(loss, [0.0]).fun + 1e-3

    b, converged = class_bias(log_softmax(logits), labels, v)
    assert converged

    def penalised(b):
        p = log_softmax(logits + b)
        return -p[np.arange(60), labels].sum() + 2 * (b ** 2).sum()

    assert penalised(b) < minimize(penalised, np.zeros(6)).fun + 1e-3


def test_an_unfinished_search_is_said_and_recorded(monkeypatch, capsys):
    monkeypatch.setattr("jclip_fewshot.combine.ensemble.class_bias",
                        lambda log_probs, *rest: (np.zeros(log_probs.shape[1]), False))
    task = make_shots()
    ensemble = Ensemble().fit(heads_of(task, task.labels), task)
    assert ensemble.settings_["converged"] is False
    assert "did not converge" in capsys.readouterr().err
    monkeypatch.undo()
    assert Ensemble().fit(heads_of(task, task.labels), task).settings_["converged"] is True


def test_the_strong_prior_goes_to_few_heads_and_by_paired_differences():
    """Nine weak heads and one strong: equality would leave the strong one a tenth."""
    labels = np.arange(120) % 12
    log_probs = log_softmax(np.stack([noisy_head(labels, 12, skill, i) for i, skill in enumerate([3.0] + [0.3] * 9)]))
    prior = strong_heads(log_probs, labels, np.ones(120))
    assert prior.argmax() == 0 and prior[0] > 0.9 and (prior[1:] > 0).all() and np.isclose(prior.sum(), 1)
    same = strong_heads(np.stack([log_probs[0]] * 4), labels, np.ones(120))
    np.testing.assert_allclose(same, 0.25)


def test_heads_that_cannot_help_are_not_asked():
    """Few shots, one strong head, many that guess: the pool must come near the strong one."""
    task = make_shots(num_classes=12, per_class=2)
    labels = np.random.default_rng(9).integers(0, 12, 3000)
    skills = (3.0,) + (0.2,) * 9
    ensemble = Ensemble().fit(heads_of(task, task.labels, skills), task)
    test = heads_of(task, labels, skills, seed=50)
    alone = (test["head0"].argmax(1) == labels).mean()
    assert (ensemble.probs(test).argmax(1) == labels).mean() > alone - 0.01
    assert ensemble.settings_["weights"]["head0"] > sum(list(ensemble.settings_["weights"].values())[1:])


def test_pools_of_the_folds_are_kept_in_the_state():
    task = make_shots()
    ensemble = Ensemble().fit(heads_of(task, task.labels), task)
    back, held_out = Ensemble.from_state(ensemble.state()), heads_of(task, task.labels)
    for number, fold in enumerate(task.folds()):
        rows = {name: one[fold.left_out] for name, one in held_out.items()}
        np.testing.assert_allclose(back.without_fold(number).probs(rows), ensemble.held_out_probs_[fold.left_out],
                                   atol=1e-5)


def test_bias_takes_from_a_class_that_attracts_everything():
    labels = np.arange(80) % 8
    logits = noisy_head(labels, 8, 3, 0)
    logits[:, 5] += 2
    b, _ = class_bias(log_softmax(logits), labels, np.ones(80))
    assert b.argmin() == 5 and b[5] < -1


def test_most_likely_holds_the_label():
    labels = np.arange(20) % 10
    columns, place = most_likely(noisy_head(labels, 10, 0, 3), labels, 4)
    assert columns.shape == (20, 4)
    np.testing.assert_array_equal(columns[np.arange(20), place], labels)
    assert most_likely(np.zeros((20, 10)), labels, 10)[0] is None


def test_few_columns_give_nearly_the_same_pool(monkeypatch):
    task = make_shots(num_classes=200, per_class=4, width=32)
    held_out = np.stack(list(heads_of(task, task.labels, (5.0, 4.0)).values()))
    pool = fit_pool(held_out, task.labels)
    monkeypatch.setattr("jclip_fewshot.combine.ensemble.MAX_COLUMNS", 200)
    np.testing.assert_allclose(pool.weights, fit_pool(held_out, task.labels).weights, atol=0.1)


def test_unseen_classes_are_not_drowned():
    """A pool sure of its seen classes must not take the images of an unseen one that zero-shot finds."""
    rng = np.random.default_rng(0)
    task = make_shots(num_classes=20, per_class=6, width=64, unseen=(17, 18, 19))
    zero_shot = zero_shot_logits(task.features, task.text)
    sure = zero_shot.copy()
    sure[np.arange(len(task)), task.labels] += 10
    held_out = {"zero_shot": zero_shot, "sure": sure}
    ensemble = Ensemble().fit(held_out, task)
    labels = np.repeat([17, 18, 19], 50)
    text = task.text[labels]
    features = 3 * text + rng.standard_normal(text.shape) / 4
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    test = zero_shot_logits(features, task.text)
    probs = ensemble.probs({"zero_shot": test, "sure": test})
    assert (probs.argmax(1) == labels).mean() >= (test.argmax(1) == labels).mean() - 0.01


def test_offset_is_zero_where_the_pool_is_zero_shot_and_grows_with_confidence():
    task = make_shots(num_classes=20, per_class=6, width=64, unseen=(19,))
    zero_shot = log_softmax(0.2 * zero_shot_logits(task.features, task.text))
    seen = task.seen
    plain = log_softmax(zero_shot[:, seen])
    same, found = unseen_offset(plain, zero_shot, task.labels, seen, task.domains)
    assert same <= 0.25
    assert found["held_out_top1_called_unseen"] >= found["held_out_top1_called_unseen_zero_shot"] - 1e-9
    confident, _ = unseen_offset(log_softmax(5 * plain), zero_shot, task.labels, seen, task.domains)
    assert confident >= same
