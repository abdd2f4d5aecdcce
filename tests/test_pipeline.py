"""The heart: one loop over methods, what fits are handed, who gets weight, and a state that answers as the fit did."""

import copy

import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import NEVER, SHOTS, TEXT, TOWER, Given, Method, Queries, Unlabelled
from jclip_fewshot.methods.plan import choose
from jclip_fewshot.methods.unlabelled.base import LabelFree
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from jclip_fewshot.task import Task, joined
from tests.cases import FIRST, LABELS, QUICK, SECOND, K, no_shots, one_encoder, two_encoders

CHECKED_WITH = [name for name, method in METHODS.items() if method.checks]


class Tower:
    """What stands for the activations of a tower where no method looks at them."""

    class encoder:
        device = "cpu"
    class_tokens = None


class Tells(Method):
    """It knows more than the methods on rows: the second encoder's rows."""

    name, needs, asks_images, default = "tells", frozenset({TEXT, SHOTS, TOWER}), True, NEVER
    handed = None

    def fit(self, task, tower):
        type(self).handed = {"task": task, "tower": tower}
        self.settings_, self.history_ = {}, [{"epoch": 0, "loss": 1.0}]
        return self

    def held_out_logits(self):
        return (20 * SECOND[1] @ SECOND[0].T).astype(np.float32)

    def answer(self, queries):
        return (20 * queries.under(self.name) @ SECOND[0].T).astype(np.float32)

    def state(self):
        return {"known": np.ones(2)}

    @classmethod
    def from_state(cls, state):
        assert (state["known"] == 1).all()
        return cls()


class Guesses(Tells):
    """It knows nothing."""

    name, trains = "guesses", True

    def held_out_logits(self):
        return np.random.default_rng(0).standard_normal((len(SECOND[1]), K)).astype(np.float32)


class Draws(LabelFree):
    """Learns from images without labels: their mean, and a number by the seed."""

    name = "draws"
    handed = None

    def fit(self, task, unlabelled):
        type(self).handed = {"task": task, "unlabelled": unlabelled}
        return super().fit(task, unlabelled=unlabelled)

    def learn(self, task, unlabelled):
        drawn = np.random.default_rng(self.seed).standard_normal()
        return {"mean": unlabelled.rows.mean(axis=0), "drawn": np.float32([drawn])}

    def _logits(self, features):
        mean = self.learned_["mean"]
        return 90 * (features - 0.2 * mean) @ self.text_.T + self.learned_["drawn"]


class Rows(Method):
    """A method on rows that keeps what its fit was handed."""

    name, default = "rows", NEVER
    handed = None

    def fit(self, task, **more):
        type(self).handed = {"task": task, **more}
        return super().fit(task)

    def _fit(self, task):
        self.fold_logits_ = self._logits(task.features)

    def _logits(self, features):
        return 100 * features @ self.text_.T


@pytest.fixture
def toys(monkeypatch):
    """The four of them in the table, for one test."""
    for method in (Tells, Guesses, Draws, Rows):
        monkeypatch.setitem(METHODS, method.name, method)


def given():
    return Given(Tower(), Unlabelled(FIRST[2]))


def images(asked=None):
    """The test images as queries; `asked` notes who encodes them once more."""
    def under(name):
        (asked if asked is not None else []).append(name)
        return SECOND[2]
    return Queries(FIRST[2], under)


def arrays_of(value):
    return {name: copy.deepcopy(getattr(value, name)) for name in ("features", "labels", "text", "domains")}


# what a fit is handed

def test_needs_decide_what_a_fit_is_handed(toys):
    task, extra = one_encoder(), given()
    Pipeline(["tells", "draws", "rows"]).fit(task, extra)
    assert list(Rows.handed) == ["task"]  # neither an encoder nor images
    assert Tells.handed["tower"] is extra.tower and list(Tells.handed) == ["task", "tower"]
    assert Draws.handed["unlabelled"] is extra.unlabelled and list(Draws.handed) == ["task", "unlabelled"]
    assert all(method.handed["task"] is task for method in (Rows, Tells, Draws))


def test_a_need_that_is_not_met_is_refused_where_it_is_named_and_left_out_of_a_group(toys, monkeypatch):
    for name in ("tells", "draws"):
        with pytest.raises(UserError, match=f"^{name} "):
            Pipeline([*QUICK, name]).fit(one_encoder())
    with pytest.raises(UserError, match="^rows learns from labelled images"):
        Pipeline("rows").fit(no_shots())
    for method in (Tells, Draws, Rows):
        monkeypatch.setattr(method, "default", "always")
        monkeypatch.setitem(METHODS, method.name, method)
    found = set(Pipeline("auto").fit(no_shots()).methods_)
    assert found == {"zero_shot"}


