"""The vicinal method: limits, odd shapes, determinism, and its worth on real features."""

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods.base import top1
from jclip_fewshot.methods.rows.vicinal import Vicinal, vicinity
from jclip_fewshot.task import Task, zero_shot_logits


def make_shots(classes=6, per_class=4, width=16, unseen=(), seed=0):
    rng = np.random.default_rng(seed)
    text = unit_rows(rng.standard_normal((classes, width)))
    labels = np.repeat(np.setdiff1d(np.arange(classes), list(unseen)), per_class).astype(int)
    features = text[labels] + rng.standard_normal((len(labels), width)) / 3
    return Task(features, labels, text, np.arange(classes) % 2)


def test_an_endless_anchor_is_zero_shot():
    task = make_shots()
    logits = Vicinal(lambdas=(1e9,), map_lambda=1e9, lr=1e-5, epochs=5).fit(task).logits(task.features)
    np.testing.assert_allclose(logits, zero_shot_logits(task.features, task.text), atol=0.1)
    start = Vicinal(epochs=0).fit(task)
    zero_shot = zero_shot_logits(task.features, task.text)
    np.testing.assert_allclose(start.logits(task.features), zero_shot, atol=1e-3)


def test_learns_from_the_shots():
    rng = np.random.default_rng(1)
    task = make_shots()
    turned = Task(task.features, (task.labels + 1) % 6, task.text)  # the text rows are all wrong
    method = Vicinal(epochs=100, lr=0.02, lambdas=(1.0,)).fit(turned)
    test = task.text[turned.labels - 1] + rng.standard_normal((24, 16)) / 10
    zero_shot = zero_shot_logits(unit_rows(test), task.text)
    assert top1(method.logits(test), turned.labels) > top1(zero_shot, turned.labels)
    assert len(method.history_) == 100 and method.history_[-1]["loss"] < method.history_[0]["loss"]


@pytest.mark.parametrize("task", [
    make_shots(classes=2), make_shots(per_class=1), make_shots(unseen=(1, 3)), make_shots(unseen=range(6)),
    make_shots(classes=2, unseen=(0,)), make_shots().take(np.r_[0:4, 4:6, 8:9, 12:24])])
def test_odd_shapes(task):
    method = Vicinal(epochs=3, lambdas=(10.0, 100.0)).fit(task)
    logits, held_out = method.logits(task.text), method.held_out_logits()
    assert logits.shape == (task.num_classes,) * 2 and np.isfinite(logits).all()
    assert held_out.shape == (len(task), task.num_classes) and np.isfinite(held_out).all()
    np.testing.assert_array_equal(Vicinal.from_state(method.state()).logits(task.text), logits)


def test_the_seed_decides():
    task = make_shots()
    one, same, other = (Vicinal(epochs=3, seed=seed).fit(task).logits(task.features) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_vicinity_borrows_within_the_domain_only():
    """Domain 0 varies along the first axis only, domain 1 along the second."""
    text = np.eye(4, 8)
    labels = np.repeat([0, 1, 2, 3], 2)
    features = np.eye(8)[4 + labels] * 2
    features[:4, 0] += [0.5, -0.5] * 2
    features[4:, 1] += [0.5, -0.5] * 2
    task = Task(features, labels, text, np.array([0, 0, 1, 1]))
    draw = vicinity(task, 1.0, 0.0, 0)
    for _ in range(5):
        x = draw()
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
        assert np.abs(x[:4, 1]).max() < 1e-6 and np.abs(x[4:, 0]).max() < 1e-6
    still = vicinity(task, 0.0, 0.0, 0)()
    np.testing.assert_allclose(still, task.features, atol=1e-6)


def test_beats_zero_shot_on_real_features(shared):
    suite = np.load(shared / "features" / "caltech65_4shot.npz")
    task = Task(suite["train_x"], suite["train_y"], suite["text"])
    method = Vicinal(lambdas=(30.0,)).fit(task)
    assert top1(method.logits(suite["test_x"]), suite["test_y"]) > 95
    held_out = method.held_out_logits()
    assert top1(held_out, task.labels) > top1(zero_shot_logits(task.features, task.text), task.labels)
