"""The refinement: what it must gain where truth is known, what it must leave alone, by property."""

import json

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import softmax, unit_rows
from jclip_fewshot.combine.refinement import (
    KAPPA,
    LOG_DET,
    MIN_IMAGES,
    RIDGE,
    TAKEN_BACK,
    Mixture,
    distinct,
    fixed_point,
    keep_ranking,
    refine,
)
from jclip_fewshot.combine.strength import ClassWeights, HeldOutFold
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task, class_means

CLASSES, WIDTH, SHOTS = 24, 32, 4


def answers(rows, task):
    """A classifier by the text rows, drawn to the mean shots: honest if `task` lacks what it is asked about."""
    means = class_means(task)
    rows_of_classes = unit_rows(task.text + 0.3 * means * (task.counts[:, None] > 0))
    return softmax(12 * np.float32(rows) @ rows_of_classes.T)


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
    assert not refined.decisions["classes"]["sparse"] and refined.decisions["features"]["weight"] > 0
    assert refined.decisions["features"]["gain"] > refined.decisions["features"]["error"]


def test_gains_more_where_few_classes_are_present(world):
    task, features, labels, probs, folds = world
    rows = np.flatnonzero(labels < 3)
    refined = refine(probs[rows], features[rows], task, folds)
    assert refined.decisions["classes"]["sparse"]
    assert refined.classes_present <= 6
    assert top1(refined.probs, labels[rows]) > top1(probs[rows], labels[rows]) + 1
    assert refined.probs.mean(axis=0)[:3].sum() > 0.9


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
        assert refined.probs.mean(axis=0).std() < 0.9 * probs.mean(axis=0).std()
    labels = np.repeat(np.arange(count), np.round(20 * 0.96 ** np.arange(count)).astype(int))
    features = draw(labels)
    refined = refine(answers(features, task), features, task, folds_of(task))
    assert refined.decisions["classes"]["beta"] == 0 and "no class is given less weight" in refined.report()


def test_the_check_sees_that_refining_would_harm(world):
    """Where the images' features say nothing, nothing is refined; forced, it is."""
    task, features, labels, probs, _ = world
    rng = np.random.default_rng(5)
    noise = unit_rows(rng.standard_normal(features.shape))
    broken = Task(unit_rows(rng.standard_normal(task.features.shape)), task.labels, task.text, task.domains)

    def answer(rows, held_out):
        if len(rows) != len(held_out):
            return probs[:len(rows)]
        unsure = np.random.default_rng(5).standard_normal((len(rows), CLASSES))
        return softmax(unsure + 8 * np.eye(CLASSES)[held_out])

    folds = [HeldOutFold(fold.task, broken.features[fold.left_out], broken.labels[fold.left_out],
                         lambda rows, fold=fold: answer(rows, broken.labels[fold.left_out]))
             for fold in broken.folds()]
    refined = refine(probs, noise, broken, folds)
    assert np.array_equal(refined.probs.argmax(1), probs.argmax(1)) and len(refined.changed) == 0
    assert "no image is compared" in refined.decisions["features"]["why"]
    assert refine(probs, noise, broken, folds, force=True).decisions["features"]["weight"] > 0


def test_images_answered_with_a_held_out_label_would_deceive_the_check(world):
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


def test_single_images_are_not_promised_a_gain(world):
    """One image a class: a guest would find a mate there, the images find none."""
    task, features, labels, probs, folds = world
    rows = np.flatnonzero(np.arange(len(labels)) % 20 == 0)
    refined = refine(probs[rows], features[rows], task, folds)
    assert top1(refined.probs, labels[rows]) >= top1(probs[rows], labels[rows])


