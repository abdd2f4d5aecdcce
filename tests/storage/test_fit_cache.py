"""Trainings that are kept: the ones that were asked for or none, and never at the cost of one."""

import warnings

import numpy as np
import pytest

from jclip_fewshot.storage import files
from jclip_fewshot.storage.arrays import save_arrays
from jclip_fewshot.storage.feature_cache import FitCache

ARRAYS = {"visual.proj": np.ones((3, 2), np.float32), "classifier": np.zeros((4, 2), np.float16)}


def test_gives_back_what_was_put(tmp_path):
    FitCache(tmp_path).put("one", ARRAYS)
    found = FitCache(tmp_path).get("one")
    assert set(found) == set(ARRAYS) and all((found[name] == ARRAYS[name]).all() for name in ARRAYS)
    FitCache(tmp_path).put("none", {})
    assert FitCache(tmp_path).get("none") == {} and FitCache(tmp_path).get("two") is None


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.unlink() or path.mkdir()])
def test_a_file_that_is_damaged_is_none(tmp_path, spoil):
    fits = FitCache(tmp_path)
    fits.put("one", ARRAYS)
    fits.put("two", ARRAYS)
    spoil(tmp_path / "one.npz")
    assert fits.get("one") is None and fits.get("two") is not None


def test_what_an_earlier_version_noted_beside_the_arrays_is_left_out(tmp_path):
    save_arrays(tmp_path / "one.npz", {**ARRAYS, "kept/key": np.array("one"), "kept/names": np.array(sorted(ARRAYS))})
    assert set(FitCache(tmp_path).get("one")) == set(ARRAYS)


@pytest.mark.parametrize("reason", ["No space left on device", "Read-only file system", "Not a directory"])
def test_what_cannot_be_kept_costs_one_warning_and_no_training(tmp_path, monkeypatch, reason):
    def refuse(*_):
        raise OSError(28, reason)
    if reason == "Not a directory":
        (tmp_path / "file").write_text("")
    else:
        monkeypatch.setattr(files.os, "fsync", refuse)
    fits = FitCache(tmp_path / "file" if reason == "Not a directory" else tmp_path)
    with pytest.warns(UserWarning, match="cannot be kept.*going on without") as caught:
        fits.put("one", ARRAYS)
        fits.put("two", ARRAYS)
    assert len(caught) == 1
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fits.get("one") is None
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*"))
