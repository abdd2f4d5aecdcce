"""The contract, for every method of the table, on a small CLIP with everything at hand that a method may need."""

import json

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import log_softmax
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import SHOTS, TEXT, TOWER, UNLABELLED, Given, Unlabelled
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task

UNSEEN = 3  # the class without a shot

def fitted(name, everything, task=None, seed=1):
    return METHODS[name](seed=seed).fit(task or everything[0], **everything[1].for_method(METHODS[name]))


def without_shots(task):
    return Task(np.zeros((0, task.text.shape[1])), [], task.text)


def test_the_table_says_what_there_is_to_say():
    for name, method in METHODS.items():
        assert method.name == name and method.title and method.paper
        assert method.needs <= {TEXT, SHOTS, TOWER, UNLABELLED} and {TEXT, SHOTS} & method.needs
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name, everything, quick):
    """Logits of test images and held-out shots; a saved state that answers alike; the same seed, the same bytes; the
    share of a class without shots."""
    task, _, queries = everything
    before = {key: getattr(task, key).copy() for key in ("features", "labels", "text", "domains")}
    method = fitted(name, everything)
    logits, held_out = method.answer(queries), method.held_out_logits()
    assert logits.shape == (len(queries.rows), task.num_classes) and held_out.shape == (len(task), task.num_classes)
    assert np.isfinite(logits).all() and np.isfinite(held_out).all()
    state = method.state()
    again = METHODS[name].from_state({key: np.array(value) for key, value in state.items()})
    np.testing.assert_array_equal(again.answer(queries), logits)
    for key, value in fitted(name, everything).state().items():
        assert np.asarray(value).tobytes() == np.asarray(state[key]).tobytes(), key
    json.dumps([method.settings_, method.history_])
    assert method.flops(task, everything[1]) >= 0
    for key, value in before.items():
        np.testing.assert_array_equal(getattr(task, key), value)
    if SHOTS in method.needs:
        share = [np.exp(log_softmax(one))[:, UNSEEN] for one in (logits, task.zero_shot(queries.rows))]
        np.testing.assert_allclose(*share, atol=2e-3)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if SHOTS not in method.needs])
def test_a_method_that_needs_no_shots_answers_alone_and_is_saved(name, everything, quick):
    task, given, queries = everything
    pipeline = Pipeline(name).fit(without_shots(task), given)
    answers = pipeline.answer(queries, "off")
    assert list(pipeline.methods_) == list(dict.fromkeys(["zero_shot", name])) and list(answers.logits) == list(
        pipeline.methods_)
    if name != "zero_shot":  # it has a say
        assert np.abs(np.log(answers.probs) - log_softmax(answers.logits["zero_shot"])).max() > 1e-2
    again = Pipeline.from_state(pipeline.state()).answer(queries, "off")
    np.testing.assert_array_equal(again.probs, answers.probs)


@pytest.mark.parametrize("name", ["lafter", "clip_pr_tower", "fixmatch"])
def test_what_looks_at_the_unlabelled_images_says_where_there_are_only_rows(name, everything):
    task, given, _ = everything
    rows = Given(given.tower, Unlabelled(given.unlabelled.rows, given.unlabelled.sentences,
                                         given.unlabelled.names, given.unlabelled.encoder))
    with pytest.raises(UserError, match=f"^{name} looks at the images without labels themselves"):
        Pipeline(name).fit(task, rows)


def test_held_out_answers_of_fixmatch_do_not_see_their_shot(everything, quick):
    """Another label of a shot changes what the others' fits say, and nothing of what is said of its own fold."""
    task = everything[0]
    fold = task.folds()[0].left_out
    labels = task.labels.copy()
    labels[fold] = np.roll(labels[fold], 1)
    other = Task(task.features, labels, task.text)
    assert [one.left_out.tolist() for one in other.folds()] == [one.left_out.tolist() for one in task.folds()]
    first, second = (fitted("fixmatch", everything, one).held_out_logits() for one in (task, other))
    np.testing.assert_array_equal(first[fold], second[fold])
    assert np.abs(np.delete(first - second, fold, 0)).max() > 1e-6


def test_a_whole_pipeline_of_all_methods(everything, quick):
    """Every row of the table in one run: it is fitted, weighed, saved, read and asked again."""
    task, given, queries = everything
    pipeline = Pipeline("all", seed=2).fit(task, given)
    assert set(pipeline.methods_) == set(METHODS)
    answers = pipeline.answer(queries, every_method=True)
    assert set(METHODS) <= set(answers.by_method())
    again = Pipeline.from_state(pipeline.state()).answer(queries, every_method=True)
    for name, logits in answers.by_method().items():
        np.testing.assert_array_equal(again.by_method()[name], logits, err_msg=name)
