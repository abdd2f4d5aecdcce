"""Trainings that are kept: the ones that were asked for or none, and never at the cost of one."""

import shutil
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
    lambda path: np.savez(path), lambda path: save_arrays(path, ARRAYS), lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: shutil.copy(path.with_name("two.npz"), path),
    lambda path: path.unlink() or path.mkdir()])
def test_a_file_that_is_not_that_training_is_none(tmp_path, spoil):
    fits = FitCache(tmp_path)
    fits.put("one", ARRAYS)
    fits.put("two", ARRAYS)
    spoil(tmp_path / "one.npz")
    assert fits.get("one") is None and fits.get("two") is not None


@pytest.mark.parametrize("name", ["", "classifier"])
def test_an_array_less_or_more_is_none(tmp_path, name):
    FitCache(tmp_path).put("one", ARRAYS)
    with np.load(tmp_path / "one.npz") as content:
        changed = {key: content[key] for key in content.files if key != name}
    np.savez(tmp_path / "one.npz", **changed, **({} if name else {"another": np.ones(2)}))
    assert FitCache(tmp_path).get("one") is None


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
