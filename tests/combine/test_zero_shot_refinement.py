"""The refinement from class names alone: what it must gain where truth is known, what it must leave alone."""

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import softmax, unit_rows
from jclip_fewshot.combine.zero_shot_refinement import TextMixture, ranked_behind, refine_zero_shot
from jclip_fewshot.evaluation.tasks import some_classes
from jclip_fewshot.task import Task

CLASSES, WIDTH = 24, 48


def world(seed, each=20, gap=0.5):
    """Images around class means, text that tells roughly where they are, beyond a gap."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((CLASSES, WIDTH))
    text = unit_rows(means + 0.9 * rng.standard_normal(means.shape) + gap * rng.standard_normal(WIDTH))
    labels = np.repeat(np.arange(CLASSES), each)
    features = unit_rows(0.6 * means[labels] + 0.8 * rng.standard_normal((len(labels), WIDTH))
                         + gap * rng.standard_normal(WIDTH))
    task = Task(np.zeros((0, WIDTH)), [], text, np.arange(CLASSES) % 2)
    return task, features, labels, softmax(15 * features @ text.T)


def top1(probs, labels):
    return 100 * np.mean(probs.argmax(1) == labels)


def gain(task, features, labels, probs):
    return top1(refine_zero_shot(probs, features, task).probs, labels) - top1(probs, labels)


@pytest.mark.parametrize("gap", (0.5, 1.0))
def test_gains_where_images_form_classes_that_the_text_misses(gap):
    """The wider gap makes zero-shot favour a few classes, so that half of them seem to be absent."""
    assert min(gain(*world(seed, gap=gap)) for seed in range(4)) > 5


@pytest.mark.parametrize("gap", (0.5, 1.0))
def test_does_not_lose_with_half_of_the_classes(gap):
    gains = []
    for seed in range(4):
        task, features, labels, probs = world(seed, gap=gap)
        rows = some_classes(labels, seed, 0.5)
        gains.append(gain(task, features[rows], labels[rows], probs[rows]))
    assert np.mean(gains) > 0


@pytest.mark.parametrize("each", (1, 2))
def test_leaves_sets_alone_that_have_nothing_to_say(each):
    task, features, labels, probs = world(1, each)
    refined = refine_zero_shot(probs, features, task)
    np.testing.assert_allclose(refined.probs, probs)
    assert len(refined.changed) == 0 and refined.decisions


def test_a_class_without_images_gets_no_evidence():
    task, features, labels, probs = world(2)
    assignments = np.zeros((len(features), CLASSES), np.float32)
    assignments[:, :3] = softmax(probs[:, :3])
    mixture = TextMixture(features, task.text, assignments, kappa=0.7, present=3.0)
    np.testing.assert_allclose(mixture.evidence(slice(0, 50))[:, 3:], 0, atol=2e-3)
    assert np.abs(mixture.evidence(slice(0, 50))[:, :3]).max() > 1


def test_order_of_images_and_classes_does_not_matter():
    task, features, labels, probs = world(3)
    rows, columns = np.random.default_rng(0).permutation(len(features)), np.random.default_rng(1).permutation(CLASSES)
    other = Task(np.zeros((0, WIDTH)), [], task.text[columns], task.domains[columns])
    expected = refine_zero_shot(probs, features, task).probs[rows][:, columns]
    ours = refine_zero_shot(probs[rows][:, columns], features[rows], other).probs
    assert np.mean(ours.argmax(1) == expected.argmax(1)) > 0.97  # halves for the concentration are drawn by place


def test_copies_count_once_and_inputs_stay():
    task, features, labels, probs = world(0)
    before = features.copy(), probs.copy()
    both = np.concatenate([probs, probs[:100]]), np.concatenate([features, features[:100]])
    twice = refine_zero_shot(*both, task).probs
    np.testing.assert_allclose(twice[:len(probs)], refine_zero_shot(probs, features, task).probs, atol=1e-6)
    np.testing.assert_array_equal(twice[len(probs):], twice[:100])
    np.testing.assert_array_equal(before[0], features)
    np.testing.assert_array_equal(before[1], probs)


def test_behind_the_first_answer_zero_shots_order_stays():
    start = np.float32([[0.4, 0.3, 0.2, 0.1]])
    ranked = ranked_behind(start, np.float32([[0.2, 0.1, 0.6, 0.1]]))
    assert np.argsort(-ranked[0]).tolist() == [2, 0, 1, 3]
    np.testing.assert_allclose(ranked.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(ranked[0, 2], 0.6, rtol=1e-6)
    unsure = ranked_behind(start, np.float32([[0.24, 0.24, 0.28, 0.24]]))  # the start is surer of two others
    assert np.argsort(-unsure[0]).tolist() == [2, 0, 1, 3] and len(set(unsure[0].tolist())) == 4


def test_shapes_are_checked():
    task, features, labels, probs = world(0)
    with pytest.raises(ValueError, match="do not fit"):
        refine_zero_shot(probs[:, :3], features, task)
