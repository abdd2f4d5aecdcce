"""The contract, for every method of the table, on a small CLIP with everything at hand that a method may need."""

import json

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.backend.numerics import log_softmax
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.bank import Bank
from jclip_fewshot.features.encode import encode_images
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import SHOTS, TEXT, TOWER, UNLABELLED, Given, Queries, Unlabelled
from jclip_fewshot.methods.unlabelled import clip_pr, fixmatch, lafter, upl, views
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task
from tests.cases import small_clip

NAMES = ["fox", "panda", "dog", "pie"]
K, SHOTS_A_CLASS, TESTS, FREE = 4, 3, 6, 8
UNSEEN = 3  # this class has no shot
QUICK = {  # whatever trains, as short as it can be
    "jclip_adapter": {"epochs": 1}, "clip_adapter": {"epochs": 1}, "tip_adapter_f": {"epochs": 1},
    "cross_modal": {"epochs": 1}, "clap": {"epochs": 1}, "sus_x_f": {"epochs": 1},
    "last_block": {"epochs": 1}, "prolip": {"steps": 2}, "coop": {"steps": 2}, "clip_lora": {"steps_a_shot": 1},
    "two_stage": {"steps_a_shot": 1}, "vpt": {"epochs": 1, "prompts": 2}, "cocoop": {"batch": 3},
    "upl": {"settings": upl.Settings(per_class=1, members=2, epochs=1)},
    "lafter": {"settings": lafter.Settings(text_steps=3, epochs=1, batch=4, prompts=2)},
    "lafter_text": {"settings": lafter.Settings(text_steps=3)},
    "clip_pr": {"settings": clip_pr.Settings(epochs=(1, 1), batch=4)},
    "clip_pr_tower": {"settings": clip_pr.Settings(epochs=(1, 1), tower_epochs=1, batch=4)},
    "fixmatch": {"settings": fixmatch.Settings(epochs=1, batch_x=4, batch_u=4)}}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(task, what fits are given, test images as queries): pictures of a class are alike, and class 3 has no shot."""
    encoder, folder, rng = small_clip(), tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    kinds = rng.integers(0, 255, (K, 8, 8, 3))

    def paths(labels, what):
        found = []
        for number, label in enumerate(labels):
            noisy = np.clip(kinds[label] + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
            found.append(str(folder / f"{what}{number}.png"))
            Image.fromarray(noisy).resize((70, 64)).save(found[-1])
        return found
    shots, tests, free = (paths(np.arange(count) % (K - (what == "shot")), what) for what, count in
                          (("shot", SHOTS_A_CLASS * (K - 1)), ("test", TESTS), ("free", FREE)))
    sentences = encoder.tokens([f"a photo of a {name} ." for name in NAMES])
    text = encoder.texts(sentences)
    bank = Bank(encoder, shots, views=2, workers=0, class_tokens=sentences)
    task = Task(encode_images(encoder, shots, workers=0)[0], np.arange(len(shots)) % (K - 1), text)
    unlabelled = Unlabelled(encode_images(encoder, free, workers=0)[0], [row[None] for row in task.text], NAMES,
                            encoder, lambda: views.weak_pixels(free, encoder.image_size)[0])
    queries = Queries(encode_images(encoder, tests, workers=0)[0],
                      lambda make: encode_images(make(encoder), tests, workers=0)[0])
    return task, Given(bank, unlabelled), queries


@pytest.fixture
def quick(monkeypatch):
    for name, changes in QUICK.items():
        for key, value in changes.items():
            monkeypatch.setattr(METHODS[name], key, value)


def fitted(name, case, task=None, seed=1):
    return METHODS[name].make(seed).fit(task or case[0], **case[1].for_method(METHODS[name]))


def without_shots(task):
    return Task(np.zeros((0, task.text.shape[1])), [], task.text)


def test_the_table_says_what_there_is_to_say():
    for name, method in METHODS.items():
        assert method.name == name and method.title and method.paper
        assert method.needs <= {TEXT, SHOTS, TOWER, UNLABELLED} and {TEXT, SHOTS} & method.needs
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name, case, quick):
    """Logits of test images and held-out shots; a saved state that answers alike; the same seed, the same bytes; the
    share of a class without shots."""
    task, _, queries = case
    before = {key: getattr(task, key).copy() for key in ("features", "labels", "text", "domains")}
    method = fitted(name, case)
    logits, held_out = method.answer(queries), method.held_out_logits()
    assert logits.shape == (TESTS, K) and held_out.shape == (len(task), K)
    assert np.isfinite(logits).all() and np.isfinite(held_out).all()
    state = method.state()
    again = METHODS[name].from_state({key: np.array(value) for key, value in state.items()})
    np.testing.assert_array_equal(again.answer(queries), logits)
    for key, value in fitted(name, case).state().items():
        assert np.asarray(value).tobytes() == np.asarray(state[key]).tobytes(), key
    json.dumps([method.settings_, method.history_])
    assert method.flops(task, case[1]) >= 0
    for key, value in before.items():
        np.testing.assert_array_equal(getattr(task, key), value)
    if SHOTS in method.needs:
        share = [np.exp(log_softmax(one))[:, UNSEEN] for one in (logits, task.zero_shot(queries.rows))]
        np.testing.assert_allclose(*share, atol=2e-3)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if SHOTS not in method.needs])
def test_a_method_that_needs_no_shots_answers_alone_and_is_saved(name, case, quick):
    task, given, queries = case
    pipeline = Pipeline(name).fit(without_shots(task), given)
    answers = pipeline.answer(queries, "off")
    assert list(pipeline.methods_) == list(dict.fromkeys(["zero_shot", name])) and list(answers.logits) == list(
        pipeline.methods_)
    if name != "zero_shot":  # it has a say
        assert np.abs(np.log(answers.probs) - log_softmax(answers.logits["zero_shot"])).max() > 1e-2
    again = Pipeline.from_state(pipeline.state()).answer(queries, "off")
    np.testing.assert_array_equal(again.probs, answers.probs)


@pytest.mark.parametrize("name", ["lafter", "clip_pr_tower", "fixmatch"])
def test_what_looks_at_the_unlabelled_images_says_where_there_are_only_rows(name, case):
    task, given, _ = case
    rows = Given(given.tower, Unlabelled(given.unlabelled.rows, given.unlabelled.sentences, NAMES,
                                         given.unlabelled.encoder))
    with pytest.raises(UserError, match=f"^{name} looks at the images without labels themselves"):
        Pipeline(name).fit(task, rows)


def test_held_out_answers_of_fixmatch_do_not_see_their_shot(case, quick):
    """Another label of a shot changes what the others' fits say, and nothing of what is said of its own fold."""
    task = case[0]
    fold = task.folds()[0].left_out
    labels = task.labels.copy()
    labels[fold] = np.roll(labels[fold], 1)
    other = Task(task.features, labels, task.text)
    assert [one.left_out.tolist() for one in other.folds()] == [one.left_out.tolist() for one in task.folds()]
    first, second = (fitted("fixmatch", case, one).held_out_logits() for one in (task, other))
    np.testing.assert_array_equal(first[fold], second[fold])
    assert np.abs(np.delete(first - second, fold, 0)).max() > 1e-6


def test_a_whole_pipeline_of_all_methods(case, quick):
    """Every row of the table in one run: it is fitted, weighed, saved, read and asked again."""
    task, given, queries = case
    pipeline = Pipeline("all", seed=2).fit(task, given)
    assert set(pipeline.methods_) == set(METHODS)
    answers = pipeline.answer(queries, every_method=True)
    assert set(METHODS) <= set(answers.by_method())
    again = Pipeline.from_state(pipeline.state()).answer(queries, every_method=True)
    for name, logits in answers.by_method().items():
        np.testing.assert_array_equal(again.by_method()[name], logits, err_msg=name)
