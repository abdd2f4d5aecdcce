"""Members that learn without labels: what they learn from, that they are saved whole, and the views they see."""

from types import SimpleNamespace

import numpy as np
import pytest

from jclip_fewshot import clip
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods.unlabelled import fixmatch, label_free, lafter, upl, views
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task

CLASSES, UNLABELLED = 5, 40


@pytest.fixture(scope="module")
def learned(request):
    """The small ViT's text tower, five made-up names, unlabelled rows near their text rows."""
    model, _ = clip.load(request.path.parents[1] / "data" / "tuning" / "tiny_vit.safetensors")

    def tokens(sentences):
        found = np.zeros((len(sentences), 16), np.int32)
        for row, words in zip(found, (sentence.split() for sentence in sentences)):
            row[:len(words) + 2] = [1, *(100 if word == "X" else 10 + sum(map(ord, word)) % 400 for word in words), 511]
        return found

    encoder = SimpleNamespace(model=model, tokens=tokens, texts=lambda ids: model.encode_text(ids).numpy())
    names = ["fox", "panda", "dog", "pie", "car"]
    text = unit_rows(encoder.texts(tokens([f"a photo of a {name} ." for name in names])))
    rng = np.random.default_rng(0)
    near = np.repeat(text, UNLABELLED // CLASSES, 0)
    rows = unit_rows(near + 0.02 * rng.standard_normal(near.shape))
    task = Task(np.zeros((0, text.shape[1])), [], text)
    sentences = [row[None] for row in text]
    return label_free.learn(list(label_free.MEMBERS), encoder, names, rows, task, sentences), task, rows


def test_every_member_answers_and_is_saved_whole(learned):
    members, task, rows = learned
    assert [member.name for member in members] == list(label_free.MEMBERS)
    pipeline = Pipeline(["zero_shot"], members=members).fit(task)
    again = Pipeline.from_state(pipeline.state())
    for name, logits in pipeline.answer(rows, "off").logits.items():
        np.testing.assert_array_equal(again.answer(rows, "off").logits[name], logits)
        assert logits.shape == (UNLABELLED, CLASSES) and np.isfinite(logits).all()
    labels = np.repeat(np.arange(CLASSES), UNLABELLED // CLASSES)
    assert np.mean(members[1].logits(rows).argmax(1) == labels) > 0.9  # LaFTer's sentences name the very rows


def test_members_beside_shots_have_held_out_answers(learned):
    members, task, rows = learned
    labels = np.repeat(np.arange(CLASSES), 2)
    shots = Task(rows[::4], labels, task.text)
    pipeline = Pipeline(["zero_shot", "tip_adapter"], members=members).fit(shots)
    assert set(pipeline.ensemble_.settings_["weights"]) == {"zero_shot", "tip_adapter", *label_free.MEMBERS}


def test_members_answer_on_clips_scale_and_classes_without_a_shot_are_found(learned):
    members, task, rows = learned
    spread = task.zero_shot(rows).std(axis=1).mean()
    for member in members:
        assert 0.3 < member.logits(rows).std(axis=1).mean() / spread < 3, member.name
    some = np.arange(0, UNLABELLED, 4)
    labels = some // (UNLABELLED // CLASSES)
    shots = Task(rows[some][labels < 3], labels[labels < 3], task.text)  # two of the five classes have none
    pipeline = Pipeline(["zero_shot", "tip_adapter"], members=members).fit(shots)
    alone = Pipeline(["zero_shot", "tip_adapter"]).fit(shots)
    truth = np.repeat(np.arange(CLASSES), UNLABELLED // CLASSES)
    hit, hit_alone = (one.answer(rows, "off").probs.argmax(1) == truth for one in (pipeline, alone))
    assert hit[truth >= 3].mean() >= hit_alone[truth >= 3].mean() - 0.1 and hit[truth < 3].mean() > 0.6


def test_unlabelled_images_take_part_in_the_refinement_alone(learned):
    _, task, rows = learned
    alone, helped = (Pipeline(["zero_shot"], unlabelled=extra).fit(task) for extra in (None, rows[::2]))
    answers = helped.answer(rows[1::2])
    assert answers.final.shape == (UNLABELLED // 2, CLASSES)
    assert (answers.probs == alone.answer(rows[1::2]).probs).all()
    assert Pipeline.from_state(helped.state()).unlabelled.shape == rows[::2].shape


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


def test_published_settings_are_there():
    assert (upl.paper().per_class, upl.paper().members, upl.paper().context) == (16, 16, 16)
    assert (lafter.paper().epochs, lafter.paper().prompts, lafter.paper().lr) == (50, 50, 5e-4)
    assert fixmatch.paper().threshold == 0.95


def test_strong_views_repeat_and_differ():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 60, 60, 3), np.uint8)
    weak, strong = (view.numpy() for view in views.pair(pixels, np.arange(3), 0, 1))
    again, other = (views.pair(pixels, np.arange(3), 0, step)[1].numpy() for step in (1, 2))
    assert weak.shape == strong.shape == (3, 3, 60, 60)
    np.testing.assert_array_equal(strong, again)
    assert np.abs(strong - other).max() > 0.1 and np.abs(strong - weak).max() > 0.1
