"""The table of runs, two runs apart, and the cache's size."""

import json

import numpy as np
import pytest

from jclip_fewshot.cli.commands import call
from jclip_fewshot.cli.history import advice, comparison, known_scores, runs_table
from jclip_fewshot.errors import UserError
from jclip_fewshot.run import Run
from jclip_fewshot.storage.feature_cache import FeatureCache
from tests.records import TEST

RECORD = {
    "command": "python train.py", "date": "2024-01-01 00:00:00", "device": "CPU", "versions": {},
    "encoder": {"features": "f.npz", "features_digest": ""}, "config": {"data": "d", "board": "A", "demo": False,
                                                                         "shots": 4, "seed": 3, "augment": 5},
    "classes": ["a", "b", "c"], "domains": ["", "", ""], "shots": {"rule": "random", "files": [], "labels": []},
    "settings": {"ensemble": {"held_out_top1": 71.5}}, "histories": {}, "seconds": {}}


@pytest.fixture
def folders(tmp_path):
    """Two runs on one test set of 40 images: the first is right on 30, the second on 20 of those and 2 others."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 40)
    wrong = (truth + 1) % 3
    first = np.where(np.arange(40) < 30, truth, wrong)
    second = np.where((np.arange(40) < 20) | (np.arange(40) > 37), truth, wrong)
    names = np.array([f"image_{n}.jpg" for n in range(40)])
    for name, best, order in (("one", first, np.arange(40)), ("two", second, rng.permutation(40))):
        write_run(tmp_path / name, names[order], best[order], truth[order])
    return tmp_path


def write_run(folder, names, best, truth=None):
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(RECORD))
    arrays = {"names": names, "best": best[:, None]}
    tested = {**TEST, "scores": {}}
    (folder / "test_A.json").write_text(json.dumps(tested))
    np.savez(folder / "test_A.npz", **arrays, **({} if truth is None else {"truth": truth}))


def test_two_runs_apart(folders):
    said = comparison(folders / "one", folders / "two")
    assert "40 images of test set A; 30.0 % are answered otherwise" in said
    assert "75.00" in said and "55.00" in said
    assert "difference +20.00" in said and "p = 0.0386" in said and "more than chance" in said  # 10 against 2 of 12
    assert "p = 1:" in comparison(folders / "one", folders / "one")


def test_what_cannot_be_compared(folders):
    names = np.array([f"other_{n}.jpg" for n in range(40)])
    write_run(folders / "three", names, np.zeros(40, int))
    with pytest.raises(UserError, match="other images"):
        comparison(folders / "one", folders / "three")
    with pytest.raises(UserError, match="no finished run"):
        comparison(folders / "one", folders / "absent")
    for kind in ("npz", "json"):
        (folders / f"two/test_A.{kind}").rename(folders / f"two/test_B.{kind}")
    with pytest.raises(UserError, match="no test set that both"):
        comparison(folders / "one", folders / "two")
    assert "no answers are known" in comparison(folders / "three", folders / "three")


def test_a_row_a_run_and_damaged_ones_named(folders, capsys):
    (folders / "two/record.json").write_text("{")
    table = runs_table(folders)
    assert all(said in table for said in ("one", "augment 5")) and "\ntwo" not in table
    assert "left out" in capsys.readouterr().err
    assert known_scores(Run.open(folders / "one")) == {}
    with pytest.raises(UserError, match="no finished run"):
        runs_table(folders / "one")


def trained(folder, name, top1, shots=400, **config):
    """A run with a held-out score of two classes' shots."""
    record = {**RECORD, "config": {**RECORD["config"], **config}, "settings": {"ensemble": {"held_out_top1": top1}},
              "shots": {"rule": "random", "files": [f"{n}.jpg" for n in range(shots)],
                        "labels": [n % 2 for n in range(shots)]}}
    (folder / name).mkdir(parents=True)
    (folder / name / "record.json").write_text(json.dumps(record))


def test_what_tells_runs_apart_is_printed_in_a_narrow_terminal_too(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prompts = "a/very/long/way/to/the/prompts"
    trained(tmp_path, "20260101-120000-A", 80.0, methods="fast,clap,coop", prompts=prompts, precision="float32")
    trained(tmp_path, "20260101-130000-A", 82.0, methods="all", augment=0)
    text = runs_table(tmp_path)
    assert max(map(len, text.splitlines())) <= 80 and "too narrow" not in text
    for said in ("80.0 ± 2.0", "82.0 ± 1.9", "methods fast,clap,coop", "methods all", "augment 0", "precision float32",
                 "2024-01-01 00:00"):
        assert said in " ".join(text.split()), said


def test_which_run_to_submit(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    trained(tmp_path, "one", 80.0)
    assert "Submit" not in runs_table(tmp_path)  # nothing to choose
    trained(tmp_path, "two", 81.0)
    trained(tmp_path, "far", 60.0)
    trained(tmp_path, "other data", 99.0, data="elsewhere")
    trained(tmp_path, "other board", 99.0, board="B")
    trained(tmp_path, "apart", 99.0, select="representative")
    (tmp_path / "one/record.json").touch()  # the newest
    text = advice(Run.all(tmp_path))
    assert text.startswith("Submit two: its held-out top-1 is the highest (81.0 ± 2.0) of the 3 runs")
    assert "; one is within one standard error of it" in text
    assert "no other comes within" in advice([run for run in Run.all(tmp_path) if run.folder.name != "two"])


def test_runs_are_compared_by_the_names_that_are_printed(folders):
    said = comparison("one", "two", runs=folders)
    assert "40 images of test set A" in said and "\none " in said and "\ntwo " in said
    assert said.splitlines()[-1] == comparison(folders / "one", folders / "two").splitlines()[-1]
    with pytest.raises(UserError, match="--compare absent: no finished run there"):
        comparison("one", "absent", runs=folders)


def test_a_damaged_test_record_hides_neither_its_run_nor_the_others(folders, capsys):
    (folders / "one/test_A.json").write_text("{")
    text = runs_table(folders)
    assert "one" in text and "two" in text and "its scores are left out" in capsys.readouterr().err


def test_the_cache_says_its_size_and_empties(tmp_path, capsys):
    with FeatureCache(tmp_path / "cache") as store:
        store.rows({"what": "test"}, (1, 4)).put(np.zeros((3, 2), "<u8"), np.ones((3, 1, 4), np.float32))
    (tmp_path / "cache/own.txt").write_text("mine")
    assert call("cache", ["--size", "--cache", str(tmp_path / "cache")]) == 0 and "MB" in capsys.readouterr().out
    assert call("cache", ["--clear", "--cache", str(tmp_path / "cache")]) == 0 and "deleted" in capsys.readouterr().out
    assert FeatureCache(tmp_path / "cache").size() == 0 and (tmp_path / "cache/own.txt").exists()
    with pytest.raises(UserError, match="no folder"):
        call("cache", ["--size", "--cache", str(tmp_path / "cache/own.txt")])