def test_evidence_equals_the_formula(world):
    """Against loops in float64: the image is taken out of its own mean, half of the shots' evidence is taken back."""
    task, features, _, probs, _ = world
    x, u = features[:60].astype(float), probs[:60].astype(float)
    one_hot = np.eye(CLASSES)[task.labels]
    rows, counts = np.concatenate([x, task.features]), np.concatenate([u, one_hot])
    centre = rows.mean(0)
    rows = rows - centre
    mass = counts.sum(0)
    text = task.text - mass / mass.sum() @ task.text
    sums = counts.T @ rows
    scale = np.clip((sums * text).sum() / (mass[:, None] * text ** 2).sum(), 0, 1)
    means = (KAPPA * scale * text + sums) / (KAPPA + mass)[:, None]
    covariance = sum((counts[:, k, None] * (rows - means[k])).T @ (rows - means[k]) for k in range(CLASSES))
    covariance /= mass.sum()
    precision = np.linalg.inv(covariance + RIDGE * np.trace(covariance) / WIDTH * np.eye(WIDTH))
    freedom = np.trace(precision @ covariance)

    def predictive(gap, known):
        unsure = 1 + 1 / known
        return -0.5 * (gap @ precision @ gap / unsure / freedom + LOG_DET * np.log(unsure))

    found = Mixture(features[:60], probs[:60], task).evidence(features[:60], probs[:60])
    for n, k in ((7, 3), (0, 0), (31, 20)):
        others = KAPPA + mass[k] - u[n, k]
        without = (KAPPA * scale * text[k] + sums[k] - u[n, k] * rows[n]) / others
        shots = KAPPA + one_hot[:, k].sum()
        of_shots = (KAPPA * scale * text[k] + one_hot[:, k] @ rows[60:]) / shots
        expected = (predictive(rows[n] - without, min(others, shots + 60 / CLASSES))
                    - TAKEN_BACK * predictive(rows[n] - of_shots, shots))
        assert found[n, k] == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_an_image_does_not_vote_for_itself(world):
    """What a row inside the set is told is what it would be told outside of it."""
    task, features, _, probs, _ = world
    inside, without = Mixture(features[:50], probs[:50], task), Mixture(features[:50], np.where(
        np.arange(50)[:, None] == 7, 0, probs[:50]), task)
    without.centre, without.whiten, without.freedom = inside.centre, inside.whiten, inside.freedom
    without.shot_means = inside.shot_means
    row = (features[7:8] - inside.centre).astype(np.float32) @ inside.whiten
    without.means = (inside.means * inside.counts[:, None] - probs[7][:, None] * row) / without.counts[:, None]
    ours = inside.evidence(features[7:8], probs[7:8])
    np.testing.assert_allclose(without.evidence(features[7:8], np.float32(0)), ours, rtol=0.02, atol=1e-3)


def test_without_strength_and_weights_the_start_stays(world):
    task, features, _, probs, _ = world
    np.testing.assert_allclose(
        fixed_point(probs, features, task, probs, 0.0, ClassWeights(CLASSES), 3), probs, atol=1e-6)


def test_the_start_stays_in_the_sum(world):
    """A class that the start excludes is not found again, however many steps there are."""
    task, features, _, probs, _ = world
    start = probs.copy()
    start[:, 0] = 0
    start /= start.sum(1, keepdims=True)
    refined = fixed_point(start, features, task, start, 8.0, ClassWeights(CLASSES), 3)
    assert refined[:, 0].max() < 1e-6


def test_order_of_classes_does_not_matter(world):
    task, features, labels, probs, _ = world
    columns = np.random.default_rng(1).permutation(CLASSES)
    other = Task(task.features, np.argsort(columns)[task.labels], task.text[columns], task.domains[columns])
    expected = refine(probs, features, task, folds_of(task)).probs[:, columns]
    folds = [HeldOutFold(fold.task, fold.features, fold.labels, lambda rows, fold=fold: answers(rows, fold.task))
             for fold in folds_of(other)]
    ours = refine(probs[:, columns], features, other, folds).probs
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_large_sets_go_by_blocks(world, monkeypatch):
    """Blocks of rows change nothing."""
    task, features, _, probs, folds = world
    expected = refine(probs, features, task, folds).probs
    from jclip_fewshot.combine import refinement
    monkeypatch.setattr(refinement.blocks, "__defaults__", (7,))
    np.testing.assert_allclose(refine(probs, features, task, folds).probs, expected, atol=1e-4)


