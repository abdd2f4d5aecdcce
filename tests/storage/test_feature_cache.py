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
    cache.rows({"encoder": "a"}, (BYTES,), np.uint8).put(keys, rows)
    cache.close()
    cache = FeatureCache(tmp_path)
    assert cache.rows({"encoder": "a"}, (BYTES,), np.uint8).get(keys)[1].all()
    assert not cache.rows({"encoder": "b"}, (BYTES,), np.uint8).get(keys)[1].any()


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
    cache.rows({}, (BYTES,), np.uint8).put(keys, rows)
    cache.close()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert FeatureCache(tmp_path / "cache").rows({}, (BYTES,), np.uint8).get(keys)[1].all()


def test_size_and_clear_concern_the_caches_own_files(tmp_path):
    cache = FeatureCache(tmp_path)
    assert FeatureCache(tmp_path / "absent").size() == 0
    cache.rows({"encoder": "a"}, (BYTES,), np.uint8).put(*some(100))
    cache.flush()
    (tmp_path / "notes.txt").write_text("mine")
    assert 100 * BYTES < cache.size() < 200 * BYTES
    assert cache.clear() > 100 * BYTES and cache.size() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not cache.rows({"encoder": "a"}, (BYTES,), np.uint8).get(some(3)[0])[1].any()


def test_clear_deletes_no_folder_that_is_not_the_caches_own(tmp_path):
    """As in ~/.cache, where other programs keep theirs."""
    foreign = [f"{name}/precious.rows" for name in ("files", "fits", "ranks", "0123456789abcdef", "fedcba9876543210")]
    for name in foreign:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine")
    (tmp_path / "fedcba9876543210/about.json").write_text('{"what": "mine"}\n')
    (tmp_path / "elsewhere").mkdir()
    with FeatureCache(tmp_path / "elsewhere") as other:
        other.rows({}, (BYTES,), np.uint8).put(*some(3))
    inside, = (tmp_path / "elsewhere").iterdir()
    (tmp_path / inside.name).symlink_to(inside)
    with FeatureCache(tmp_path) as cache:
        cache.rows({"encoder": "a"}, (BYTES,), np.uint8).put(*some(3))
        cache.remember_files(*[some(3)[0]] * 2)
        cache.fits.put("a", {"x": np.ones(3)})
    before = {path.name for path in tmp_path.iterdir()}
    assert cache.clear() > 0 and cache.size() == 0
    assert all((tmp_path / name).read_text() == "mine" for name in foreign) and any(inside.iterdir())
    assert len(before - {path.name for path in tmp_path.iterdir()}) == 3


def test_reading_makes_no_folder(tmp_path):
    with FeatureCache(tmp_path / "cache") as cache:
        for view in range(50):
            assert not cache.rows({"view": view}, (1, 4)).get(some(2)[0])[1].any()
        assert not cache.known_files([tmp_path / "nope.jpg"])[1].any() and cache.fits.get("a") is None
    assert not list(tmp_path.iterdir())


def test_a_cache_is_copied_by_its_folder(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.rows({}, (BYTES,), np.uint8).put(*some(3))
    cache.flush()
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.rows({}, (BYTES,), np.uint8).get(some(3)[0])[1].all()
