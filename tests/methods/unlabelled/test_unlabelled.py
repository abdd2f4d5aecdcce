"""Methods that learn without labels: what they learn from, that they are saved whole, and the views they see."""

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import SHOTS, UNLABELLED, Given, Unlabelled
from jclip_fewshot.methods.unlabelled import fixmatch, upl, views
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task
from tests.cases import small_clip

CLASSES, COUNT = 5, 40
TRUTH = np.repeat(np.arange(CLASSES), COUNT // CLASSES)
ON_ROWS = [name for name, one in METHODS.items()
           if UNLABELLED in one.needs and SHOTS not in one.needs and not one.asks_images]


@pytest.fixture(scope="module")
def case():
    """(what fits are given, a task without shots, unlabelled rows near the text rows of five made-up names)."""
    encoder = small_clip()
    names = ["fox", "panda", "dog", "pie", "car"]
    text = unit_rows(encoder.texts(encoder.tokens([f"a photo of a {name} ." for name in names])))
    near = np.repeat(text, COUNT // CLASSES, 0)
    rows = unit_rows(near + 0.02 * np.random.default_rng(0).standard_normal(near.shape))
    task = Task(np.zeros((0, text.shape[1])), [], text)
    unlabelled = Unlabelled(rows, [row[None] for row in text], names, encoder)
    return Given(Activations(encoder, []), unlabelled), task, rows


@pytest.fixture(scope="module")
def fitted(case):
    given, task, _ = case
    return Pipeline(ON_ROWS).fit(task, given)


def test_every_method_answers_and_is_saved_whole(case, fitted):
    _, _, rows = case
    again = Pipeline.from_state(fitted.state())
    answers = fitted.answer(rows, "off").logits
    assert list(answers) == ["zero_shot", *ON_ROWS]
    for name, logits in answers.items():
        np.testing.assert_array_equal(again.answer(rows, "off").logits[name], logits)
        assert logits.shape == (COUNT, CLASSES) and np.isfinite(logits).all()
    assert np.mean(answers["lafter_text"].argmax(1) == TRUTH) > 0.9  # its sentences name the very rows


def test_they_answer_on_clips_scale(case, fitted):
    _, task, rows = case
    spread = task.zero_shot(rows).std(axis=1).mean()
    for name in ON_ROWS:
        assert 0.3 < fitted.methods_[name].logits(rows).std(axis=1).mean() / spread < 3, name


def test_shots_are_answered_held_out_and_classes_without_a_shot_are_found(case):
    given, task, rows = case
    some = np.arange(0, COUNT, 4)
    labels = some // (COUNT // CLASSES)
    shots = Task(rows[some][labels < 3], labels[labels < 3], task.text)  # two of the five classes have none
    pipeline = Pipeline(["tip_adapter", *ON_ROWS]).fit(shots, given)
    assert set(pipeline.ensemble_.settings_["weights"]) == {"zero_shot", "tip_adapter", *ON_ROWS}
    alone = Pipeline("tip_adapter").fit(shots)
    hit, hit_alone = (one.answer(rows, "off").probs.argmax(1) == TRUTH for one in (pipeline, alone))
    assert hit[TRUTH >= 3].mean() >= hit_alone[TRUTH >= 3].mean() - 0.1 and hit[TRUTH < 3].mean() > 0.6


def test_images_beside_the_test_images_take_part_in_the_refinement_alone(case):
    _, task, rows = case
    given = Given(unlabelled=Unlabelled(rows[::2], beside=COUNT // 2))
    alone, helped = Pipeline("zero_shot").fit(task), Pipeline("zero_shot").fit(task, given)
    answers = helped.answer(rows[1::2])
    assert answers.final.shape == (COUNT // 2, CLASSES)
    assert (answers.probs == alone.answer(rows[1::2]).probs).all()
    np.testing.assert_array_equal(Pipeline.from_state(helped.state()).unlabelled_, rows[::2])
    transductive = Pipeline("zero_shot").fit(task, Given(unlabelled=Unlabelled(rows)))
    assert transductive.unlabelled_ is None  # the refinement sees the test images anyway


def test_upl_takes_the_surest_of_each_class():
    logits = np.float32([[5, 0], [4, 0], [3, 0], [0, 1]])
    rows, labels, confidence = upl.confident(logits, 2)
    assert rows.tolist() == [0, 1, 3] and labels.tolist() == [0, 0, 1]
    assert (np.diff(confidence[:2]) < 0).all()


def test_quantiles_keep_images_of_hard_classes():
    probs = np.float32([[0.99, 0.01], [0.98, 0.02], [0.4, 0.6], [0.45, 0.55]])
    thresholds = fixmatch.class_thresholds(probs, 0.5)
    np.testing.assert_allclose(thresholds, [0.99, 0.6])
    labels, mask = fixmatch.masked(np.log(probs), thresholds - 1e-6)
    assert labels.tolist() == [0, 0, 1, 1] and mask.tolist() == [1, 0, 1, 0]


def test_strong_views_repeat_and_differ():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 60, 60, 3), np.uint8)
    strong, again, other = (views.strong_views(pixels, np.random.default_rng([0, step])) for step in (1, 1, 2))
    assert strong.shape == pixels.shape and strong.dtype == np.uint8
    np.testing.assert_array_equal(strong, again)
    assert np.abs(strong.astype(int) - other).max() > 20 and np.abs(strong.astype(int) - pixels).max() > 20
