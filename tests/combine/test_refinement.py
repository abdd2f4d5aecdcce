"""The refinement: what it must gain where truth is known, what it must leave alone, by property."""

import json

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import softmax, unit_rows
from jclip_fewshot.combine.held_out import HeldOutFold
from jclip_fewshot.combine.refinement import (
    ClassWeights,
    SetEvidence,
    choose_class_weights,
    choose_concentration,
    distinct,
    keep_ranking,
    neighbours_of,
    one_less,
    refine,
)
from jclip_fewshot.pipeline import CHECK_HEADS, Pipeline
from jclip_fewshot.task import Task, class_means

CLASSES, WIDTH, SHOTS = 24, 32, 4


def answers(rows, task):
    """A classifier by the text rows, drawn to the mean shots: honest if `task` lacks what it is asked about."""
    means = class_means(task)
    rows_of_classes = unit_rows(task.text + 0.3 * means * (task.counts[:, None] > 0))
    return softmax(12 * np.float32(rows) @ rows_of_classes.T)


def guests(probs, labels, class_bias=0.0):
    """A fold of which only the answers to the shots left out are asked."""
    return HeldOutFold(None, np.empty((len(labels), 0)), labels, lambda rows: probs, class_bias)


def folds_of(task):
    return [HeldOutFold(fold.task, task.features[fold.left_out], task.labels[fold.left_out],
                        lambda rows, fold=fold: answers(rows, fold.task)) for fold in task.folds()]


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
    return task, features, labels, answers(features, task), folds_of(task)


def top1(probs, labels):
    return 100 * np.mean(probs.argmax(1) == labels)


def test_gains_on_the_whole_set(world):
    task, features, labels, probs, folds = world
    refined = refine(probs, features, task, folds)
    assert top1(refined.probs, labels) > top1(probs, labels) + 1
    assert not refined.decisions["classes"]["sparse"] and refined.decisions["features"]["distances"] > 0
    assert refined.decisions["features"]["gain"] > refined.decisions["features"]["error"]


def test_gains_more_where_few_classes_are_present(world):
    task, features, labels, probs, folds = world
    rows = np.flatnonzero(labels < 3)
    refined = refine(probs[rows], features[rows], task, folds)
    assert refined.decisions["classes"]["sparse"]
    assert refined.classes_present <= 6
    assert top1(refined.probs, labels[rows]) > top1(probs[rows], labels[rows]) + 1
    assert refined.class_balance[:3].sum() > 0.9


def test_equally_frequent_classes_are_found_and_drawn_to_equal_shares():
    """Also with one image of every class, where no image has a neighbour; a long tail is left alone."""
    count = 120
    rng = np.random.default_rng(0)
    means = unit_rows(rng.standard_normal((count, WIDTH)))

    def draw(labels):
        return unit_rows(means[labels] + 0.2 * rng.standard_normal((len(labels), WIDTH)))

    shots = np.repeat(np.arange(count), SHOTS)
    text = unit_rows(means + 0.12 * rng.standard_normal(means.shape))
    task = Task(draw(shots), shots, text, np.zeros(count, int))
    for images in (1, 4):
        labels = np.repeat(np.arange(count), images)
        features = draw(labels)
        probs = answers(features, task)
        refined = refine(probs, features, task, folds_of(task))
        assert refined.decisions["classes"]["beta"] > 0.3 and "equally frequent" in refined.report()
        assert top1(refined.probs, labels) > top1(probs, labels) + 2
        assert refined.class_balance.std() < 0.8 * probs.mean(axis=0).std()
    labels = np.repeat(np.arange(count), np.round(20 * 0.96 ** np.arange(count)).astype(int))
    features = draw(labels)
    refined = refine(answers(features, task), features, task, folds_of(task))
    assert refined.decisions["classes"]["beta"] == 0 and "none counts less" in refined.report()