def test_arguments_are_not_changed_in_place(toys):
    task, extra, names = two_encoders(), given(), [*QUICK, "tells"]
    before, rows = arrays_of(task), joined([FIRST[2], SECOND[2]])
    unlabelled, copied = extra.unlabelled.rows.copy(), rows.copy()
    pipeline = Pipeline(names).fit(task, extra)
    pipeline.answer(Queries(rows, lambda name: SECOND[2]))
    pipeline.state()
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(task, name), value)
    np.testing.assert_array_equal(extra.unlabelled.rows, unlabelled)
    np.testing.assert_array_equal(rows, copied)
    assert names == [*QUICK, "tells"]


@pytest.mark.parametrize("methods", ["gda,proker", ["gda", "proker"], choose("gda,proker")],
                         ids=["text", "list", "choice"])
def test_a_fit_without_shots_loses_no_method_and_no_argument(methods):
    pipeline = Pipeline(methods, seed=3)
    auto = Pipeline("auto").fit(no_shots())
    assert list(auto.methods_) == ["zero_shot"]
    with pytest.raises(UserError, match="gda learns from labelled images"):
        pipeline.fit(no_shots())
    pipeline.fit(one_encoder())
    assert list(pipeline.methods_) == ["zero_shot", "gda", "proker"]
    assert pipeline.methods is methods and pipeline.seed == 3


def test_auto_without_shots_and_then_with_them_is_auto_with_them():
    twice = Pipeline("fast").fit(no_shots()).fit(one_encoder())
    once = Pipeline("fast").fit(one_encoder())
    assert len(twice.methods_) > 4 and twice.methods == "fast"
    for name, value in once.state().items():
        np.testing.assert_array_equal(twice.state()[name], value, err_msg=name)


def test_every_fit_is_told_of_with_its_seconds():
    told = []
    pipeline = Pipeline(QUICK).fit(one_encoder(), on_fit=lambda name, seconds: told.append((name, seconds)))
    assert [name for name, _ in told] == [*QUICK, "ensemble"] and dict(told) == pipeline.seconds_
    assert set(pipeline.settings()) == {*QUICK, "ensemble"} and pipeline.histories() == {}


# who gets weight

def test_a_method_that_asks_for_images_gets_weight_only_if_held_out_shots_want_it(toys):
    pipeline = Pipeline([*QUICK, "tells", "guesses"]).fit(one_encoder(), given())
    assert [pipeline.methods_[name].settings_["in_ensemble"] for name in ("tells", "guesses")] == [True, False]
    assert pipeline.asks_images == ["tells"] and "guesses" not in pipeline.ensemble_.names_
    asked = []
    few = pipeline.answer(images(asked), "off")
    every = pipeline.answer(images(asked), "off", every_method=True)
    assert asked == ["tells", "tells", "guesses"]
    assert (few.probs == every.probs).all() and set(every.logits) - set(few.logits) == {"guesses"}
    assert {"ensemble", "ensemble_tuned"} <= set(few.by_method())


def test_without_the_images_the_methods_on_rows_answer_alone(toys):
    pipeline = Pipeline([*QUICK, "tells"]).fit(one_encoder(), given())
    alone, asked = pipeline.answer(FIRST[2], "off"), pipeline.answer(images(), "off")
    np.testing.assert_array_equal(alone.probs, asked.on_rows)
    assert alone.on_rows is None and np.abs(alone.probs - asked.probs).max() > 0.05


def test_where_no_shot_can_be_held_out_no_tower_gets_weight(toys, capsys):
    one_each = one_encoder().take(np.arange(0, len(LABELS), 4))
    pipeline = Pipeline([*QUICK, "tells"]).fit(one_each, given())
    assert pipeline.asks_images == [] and pipeline.methods_["tells"].settings_["in_ensemble"] is False
    assert "tells gets no weight: no class has two shots" in capsys.readouterr().err


def test_the_check_asks_the_methods_on_rows_alone(toys):
    pipeline = Pipeline([*CHECKED_WITH, "tells"]).fit(one_encoder(), given())
    assert pipeline.check_ensemble_ is pipeline.rows_ensemble_
    answers = pipeline.answer(images(), "on")
    assert np.allclose(answers.final.sum(axis=1), 1, atol=1e-4)
    decision = answers.refinement.record()["decisions"]["features"]
    assert decision["held_out"] > 0


def test_each_fold_is_answered_by_its_own_fits_however_they_are_walked():
    """A list of folds once answered all of them by the last one's fits, which had seen the others' shots."""
    pipeline = Pipeline(CHECKED_WITH).fit(one_encoder())
    in_turn = [(fold.answer(FIRST[2]), fold.own_answers) for fold in pipeline.held_out_folds()]
    listed = [(fold.answer(FIRST[2]), fold.own_answers) for fold in list(pipeline.held_out_folds())]
    assert len(listed) > 1 and not np.allclose(listed[0][0], listed[1][0])
    for one, other in zip(in_turn, listed):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


# images without labels, several encoders

