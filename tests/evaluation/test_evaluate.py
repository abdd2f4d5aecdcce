"""Suites in, tables and JSON out; the statistics against hand and brute force."""

import json
import time

import msgspec
import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation import evaluate
from jclip_fewshot.evaluation.scores import score_table
from jclip_fewshot.evaluation.suites import load_suite, with_shots
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.plan import choose
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.storage.json_files import write_json
from jclip_fewshot.task import zero_shot_logits
from tests.evaluation.suites import CLASSES, small_suite


def test_a_suite_is_normalised_again(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    for rows in (suite.features, suite.task.features, suite.task.text):
        assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert suite.domains[:3] == ["Animal", "Animal", "Thu-dog"] and suite.task.domains.tolist() == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("changes, message", [
    ({"text": None}, "no array 'text'"),
    ({"test_y": np.full(48, 9)}, "test_y holds 9; numbers below 6"),
    ({"train_y": np.full(18, -1)}, "train_y holds -1; numbers from 0"),
    ({"train_x": np.zeros((18, 24))}, "row 0 of train_x is zero"),
    ({"test_x": np.ones((48, 7))}, r"test_x is float64 of shape \(48, 7\); .* of shape \(N, 24\)"),
    ({"test_x": np.full((48, 24), np.nan)}, "not finite"), ({"test_x": np.full((48, 24), 1e30)}, "not a feature"),
    ({"test_x": np.ones((48, 24), complex)}, "complex128"), ({"test_x": np.ones((48, 24), np.int8)}, "int8"),
    ({"test_x": np.ones((48, 24), bool)}, "bool"), ({"test_y": np.ones(48)}, "whole numbers"),
    ({"train_y": np.zeros((18, 1), int)}, r"shape \(18, 1\)"),
    ({"test_x": np.zeros((0, 24)), "test_y": np.zeros(0, int)}, "at least one test row"),
    ({"text": np.ones((5, 24))}, r"classes is .* of shape \(6,\); texts of shape \(5\) are needed"),
])
def test_suites_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_suite(small_suite(tmp_path / "s.npz", **changes))


def test_evaluate_has_the_fixed_interface(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    results = evaluate.evaluate(suite, Pipeline(["zero_shot", "tip_adapter", "gda"]))
    assert (results["suite"], results["n"], results["k"]) == ("s", 48, 6)
    assert list(results["methods"]) == ["zero_shot", "tip_adapter", "gda", "ensemble", "em_dirichlet",
                                        "em_dirichlet_hard", "ensemble_refined"]
    for scores in results["methods"].values():
        assert set(scores) >= {"top1", "top5", "class_mean", "domains", "seconds"}
        assert {d: set(inside) for d, inside in scores["domains"].items()} == {
            "Animal": {"n", "top1", "top5"}, "Thu-dog": {"n", "top1", "top5"}}
        assert 0 <= scores["top1"] <= scores["top5"] <= 100
    hits = [int(hit) for hit in results["correct"]["ensemble"]]
    assert 100 * np.mean(hits) == pytest.approx(results["methods"]["ensemble"]["top1"])
    write_json(tmp_path / "out.json", results)
    assert json.loads((tmp_path / "out.json").read_text())["methods"] == results["methods"]
    top1 = results["methods"]["ensemble"]["top1"]
    assert results["methods"]["ensemble"]["half_width"] == pytest.approx(1.96 * np.sqrt(top1 * (100 - top1) / 47))
    assert "ensemble_refined" in score_table(results["methods"])


def test_the_same_seed_gives_the_same_answers(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    names = ["zero_shot", "clip_adapter", "jclip_adapter"]
    one, two = (evaluate.predict(suite, Pipeline(names, seed=5))[0] for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_saved_pipeline_answers_the_same(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    pipeline = Pipeline().fit(suite.task)
    again = Pipeline.from_state(pipeline.state())
    ours, theirs = pipeline.answer(suite.features), again.answer(suite.features)
    assert list(ours.logits) == list(theirs.logits)
    assert all((ours.logits[name] == theirs.logits[name]).all() for name in ours.logits)
    assert (ours.probs == theirs.probs).all()
    assert np.allclose(ours.final, theirs.final, atol=1e-5)  # products may add up in another order


def test_a_state_of_another_version_is_named(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    state = Pipeline(["zero_shot", "gda"]).fit(suite.task).state()
    state = {name: value for name, value in state.items() if not name.startswith("methods/gda/")}
    with pytest.raises(UserError, match="another version"):
        Pipeline.from_state(state)


@pytest.mark.parametrize("name, change, message", [
    ("methods/gda/b_", lambda b: b[:, None], "do not fit together"),
    ("methods/gda/W_", lambda w: w[:, :2], "do not fit"),
    ("methods/gda/text_", lambda t: t[:, :-1], "do not fit"), ("ensemble/offset", lambda o: np.zeros(2), "train again"),
    ("methods/gda/W_", lambda w: np.full_like(w, 1e38), "beyond 1e.09: train again")])
def test_a_state_whose_arrays_do_not_fit_is_refused(tmp_path, name, change, message):
    state = Pipeline(["zero_shot", "gda"]).fit(load_suite(small_suite(tmp_path / "s.npz")).task).state()
    with pytest.raises(UserError, match=message):
        Pipeline.from_state({**state, name: change(state[name])})


def test_tasks_of_few_classes(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    results = evaluate.evaluate_tasks(suite, Pipeline(["zero_shot"]), tasks=6, classes=2, queries=10, seed=1)
    assert results["tasks"] == 6
    hits = zero_shot_logits(suite.features, suite.task.text).argmax(1) == suite.labels
    by_task = [100 * hits[rows].mean() for rows in evaluate.draw_tasks(suite.labels, 6, 2, 10, 1)]
    scores = results["methods"]["zero_shot"]
    assert scores["top1"] == pytest.approx(np.mean(by_task))
    assert scores["half_width"] == pytest.approx(1.96 * np.std(by_task, ddof=1) / np.sqrt(6))
    header, _, *lines = score_table(results["methods"]).splitlines()
    assert header.split() == ["method", "top-1", "±", "95", "%"]
    assert "zero_shot_refined" in [line.split()[0] for line in lines]


def test_tasks_are_compared_in_pairs(tmp_path):
    ours = {"suite": "a", "tasks": 3, "task_classes": 2, "task_queries": 5, "seed": 0, "methods": {
        "gda": {"top1": 70.0, "half_width": 1.0}}, "accuracy": {"gda": [60.0, 70.0, 80.0]}}
    theirs = {**ours, "accuracy": {"gda": [50.0, 60.0, 70.0]}, "methods": {"gda": {"top1": 60.0, "half_width": 1.0}}}
    table = evaluate.comparison(ours, msgspec.convert(theirs, evaluate.Compared))
    assert "+10.00" in table and table.split()[-1] == "0.00"  # each task gains the same
    with pytest.raises(UserError, match="seed 4"):
        evaluate.comparison(ours, msgspec.convert({**theirs, "seed": 4}, evaluate.Compared))
    write_json(tmp_path / "t.json", ours)
    assert evaluate.read_results(tmp_path / "t.json", tasks=True).tasks == 3
    with pytest.raises(UserError, match="without --tasks"):
        evaluate.read_results(tmp_path / "t.json")


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 30))


def test_tasks_hold_their_classes_and_repeat():
    tasks = evaluate.draw_tasks(LABELS, tasks=9, classes=5, queries=75, seed=3)
    assert len(tasks) == 9
    for rows in tasks:
        assert len(rows) == 75 and len(np.unique(rows)) == 75
        assert len(np.unique(LABELS[rows])) <= 5
    again = evaluate.draw_tasks(LABELS, tasks=9, classes=5, queries=75, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(tasks, again))
    other = evaluate.draw_tasks(LABELS, tasks=9, classes=5, queries=75, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(tasks, other))


def test_tasks_take_all_rows_where_there_are_fewer():
    (rows,) = evaluate.draw_tasks(np.array([0, 0, 1, 3, 3, 3]), tasks=1, classes=2, queries=75)
    assert len(rows) in (3, 4, 5)
    with pytest.raises(UserError, match="1 to 3 classes"):
        evaluate.draw_tasks(np.array([0, 1, 3]), tasks=1, classes=4, queries=75)


def test_more_classes_a_task_than_there_are(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    with pytest.raises(UserError, match="--task-classes 7"):
        evaluate.evaluate_tasks(suite, Pipeline(["zero_shot"]), tasks=2, classes=7, queries=10, seed=1)


def test_names_of_unknown_domains_stay_whole(tmp_path):
    bears = ("polar_bear", "brown_bear", "black_bear", "sun_bear", "sloth_bear", "Animal_cat")
    assert set(load_suite(small_suite(tmp_path / "s.npz", classes=bears)).domains) == {""}


def test_half_of_an_interval_is_that_of_a_share():
    hits = np.array([100.0] * 80 + [0.0] * 20)
    assert evaluate.half_width(hits) == pytest.approx(1.96 * 4, rel=0.01)
    assert evaluate.half_width(hits[:50]) == evaluate.half_width(hits[:1]) == 0


def test_mcnemar_is_the_exact_sign_test():
    assert evaluate.mcnemar("1110", "1110") == (0, 0, 1.0)
    assert evaluate.mcnemar("11111100", "00000000")[:2] == (6, 0)
    assert evaluate.mcnemar("111111", "000000")[2] == pytest.approx(2 / 64)
    assert evaluate.mcnemar("10", "01")[2] == 1.0


def test_comparison_wants_the_same_suite(tmp_path):
    ours = {"suite": "a", "n": 3, "methods": {"gda": {"top1": 200 / 3}}, "correct": {"gda": "110"}}
    theirs = {"suite": "a", "n": 3, "methods": {"gda": {"top1": 100 / 3}}, "correct": {"gda": "100"}}
    assert "66.67" in evaluate.comparison(ours, msgspec.convert(theirs, evaluate.Compared))
    with pytest.raises(UserError, match="that file has suite b, this is a"):
        evaluate.comparison(ours, msgspec.convert({**theirs, "suite": "b"}, evaluate.Compared))
    (tmp_path / "x.json").write_text("[]")
    for name in ("x.json", "absent.json"):
        with pytest.raises(UserError, match="--compare"):
            evaluate.read_results(tmp_path / name)


def test_methods_by_name():
    default = [name for name, one in METHODS.items() if one.default != NEVER]
    assert choose("gda").names == choose(["gda"]).names == ("zero_shot", "gda")
    assert choose("tip_adapter, zero_shot").names == ("zero_shot", "tip_adapter")
    assert list(choose("all").names) == list(METHODS)
    assert list(choose("").names) == list(choose("auto").names) == default
    fast = choose("fast, clap")
    assert "clap" in fast.names and fast.named == {"clap"}
    assert not any(METHODS[name].trains or METHODS[name].asks_images for name in fast.names if name != "clap")
    with pytest.raises(UserError, match="unknown method 'tip_adaptor'; did you mean 'tip_adapter'"):
        choose("tip_adaptor")


def test_without_shots_zero_shot_and_what_learns_from_rows_alone(tmp_path):
    suite = with_shots(load_suite(small_suite(tmp_path / "s.npz")), 0)
    pipeline = Pipeline()
    results = evaluate.evaluate(suite, pipeline)
    assert list(results["methods"]) == list(pipeline.answer(suite.features).by_method()) == [
        "zero_shot", "zero_shot_refined"]
    assert all(0 <= s["top1"] <= 100 for s in results["methods"].values())
    again = Pipeline.from_state(pipeline.state()).answer(suite.features)
    np.testing.assert_array_equal(again.final, pipeline.answer(suite.features).final)
    tasks = evaluate.evaluate_tasks(suite, pipeline, tasks=2, classes=3, queries=12, seed=0)
    assert "zero_shot_refined" in tasks["methods"]
    named = evaluate.evaluate(suite, Pipeline("clip_dn,lafter_text,clip_pr"))
    assert list(named["methods"]) == ["zero_shot", "clip_dn", "lafter_text", "clip_pr", "ensemble", "ensemble_refined"]
    with pytest.raises(UserError, match="gda learns from labelled images"):
        evaluate.evaluate(suite, Pipeline("gda"))


def test_shots_of_a_suite_can_be_fewer(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    assert with_shots(suite, 2).task.counts.tolist() == [2] * 6
    with pytest.raises(UserError, match="fewer than --shots 9; the most that all have is 3"):
        with_shots(suite, 9)


def test_the_seed_draws_the_shots_of_a_suite(tmp_path):
    suite = load_suite(small_suite(tmp_path / "s.npz"))
    drawn = {seed: with_shots(suite, 2, seed).task for seed in range(6)}
    assert all(task.counts.tolist() == [2] * 6 for task in drawn.values())
    assert len({task.features.tobytes() for task in drawn.values()}) == 6
    again = with_shots(suite, 2, 3).task
    assert (again.features == drawn[3].features).all() and (again.labels == drawn[3].labels).all()
    known = {row.tobytes(): label for row, label in zip(suite.task.features, suite.task.labels)}
    assert all(known[row.tobytes()] == label for row, label in zip(again.features, again.labels))


def test_names_are_labels_where_text_rows_are_given(tmp_path):
    """ImageNet has two classes called crane; a suite of very many classes is read at once."""
    suite = load_suite(small_suite(tmp_path / "s.npz", classes=("crane", "crane", *CLASSES[2:])))
    assert suite.classes[:2] == ["crane", "crane"] and suite.domains == [""] * 6
    assert np.abs(suite.task.text[0] - suite.task.text[1]).max() > 0.01
    many = tuple(f"class {number}" for number in range(60000))
    begun = time.process_time()
    assert len(load_suite(small_suite(tmp_path / "m.npz", many, 1, 1, 4)).classes) == 60000
    assert time.process_time() - begun < 10
    with pytest.raises(UserError, match="empty or not printable"):
        load_suite(small_suite(tmp_path / "s.npz", classes=(" ", *CLASSES[1:])))