def test_the_check_sees_that_refining_would_harm(world):
    """Where the images' features say nothing, nothing is refined; forced, it is."""
    task, features, labels, probs, _ = world
    rng = np.random.default_rng(5)
    noise = unit_rows(rng.standard_normal(features.shape))
    broken = Task(unit_rows(rng.standard_normal(task.features.shape)), task.labels, task.text, task.domains)

    def answer(rows, labels_of_guests):
        if len(rows) != len(labels_of_guests):
            return probs[:len(rows)]
        unsure = np.random.default_rng(5).standard_normal((len(rows), CLASSES))
        return softmax(unsure + 8 * np.eye(CLASSES)[labels_of_guests])

    folds = [HeldOutFold(fold.task, broken.features[fold.left_out], broken.labels[fold.left_out],
                         lambda rows, fold=fold: answer(rows, broken.labels[fold.left_out]))
             for fold in broken.folds()]
    refined = refine(probs, noise, broken, folds)
    assert np.array_equal(refined.probs.argmax(1), probs.argmax(1)) and len(refined.changed) == 0
    assert "no image is compared" in refined.decisions["features"]["why"]
    assert refine(probs, noise, broken, folds, force=True).decisions["features"]["distances"] > 0


def test_images_answered_with_a_guests_label_would_deceive_the_check(world):
    """The leak that made refining look better than it was: fits that saw the guests promise more than honest ones."""
    task, features, labels, probs, folds = world
    leaky = [HeldOutFold(fold.task, fold.features, fold.labels,
                         lambda rows, fold=fold: fold.answer(rows) if len(rows) == len(fold.labels)
                         else answers(rows, Task(np.repeat(task.features, 3, 0), np.repeat(task.labels, 3), task.text)))
             for fold in folds]
    rows = np.flatnonzero(np.arange(len(labels)) % 20 < 3)  # three images a class, as where it was found
    gains = [refine(probs[rows], features[rows], task, some, force=True).decisions["features"]["gain"]
             for some in (folds, leaky)]
    assert gains[1] > gains[0]


def test_a_class_of_n_images_has_n_minus_one_neighbours():
    assert [neighbours_of(n * 40, 40) for n in (1, 2, 3, 5, 6, 20)] == [0, 1, 2, 4, 5, 5]


def test_one_image_of_every_class_is_taken_out_for_the_check():
    kept = one_less(np.array([0, 0, 0, 2, 5, 5]))
    assert np.bincount(np.array([0, 0, 0, 2, 5, 5])[kept], minlength=6).tolist() == [2, 0, 0, 0, 0, 1]


def test_single_images_are_not_promised_a_gain(world):
    """One image a class: a guest would find a mate there, the images find none."""
    task, features, labels, probs, folds = world
    rows = np.flatnonzero(np.arange(len(labels)) % 20 == 0)
    refined = refine(probs[rows], features[rows], task, folds)
    assert top1(refined.probs, labels[rows]) >= top1(probs[rows], labels[rows])


def test_distances_equal_the_formula(world):
    task, features, _, probs, _ = world
    x, u = features[:60], probs[:60]
    evidence = SetEvidence(x, u, task, 5)
    centre = task.features.mean(0)
    rows = np.concatenate([task.features - centre, task.text - task.text.mean(0), x - centre])
    weights = np.concatenate([np.eye(CLASSES)[task.labels], np.eye(CLASSES), u])
    means = weights.T @ rows / weights.sum(0)[:, None]
    covariance = sum((weights[:, k, None] * (rows - means[k])).T @ (rows - means[k]) for k in range(CLASSES))
    covariance /= weights.sum()
    precision = np.linalg.inv(covariance + 3 * np.trace(covariance) / WIDTH * np.eye(WIDTH))
    n, k = 7, 3
    without = weights[:, k].copy()
    without[len(rows) - 60 + n] = 0
    shots = weights[:len(rows) - 60, k]

    def squared(w):
        gap = rows[len(rows) - 60 + n] - w @ rows[:len(w)] / w.sum()
        return gap @ precision @ gap

    known = min(without.sum(), shots.sum() + 60 / CLASSES)
    expected = -0.5 * squared(without) / (1 + 1 / known) + 0.375 * squared(shots) / (1 + 1 / shots.sum())
    assert evidence(slice(None))[0][n, k] == pytest.approx(expected, rel=1e-3)


def test_agreement_is_what_the_nearest_say(world):
    task, features, _, probs, _ = world
    evidence = SetEvidence(features[:50], probs[:50], task, 3)
    unit = unit_rows(evidence.x)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines[4])[:3]
    expected = (np.maximum(cosines[4, nearest], 0)[:, None] * probs[nearest]).sum(0)
    assert np.allclose(evidence(slice(4, 5))[1][0], expected, atol=1e-5)