def test_unlabelled_images_of_several_encoders_are_answered_by_their_own_columns():
    rows = joined([FIRST[2], SECOND[2]])
    beside = Given(unlabelled=Unlabelled(rows[::2], beside=len(rows[::2])))
    answers = Pipeline(QUICK).fit(two_encoders(), beside).answer(rows[1::2], "on")
    assert answers.final.shape == (len(rows[1::2]), K)
    assert np.allclose(answers.final.sum(axis=1), 1, atol=1e-4)


def test_of_several_encoders_the_first_is_tuned(toys):
    rows, seen = joined([FIRST[2], SECOND[2]]), {}
    pipeline = Pipeline([*QUICK, "tells"]).fit(two_encoders(), given())
    assert {"gda@a", "gda@b", "tells"} <= set(pipeline.methods_) and Tells.handed["task"].text.shape == FIRST[0].shape

    class Sees(Tells):
        def answer(self, queries):
            seen["rows"] = queries.rows
            return super().answer(queries)
    pipeline.methods_["tells"] = Sees()
    pipeline.answer(Queries(rows, lambda name: SECOND[2]), "off")
    np.testing.assert_allclose(seen["rows"] * np.sqrt(2), FIRST[2], atol=1e-5)  # joined rows are of unit length


# what is saved

@pytest.mark.parametrize("methods", [
    ["zero_shot"], QUICK, ["linear_probe", "clap"], ["vicinal"], ["tells"], ["tells", "guesses", "gda"], ["draws"],
    ["draws", "gda", "tells"], CHECKED_WITH], ids=",".join)
def test_what_a_run_saves_answers_as_the_fit_did(methods, toys, tmp_path):
    extra = Given(Tower(), Unlabelled(FIRST[2], beside=10))
    pipeline = Pipeline(methods, seed=5).fit(one_encoder(), extra)
    save_arrays(tmp_path / "model.npz", pipeline.state())
    again = Pipeline.from_state(load_arrays(tmp_path / "model.npz", STATE_SCHEMA))
    assert again.seed == 5 and list(again.methods_) == list(pipeline.methods_)
    np.testing.assert_array_equal(again.held_out_probs_, pipeline.held_out_probs_)
    for refine in ("off", "auto", "on"):
        one, other = (each.answer(images(), refine) for each in (pipeline, again))
        np.testing.assert_array_equal(one.final, other.final)
        for name, logits in one.logits.items():
            np.testing.assert_array_equal(other.logits[name], logits)
    for name, value in pipeline.state().items():
        np.testing.assert_array_equal(again.state()[name], value, err_msg=name)


def test_without_shots_too_what_a_run_saves_answers_as_the_fit_did(toys):
    pipeline = Pipeline(["draws"], seed=2).fit(no_shots(), given())
    again = Pipeline.from_state(pipeline.state())
    for refine in ("off", "auto", "on"):
        np.testing.assert_array_equal(again.answer(FIRST[2], refine).final, pipeline.answer(FIRST[2], refine).final)


@pytest.mark.parametrize("methods", [["jclip_adapter"], ["vicinal"], ["draws"]], ids=",".join)
def test_one_seed_gives_the_same_bytes_and_another_does_not(methods, toys):
    extra = Given(unlabelled=Unlabelled(FIRST[2]))
    first, same, other = (Pipeline(methods, seed).fit(one_encoder(), extra).state() for seed in (1, 1, 2))
    for name, value in first.items():
        assert value.tobytes() == same[name].tobytes(), name
    assert first["seed"] == 1 and other["seed"] == 2
    assert any(not np.array_equal(value, other[name]) for name, value in first.items()
               if name.startswith(f"methods/{methods[0]}/"))


# what was saved by another program

@pytest.mark.parametrize("change", [
    lambda state: state.update(methods=np.array(["zero_shot", "gone"])),
    lambda state: state.pop("methods/gda/W_"),
    lambda state: state.pop("seed"),
    lambda state: state.pop("ensemble/names"),
    lambda state: state.update({"methods/gda/W_": state["methods/gda/W_"][:-1]}),
    lambda state: state.update({"methods/gda/W_": np.float32(1e12) * np.ones_like(state["methods/gda/W_"])}),
    lambda state: state.update({"methods/gda/W_": np.float32(np.nan) * state["methods/gda/W_"]})],
    ids=["a method that is gone", "an array that is gone", "no seed", "no ensemble", "rows of another width",
         "huge numbers", "no numbers"])
def test_a_run_of_another_version_is_refused_in_one_line(change):
    state = Pipeline(QUICK).fit(one_encoder()).state()
    change(state)
    with pytest.raises(UserError, match="train again$") as raised:
        Pipeline.from_state(state)
    assert "\n" not in str(raised.value)


def test_a_task_of_one_class_and_of_many_without_shots():
    one = Task(FIRST[1][:4], [0] * 4, FIRST[0][:1])
    assert (Pipeline(QUICK).fit(one).answer(FIRST[2]).final == 1).all()
    some = one_encoder().take(LABELS < 2)
    answers = Pipeline(QUICK).fit(some).answer(FIRST[2])
    assert np.isfinite(answers.final).all() and len(np.unique(answers.final.argmax(axis=1))) > 2
