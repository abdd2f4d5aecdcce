"""The table of runs, two runs apart, and the cache's size."""

import json

import numpy as np
import pytest

from jclip_fewshot.cli.commands import cache
from jclip_fewshot.cli.history import comparison, known_scores, runs_table
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
    assert all(said in table for said in ("one", "71.5", "augment 5")) and "\ntwo" not in table
    assert "left out" in capsys.readouterr().err
    assert known_scores(Run.open(folders / "one")) == {}
    with pytest.raises(UserError, match="no finished run"):
        runs_table(folders / "one")


def test_the_cache_says_its_size_and_empties(tmp_path, capsys):
    with FeatureCache(tmp_path / "cache") as store:
        store.rows({"what": "test"}, (1, 4)).put(np.zeros((3, 2), "<u8"), np.ones((3, 1, 4), np.float32))
    (tmp_path / "cache/own.txt").write_text("mine")
    assert cache(["--size", "--cache", str(tmp_path / "cache")]) == 0 and "MB" in capsys.readouterr().out
    assert cache(["--clear", "--cache", str(tmp_path / "cache")]) == 0 and "deleted" in capsys.readouterr().out
    assert FeatureCache(tmp_path / "cache").size() == 0 and (tmp_path / "cache/own.txt").exists()
    with pytest.raises(UserError, match="no folder"):
        cache(["--size", "--cache", str(tmp_path / "cache/own.txt")])