def test_ranking_behind_the_first_is_half_the_starts():
    start, refined = np.float32([[0.5, 0.3, 0.2]]), np.float32([[0.2, 0.1, 0.7]])
    kept = keep_ranking(start, refined, 0.5)
    assert kept.argmax() == 2 and kept[0, 0] / kept[0, 1] == pytest.approx(np.sqrt(0.1 / 0.03), rel=1e-4)


def test_behind_the_first_answer_the_start_s_order_stays_without_trust():
    start = np.float32([[0.4, 0.3, 0.2, 0.1]])
    for first, expected in ((0.6, 0.6), (0.28, None)):  # the start may be surer of two others
        refined = np.float32([[(1 - first) / 3] * 2 + [first, (1 - first) / 3]])
        ranked = keep_ranking(start, refined, 0.0)
        assert np.argsort(-ranked[0]).tolist() == [2, 0, 1, 3] and len(set(ranked[0].tolist())) == 4
        assert expected is None or ranked[0, 2] == pytest.approx(expected)


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
    answer = Pipeline("gda,proker,text_profile").fit(task).answer(features)
    assert top1(answer.final, labels) >= top1(answer.probs, labels) - 0.5


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


def names_alone(seed, each=20, gap=0.5):
    """Images around class means, text that tells roughly where they are, beyond a gap; zero-shot answers."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((CLASSES, 48))
    text = unit_rows(means + 0.9 * rng.standard_normal(means.shape) + gap * rng.standard_normal(48))
    labels = np.repeat(np.arange(CLASSES), each)
    features = unit_rows(0.6 * means[labels] + 0.8 * rng.standard_normal((len(labels), 48))
                         + gap * rng.standard_normal(48))
    task = Task(np.zeros((0, 48)), [], text, np.arange(CLASSES) % 2)
    return task, features, labels, softmax(15 * features @ text.T)


@pytest.mark.parametrize("gap", (0.5, 1.0))
def test_names_alone_gain_where_images_form_classes_that_the_text_misses(gap):
    """The wider gap makes zero-shot favour a few classes, so that half of them seem to be absent."""
    for seed in range(4):
        task, features, labels, probs = names_alone(seed, gap=gap)
        assert top1(refine(probs, features, task).probs, labels) > top1(probs, labels) + 3


@pytest.mark.parametrize("gap", (0.5, 1.0))
def test_names_alone_do_not_lose_with_half_of_the_classes(gap):
    gains = []
    for seed in range(4):
        task, features, labels, probs = names_alone(seed, gap=gap)
        half = np.random.default_rng(seed).choice(CLASSES, CLASSES // 2, replace=False)
        rows = np.flatnonzero(np.isin(labels, half))
        refined = refine(probs[rows], features[rows], task).probs
        gains.append(top1(refined, labels[rows]) - top1(probs[rows], labels[rows]))
    assert np.mean(gains) >= 0


@pytest.mark.parametrize("each", (1, 2))
def test_names_alone_leave_sets_that_have_nothing_to_say(each):
    task, features, labels, probs = names_alone(1, each)
    refined = refine(probs, features, task)
    np.testing.assert_allclose(refined.probs, probs)
    assert len(refined.changed) == 0 and "too few of a class" in refined.report()


def test_names_alone_do_nothing_where_images_contradict_the_names():
    """Images that form no classes of these names: the Gaussians explain the sure answers of the text badly."""
    task, features, labels, probs = names_alone(0)
    sure = np.full_like(probs, 0.01 / (CLASSES - 1))
    sure[np.arange(len(labels)), np.random.default_rng(0).integers(0, CLASSES, len(labels))] = 0.99
    assert len(labels) > MIN_IMAGES
    refined = refine(sure, features, task)
    assert "too far for how unsure the names are" in refined.report() and len(refined.changed) == 0