def test_a_guest_is_one_more_image_and_no_more(world):
    """What a row outside the set is told is what it would be told inside, where it does not count for itself."""
    task, features, _, probs, _ = world
    inside = SetEvidence(features[:50], probs[:50], task, 3)
    outside = SetEvidence(features[:50], np.where(np.arange(50)[:, None] == 7, 0, probs[:50]), task, 3)
    outside.whiten, outside.x, outside.unit = inside.whiten, inside.x, inside.unit
    outside.means = ((inside.means * inside.counts[:, None] - probs[7][:, None] * inside.x[7])
                     / (inside.counts - probs[7])[:, None]).astype(np.float32)
    outside.shot_means = inside.shot_means
    e, a = outside.of_guests(features[7:8])
    known = inside(slice(7, 8))
    assert np.abs(e - known[0]).max() < 0.02 * np.abs(known[0]).max()  # the mean of the counts differs a little
    without = SetEvidence(np.delete(features[:50], 7, 0), np.delete(probs[:50], 7, 0), task, 3)
    without.whiten, without.unit = inside.whiten, np.delete(inside.unit, 7, 0)
    assert np.allclose(without.of_guests(features[7:8])[1], known[1], atol=1e-5)


def test_weights_silence_absent_classes_only():
    u = softmax(3 * np.random.default_rng(0).standard_normal((40, 6)))
    assert np.array_equal(ClassWeights(False, np.inf, 1.0, 6).settle(np.log(u), u).argmax(1), u.argmax(1))
    u[:, 5] = 1e-6
    weights = ClassWeights(True, 0.1, 8.0, 5).log_weights(u / u.sum(1, keepdims=True), u)
    assert (weights[:, 5] < weights[:, :5].min(1) - 2).all()


def test_ranking_behind_the_first_is_half_the_starts():
    start, refined = np.float32([[0.5, 0.3, 0.2]]), np.float32([[0.2, 0.1, 0.7]])
    kept = keep_ranking(start, refined)
    assert kept.argmax() == 2 and kept[0, 0] / kept[0, 1] == pytest.approx(np.sqrt(0.1 / 0.03), rel=1e-4)


def test_distinct_finds_copies():
    rows = np.float32([[1, 0], [0, 1], [1, 0], [0.5, 0.5]])
    first, copy_of = distinct(rows)
    assert first.tolist() == [0, 1, 3] and copy_of.tolist() == [0, 1, 0, 2]
    assert distinct(rows[:2])[1] is None


def test_one_shot_and_useless_text_are_noticed():
    """Text rows that say nothing and one shot a class: refining must not lose what the shots have."""
    rng = np.random.default_rng(4)
    means = unit_rows(rng.standard_normal((30, 64)))
    draw = lambda labels: unit_rows(means[labels] + 0.16 * rng.standard_normal((len(labels), 64)))  # noqa: E731
    task = Task(draw(np.arange(30)), np.arange(30), unit_rows(rng.standard_normal((30, 64))))
    labels = np.repeat(np.arange(30), 8)
    features = draw(labels)
    answer = Pipeline(list(CHECK_HEADS)).fit(task).answer(features)
    assert top1(answer.final, labels) >= top1(answer.probs, labels) - 0.5


