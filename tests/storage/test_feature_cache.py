"""The feature cache: rows by what they are, files recognised until they change."""

import copy
import os
import pickle
import time

import numpy as np

from jclip_fewshot.storage import feature_cache
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.row_store import as_keys

BYTES = 48


def some(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2 ** 63, (n, 2)).astype("<u8"), rng.integers(0, 256, (n, BYTES)).astype(np.uint8)


def test_spaces_are_kept_apart(tmp_path):
    cache = FeatureCache(tmp_path)
    keys, rows = some(2)
    cache.rows({"encoder": "a"}, BYTES).put(keys, rows)
    cache.close()
    cache = FeatureCache(tmp_path)
    assert cache.rows({"encoder": "a"}, BYTES).get(keys)[1].all()
    assert not cache.rows({"encoder": "b"}, BYTES).get(keys)[1].any()


def test_files_are_recognised_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "RACY_SECONDS", 0)
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for path in paths:
        path.write_text(path.name)
    time.sleep(0.02)
    with FeatureCache(tmp_path / "cache") as cache:
        _, known, marks = cache.known_files(paths)
        assert not known.any() and marks.any(axis=1).all()
        cache.remember_files(marks, as_keys([bytes([i]) * 16 for i in range(5)]))
    paths[0].write_text("longer than before")
    paths[1].write_text("9.jpg")  # same length
    stat = paths[2].stat()
    paths[2].write_text("8.jpg")
    os.utime(paths[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync and cp -p do
    paths[3].unlink()
    time.sleep(0.02)
    digests, known, marks = FeatureCache(tmp_path / "cache").known_files(paths)
    assert known.tolist() == [False, False, False, False, True]
    assert digests[4].tobytes() == b"\x04" * 16
    assert not marks[3].any()


def test_a_file_changed_just_now_is_not_trusted(tmp_path):
    (tmp_path / "a.jpg").write_text("a")
    with FeatureCache(tmp_path / "cache") as cache:
        _, _, marks = cache.known_files([tmp_path / "a.jpg"])
        cache.remember_files(marks, as_keys([b"a" * 16]))
    assert not FeatureCache(tmp_path / "cache").known_files([tmp_path / "a.jpg"])[1].any()


def test_the_working_folder_may_change(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = FeatureCache("cache")
    monkeypatch.chdir(tmp_path / "elsewhere")
    keys, rows = some(3)
    cache.rows({}, BYTES).put(keys, rows)
    cache.close()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert FeatureCache(tmp_path / "cache").rows({}, BYTES).get(keys)[1].all()


def test_size_and_clear_concern_the_caches_own_files(tmp_path):
    cache = FeatureCache(tmp_path)
    assert FeatureCache(tmp_path / "absent").size() == 0
    cache.rows({"encoder": "a"}, BYTES).put(*some(100))
    cache.flush()
    (tmp_path / "notes.txt").write_text("mine")
    assert 100 * BYTES < cache.size() < 200 * BYTES
    assert cache.clear() > 100 * BYTES and cache.size() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not cache.rows({"encoder": "a"}, BYTES).get(some(3)[0])[1].any()


def test_a_cache_is_copied_by_its_folder(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.rows({}, BYTES).put(*some(3))
    cache.flush()
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.rows({}, BYTES).get(some(3)[0])[1].all()
