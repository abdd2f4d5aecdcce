"""Members, the heads that check the refinement, and unlabelled images, together."""

import numpy as np

from jclip_fewshot.methods.plan import Tuning
from jclip_fewshot.pipeline import CHECK_HEADS, Pipeline
from jclip_fewshot.task import Task, joined
from tests.test_several_encoders import FIRST, LABELS, QUICK, SECOND, task_of


class Tells:
    """A tuned member that knows more than the heads: the second encoder's rows."""

    name, trains = "tells", False

    def __init__(self):
        self.settings_ = {}

    def fit(self, task, bank, fits):
        return self

    def held_out_logits(self):
        return (20 * SECOND[1] @ SECOND[0].T).astype(np.float32)

    def logits(self, rows, features):
        return (20 * rows @ SECOND[0].T).astype(np.float32)


def test_the_check_asks_the_heads_alone_where_a_member_has_a_say():
    member = Tells()
    pipeline = Pipeline(list(CHECK_HEADS)).fit(Task(FIRST[1], LABELS, FIRST[0]), tuning=Tuning([member]))
    assert member.settings_["in_ensemble"] and pipeline.check_ensemble_ is pipeline.rows_ensemble_
    answers = pipeline.answer(FIRST[2], "on", lambda _: SECOND[2])
    assert np.allclose(answers.final.sum(axis=1), 1, atol=1e-4)
    decision = answers.refinement.record()["decisions"]["features"]
    assert decision["guests"] > 0 and decision["checked_with"] == list(CHECK_HEADS)


def test_unlabelled_images_of_several_encoders_are_answered_by_their_own_columns():
    rows = joined([FIRST[2], SECOND[2]])
    pipeline = Pipeline(QUICK, unlabelled=rows[::2]).fit(task_of())
    answers = pipeline.answer(rows[1::2], "on")
    assert answers.final.shape == (len(rows[1::2]), len(FIRST[0]))
    assert np.allclose(answers.final.sum(axis=1), 1, atol=1e-4)


def test_each_fold_is_answered_by_its_own_fits_however_they_are_walked():
    """A list of folds once answered all of them by the last one's fits, which had seen the others' shots."""
    pipeline = Pipeline(list(CHECK_HEADS)).fit(Task(FIRST[1], LABELS, FIRST[0]))
    in_turn = [(fold.answer(FIRST[2]), fold.own_answers) for fold in pipeline.held_out_folds()]
    listed = [(fold.answer(FIRST[2]), fold.own_answers) for fold in list(pipeline.held_out_folds())]
    assert len(listed) > 1 and not np.allclose(listed[0][0], listed[1][0])
    for one, other in zip(in_turn, listed):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


class Guesses(Tells):
    """A member that knows nothing."""

    name = "guesses"

    def held_out_logits(self):
        return np.random.default_rng(0).standard_normal((len(SECOND[1]), len(SECOND[0]))).astype(np.float32)


def test_a_member_without_weight_is_asked_for_a_table_alone():
    pipeline = Pipeline(QUICK).fit(Task(FIRST[1], LABELS, FIRST[0]), tuning=Tuning([Tells(), Guesses()]))
    assert [pipeline.methods_[name].settings_["in_ensemble"] for name in ("tells", "guesses")] == [True, False]
    asked = []

    def rows_under(member):
        asked.append(member.name)  # encodes the images once more
        return SECOND[2]

    few = pipeline.answer(FIRST[2], "off", rows_under)
    every = pipeline.answer(FIRST[2], "off", rows_under, every_member=True)
    assert asked == ["tells", "tells", "guesses"]
    assert (few.probs == every.probs).all() and set(every.logits) - set(few.logits) == {"guesses"}