def test_an_unsure_classifier_that_favours_classes_is_no_sign_of_absent_ones():
    """All classes are present; half of them win most answers, on the shots left out as on the images."""
    rng = np.random.default_rng(3)
    favour = np.where(np.arange(CLASSES) < CLASSES // 4, 4.0, 0.0)

    def drawn(labels):
        return softmax(1.5 * np.eye(CLASSES)[labels] + favour + rng.standard_normal((len(labels), CLASSES)))

    images, shots = drawn(np.repeat(np.arange(CLASSES), 20)), drawn(np.repeat(np.arange(CLASSES), 4))
    alpha, _ = choose_concentration(images)
    assert alpha < 1  # by the images alone most classes are absent
    folds = [guests(shots[n::4], np.arange(CLASSES)) for n in range(4)]
    assert not choose_class_weights(images, folds)[0].sparse and not choose_class_weights(images)[0].sparse
    sure = softmax(9 * np.eye(CLASSES)[np.repeat(np.arange(CLASSES), 4)] + rng.standard_normal((4 * CLASSES, CLASSES)))
    folds = [guests(sure[n::4], np.arange(CLASSES)) for n in range(4)]
    assert choose_class_weights(softmax(9 * np.eye(CLASSES)[np.repeat(np.arange(2), 40)]), folds)[0].sparse


def test_concentration_tells_sparse_from_dense():
    rng = np.random.default_rng(2)

    def drawn(labels):
        return softmax(2 * rng.standard_normal((len(labels), 50)) + 5 * np.eye(50)[labels])

    assert choose_concentration(drawn(rng.integers(0, 4, 75)))[0] < 1
    assert choose_concentration(drawn(np.repeat(np.arange(50), 10)))[0] >= 1


@pytest.mark.parametrize("rows", [1, 9])
def test_few_images_stay_as_they_are(world, rows):
    task, features, _, probs, folds = world
    refined = refine(probs[:rows], features[:rows], task, folds)
    assert np.array_equal(refined.probs, probs[:rows]) and len(refined.changed) == 0
    assert ("1 image is too few" if rows == 1 else f"{rows} images are too few") in refined.report()
    refined = refine(np.repeat(probs[:rows], 8, 0), np.repeat(features[:rows], 8, 0), task, folds)
    assert f"of {8 * rows} images" in refined.report()  # one number, and why it is another
    assert f"{8 * rows} images, {rows} without copies, are too few" in refined.report()


def test_order_and_copies_of_images_do_not_matter(world):
    task, features, _, probs, folds = world
    once = refine(probs, features, task, folds).probs
    order = np.random.default_rng(3).permutation(len(probs))
    moved = refine(probs[order], features[order], task, folds).probs
    assert np.mean(moved.argmax(1) == once[order].argmax(1)) > 0.99  # sums add up in another order
    twice = refine(np.repeat(probs, 2, 0), np.repeat(features, 2, 0), task, folds).probs
    assert np.allclose(twice[::2], once, atol=1e-5) and np.array_equal(twice[::2], twice[1::2])


def test_rows_sum_to_one_inputs_stay_and_runs_repeat(world):
    task, features, _, probs, folds = world
    before = [array.copy() for array in (features, probs)]
    first, second = refine(probs, features, task, folds), refine(probs, features, task, folds)
    assert np.array_equal(first.probs, second.probs)
    assert all(np.array_equal(a, b) for a, b in zip(before, (features, probs)))
    assert np.allclose(first.probs.sum(1), 1, atol=1e-5) and (first.probs >= 0).all()
    assert np.array_equal(first.changed, np.flatnonzero(first.probs.argmax(1) != probs.argmax(1)))
    assert np.isclose(first.class_balance.sum(), 1) and np.isclose(first.domain_balance.sum(), 1)
    json.dumps(first.record())
    assert "the first answer of" in first.report() and "0 to" not in first.report()


@pytest.mark.parametrize("case", ["no shots", "no folds", "one shot", "classes without shots", "certain",
                                  "two classes"])
def test_stays_sane(world, case):
    task, features, labels, probs, folds = world
    if case == "no shots":
        task = task.take(np.zeros(0, int))
    elif case == "one shot":
        task = task.take(np.arange(0, 96, 4))
    elif case == "classes without shots":
        task = task.take(task.labels < 15)
    elif case == "certain":
        probs = np.eye(CLASSES, dtype=np.float32)[probs.argmax(1)]
    elif case == "two classes":
        kept, rows = task.labels < 2, labels < 2
        task = Task(task.features[kept], task.labels[kept], task.text[:2])
        probs = probs[rows, :2] / probs[rows, :2].sum(1, keepdims=True)
        features, labels = features[rows], labels[rows]
    folds = [] if case == "no folds" else folds_of(task)
    refined = refine(probs, features, task, folds)
    assert np.isfinite(refined.probs).all() and np.allclose(refined.probs.sum(1), 1, atol=1e-5)
    assert top1(refined.probs, labels) >= top1(probs, labels) - 0.5


def test_errors_name_the_shape(world):
    task, features, _, probs, folds = world
    with pytest.raises(ValueError, match="do not fit"):
        refine(probs[:, :3], features, task, folds)
