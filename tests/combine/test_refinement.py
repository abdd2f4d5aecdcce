"""The refinement: what it must gain where truth is known, what it must leave alone, by property."""

import json

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.combine.refinement import choose_concentration, choose_strength, class_bias, refine
from jclip_fewshot.task import Task

CLASSES, WIDTH, SHOTS = 24, 32, 4


def softmax(logits):
    z = np.exp(logits - logits.max(1, keepdims=True))
    return (z / z.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    """Gaussian classes on the sphere; answers come from noisy means, so the set has something to teach."""
    rng = np.random.default_rng(0)
    means = unit_rows(rng.standard_normal((CLASSES, WIDTH)))
    text = unit_rows(means + 0.12 * rng.standard_normal(means.shape))

    def draw(labels):
        return unit_rows(means[labels] + 0.2 * rng.standard_normal((len(labels), WIDTH)))

    shot_labels = np.repeat(np.arange(CLASSES), SHOTS)
    task = Task(draw(shot_labels), shot_labels, text, np.arange(CLASSES) % 2)
    labels = np.repeat(np.arange(CLASSES), 20)
    features = draw(labels)
    return task, features, labels, softmax(12 * features @ text.T), softmax(12 * task.features @ text.T)


def top1(probs, labels):
    return 100 * np.mean(probs.argmax(1) == labels)


def test_gains_on_the_whole_set(world):
    task, features, labels, probs, held_out = world
    refined = refine(probs, features, task, held_out)
    assert top1(refined.probs, labels) > top1(probs, labels) + 1
    assert refined.gate["class weights"]["why"].startswith("equal")
    assert refined.gate["evidence"]["why"].startswith("on")


def test_gains_more_where_few_classes_are_present(world):
    task, features, labels, probs, held_out = world
    rows = np.flatnonzero(labels < 3)
    refined = refine(probs[rows], features[rows], task, held_out)
    assert refined.gate["class weights"]["why"].startswith("estimated")
    assert refined.classes_present <= 6
    assert top1(refined.probs, labels[rows]) > top1(probs[rows], labels[rows]) + 2
    assert refined.class_balance[:3].sum() > 0.9


def test_a_favoured_class_is_put_right(world):
    task, features, labels, probs, held_out = world
    favoured = 2.0 * (np.arange(CLASSES) == 7)
    spoilt, spoilt_held_out = (softmax(np.log(p) + favoured) for p in (probs, held_out))
    refined = refine(spoilt, features, task, spoilt_held_out)
    assert "favour correcting" in refined.gate["class bias"]["why"]
    assert top1(refined.probs, labels) >= top1(probs, labels)


def test_bias_gives_each_class_its_share():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 8)
    log_probs = np.log(softmax(rng.standard_normal((40, 6)) + 2 * np.eye(6)[labels] + [2, 0, 0, 0, 0, 0]))
    bias = class_bias(log_probs, labels, 1e-9, steps=500)
    mass = softmax((log_probs - bias)[:, :5]).sum(0)
    assert np.allclose(mass, 8, atol=0.01)
    assert bias[0] > 1 and bias[5] == 0  # the last class has no shots
    assert choose_strength(log_probs, labels)[0] < np.inf


def test_concentration_tells_sparse_from_dense():
    rng = np.random.default_rng(2)

    def drawn(labels):
        return softmax(2 * rng.standard_normal((len(labels), 50)) + 5 * np.eye(50)[labels])

    assert choose_concentration(drawn(rng.integers(0, 4, 75)))[0] < 1
    assert choose_concentration(drawn(np.repeat(np.arange(50), 10)))[0] >= 1


@pytest.mark.parametrize("rows", [1, 9])
def test_few_images_stay_as_they_are(world, rows):
    task, features, _, probs, held_out = world
    refined = refine(probs[:rows], features[:rows], task, held_out)
    assert np.array_equal(refined.probs, probs[:rows]) and len(refined.changed) == 0


def test_order_and_copies_of_images_do_not_matter(world):
    task, features, _, probs, held_out = world
    once = refine(probs, features, task, held_out).probs
    order = np.random.default_rng(3).permutation(len(probs))
    moved = refine(probs[order], features[order], task, held_out).probs
    assert np.mean(moved.argmax(1) == once[order].argmax(1)) > 0.99  # the halves that choose alpha differ
    twice = refine(np.repeat(probs, 2, 0), np.repeat(features, 2, 0), task, held_out).probs
    assert np.allclose(twice[::2], once, atol=1e-5) and np.array_equal(twice[::2], twice[1::2])


def test_rows_sum_to_one_inputs_stay_and_runs_repeat(world):
    task, features, _, probs, held_out = world
    before = [array.copy() for array in (features, probs, held_out)]
    first, second = refine(probs, features, task, held_out), refine(probs, features, task, held_out)
    assert np.array_equal(first.probs, second.probs)
    assert all(np.array_equal(a, b) for a, b in zip(before, (features, probs, held_out)))
    assert np.allclose(first.probs.sum(1), 1, atol=1e-5) and (first.probs >= 0).all()
    assert np.array_equal(first.changed, np.flatnonzero(first.probs.argmax(1) != probs.argmax(1)))
    assert np.isclose(first.class_balance.sum(), 1) and np.isclose(first.domain_balance.sum(), 1)
    json.dumps(first.record())
    assert "first answers changed" in first.report()


@pytest.mark.parametrize("case", ["no shots", "no held-out", "one shot", "classes without shots", "certain",
                                  "two classes"])
def test_stays_sane(world, case):
    task, features, labels, probs, held_out = world
    if case == "no shots":
        task, held_out = task.take(np.zeros(0, int)), held_out[:0]
    elif case == "no held-out":
        held_out = None
    elif case == "one shot":
        task, held_out = task.take(np.arange(0, 96, 4)), held_out[::4]
    elif case == "classes without shots":
        kept = task.labels < 15
        task, held_out = task.take(kept), held_out[kept]
    elif case == "certain":
        probs = np.eye(CLASSES, dtype=np.float32)[probs.argmax(1)]
    else:
        kept, rows = task.labels < 2, labels < 2
        held_out = held_out[kept][:, :2] / held_out[kept][:, :2].sum(1, keepdims=True)
        task = Task(task.features[kept], task.labels[kept], task.text[:2])
        probs = probs[rows, :2] / probs[rows, :2].sum(1, keepdims=True)
        features, labels = features[rows], labels[rows]
    refined = refine(probs, features, task, held_out)
    assert np.isfinite(refined.probs).all() and np.allclose(refined.probs.sum(1), 1, atol=1e-5)
    assert top1(refined.probs, labels) >= top1(probs, labels) - 0.5


def test_errors_name_the_shape(world):
    task, features, _, probs, held_out = world
    with pytest.raises(ValueError, match="do not fit"):
        refine(probs[:, :3], features, task, held_out)
    with pytest.raises(ValueError, match="held_out must be"):
        refine(probs, features, task, held_out[:5])
