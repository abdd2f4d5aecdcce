"""The store of rows: nothing lost, nothing wrong, whatever happens to its files or beside it."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage import row_store
from jclip_fewshot.storage.row_store import RowStore

ROOT = Path(__file__).resolve().parents[2]
BYTES = 48


def some(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2 ** 63, (n, 2)).astype("<u8"), rng.integers(0, 256, (n, BYTES)).astype(np.uint8)


def write(folder, keys, rows, blocks=1):
    store = RowStore(folder, (BYTES,), np.uint8)
    for k, r in zip(np.array_split(keys, blocks), np.array_split(rows, blocks)):
        store.put(k, r)
        store.flush()
    store.close()


def shards(folder):
    return sorted(folder.glob("*.rows"))


def quietly(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return RowStore(folder, (BYTES,), np.uint8)


def test_gives_back_what_was_put_and_nothing_else(tmp_path):
    keys, rows = some(100)
    write(tmp_path, keys[:90], rows[:90], blocks=7)
    order = np.random.default_rng(1).permutation(100)
    got, found = quietly(tmp_path).get(keys[order])
    assert (found == (order < 90)).all()
    assert (got[found] == rows[order][found]).all() and not got[~found].any()


def test_empty_store_and_empty_question(tmp_path):
    store = quietly(tmp_path / "store")
    store.put(*(array[:0] for array in some(3)))
    assert not store.get(some(3)[0])[1].any()
    store.close()
    assert not (tmp_path / "store").exists()
    write(tmp_path, *some(3))
    assert quietly(tmp_path).get(np.zeros((0, 2), "<u8"))[0].shape == (0, BYTES)


def test_what_another_store_wrote_appears_with_refresh(tmp_path):
    reader, writer = RowStore(tmp_path, (BYTES,), np.uint8), RowStore(tmp_path, (BYTES,), np.uint8)
    keys, rows = some(5)
    writer.put(keys, rows)
    writer.flush()
    assert not reader.get(keys)[1].any()
    reader.refresh()
    assert (reader.get(keys)[0] == rows).all()


@pytest.mark.parametrize("cut", [1, 20, 100, BYTES * 10, BYTES * 10 + 250])
def test_half_written_end_is_dropped_noticed_and_repaired(tmp_path, cut):
    keys, rows = some(40)
    write(tmp_path, keys, rows, blocks=4)
    shard, = shards(tmp_path)
    os.truncate(shard, shard.stat().st_size - cut)
    with pytest.warns(UserWarning, match="half-written.*computed again"):
        store = RowStore(tmp_path, (BYTES,), np.uint8)
    got, found = store.get(keys)
    kept = 30 if cut < BYTES * 10 + 240 else 20
    assert found[:kept].all() and not found[kept:].any() and (got[:kept] == rows[:kept]).all()
    store.put(keys[kept:], rows[kept:])
    store.close()
    got, found = quietly(tmp_path).get(keys)
    assert found.all() and (got == rows).all()


def test_any_flipped_byte_loses_at_most_its_block_and_is_never_believed(tmp_path):
    keys, rows = some(12)
    write(tmp_path / "whole", keys, rows, blocks=3)
    data = shards(tmp_path / "whole")[0].read_bytes()
    for at in range(0, len(data), 29):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "0.rows").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        with pytest.warns(UserWarning, match="computed again"):
            store = RowStore(folder, (BYTES,), np.uint8)
            got, found = store.get(keys)
        assert not found.all() and (got[found] == rows[found]).all()
        store.put(keys[~found], rows[~found])
        store.close()
        got, found = quietly(folder).get(keys)
        assert found.all() and (got == rows).all()


def test_damaged_row_costs_that_row_alone_and_is_replaced(tmp_path):
    keys, rows = some(10)
    write(tmp_path, keys, rows)
    shard, = shards(tmp_path)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    store = quietly(tmp_path)
    with pytest.warns(UserWarning, match="checksum"):
        assert store.get(keys)[1].tolist() == [True] * 9 + [False]
    store.put(keys[9:], rows[9:])
    store.close()
    got, found = quietly(tmp_path).get(keys)
    assert found.all() and (got == rows).all()


@pytest.mark.parametrize("content", [b"x", b"garbage" * 99, b"JCFROWS1", b"JCFROWS1" + b"\xff" * 60])
def test_foreign_files_are_dropped(tmp_path, content):
    write(tmp_path, *some(3))
    (tmp_path / "0.rows").write_bytes(content)
    with pytest.warns(UserWarning, match="dropped"):
        store = RowStore(tmp_path, (BYTES,), np.uint8)
    assert store.get(some(3)[0])[1].all()
    assert quietly(tmp_path).get(some(3)[0])[1].all()


def test_rows_of_another_size_are_not_taken_for_ours(tmp_path):
    write(tmp_path, *some(3))
    with pytest.warns(UserWarning):
        assert not len(RowStore(tmp_path, (BYTES + 4,), np.uint8))


def test_a_shard_that_nobody_writes_is_continued(tmp_path):
    keys, rows = some(200)
    for part in range(20):
        write(tmp_path, keys[part * 9:part * 9 + 29], rows[part * 9:part * 9 + 29])
    assert len(shards(tmp_path)) == 1
    assert (quietly(tmp_path).get(keys)[0] == rows).all()


def test_what_is_half_written_is_cut_off_before_more_is_appended(tmp_path):
    keys, rows = some(20)
    write(tmp_path, keys[:10], rows[:10])
    store = quietly(tmp_path)
    with open(*shards(tmp_path), "ab") as file:
        file.write(b"JCFROWS1 and nothing more")
    store.put(keys[10:], rows[10:])
    store.close()
    assert len(shards(tmp_path)) == 1 and (quietly(tmp_path).get(keys)[0] == rows).all()


def test_a_shard_in_the_making_is_neither_continued_nor_called_damaged(tmp_path):
    keys, rows = some(30)
    writer = RowStore(tmp_path, (BYTES,), np.uint8)
    writer.put(keys[:1], rows[:1])
    writer.flush()
    os.write(writer._writer, b"JCFROWS1 and more to come")
    for i in range(1, 20):
        write(tmp_path, keys[i:i + 1], rows[i:i + 1])
    live, other = sorted(shards(tmp_path), key=lambda path: b"more to come" not in path.read_bytes())
    assert quietly(tmp_path).get(keys)[1].sum() == 20
    assert live.read_bytes().endswith(b"more to come") and other.exists()


WRITER = """
import sys, numpy as np
from jclip_fewshot.storage.row_store import RowStore
me = int(sys.argv[2])
for life in range(6):
    store = RowStore(sys.argv[1], (48,), np.uint8)
    for i in range(20):
        key = np.array([[(life * 20 + i) * 8 + me, me]], "<u8") * np.uint64(0x9E3779B97F4A7C15)
        store.put(key, np.full((1, 48), (life * 20 + i) % 256, np.uint8))
        store.flush()
    store.close()
"""


def test_processes_writing_at_once_lose_nothing(tmp_path):
    count = 4
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)]
    children = [subprocess.Popen(command + [str(me)], cwd=ROOT) for me in range(count)]
    assert [child.wait() for child in children] == [0] * count
    store = quietly(tmp_path)
    for me in range(count):
        keys = np.array([[i * 8 + me, me] for i in range(120)], "<u8") * np.uint64(0x9E3779B97F4A7C15)
        rows, found = store.get(keys)
        assert found.all() and (rows == np.arange(120)[:, None]).all()
    assert len(shards(tmp_path)) <= count


def test_a_full_disk_costs_a_warning_not_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    store = RowStore(tmp_path, (BYTES,), np.uint8)
    monkeypatch.setattr(row_store.os, "write", full)
    store.put(*some(3))
    with pytest.warns(UserWarning, match="No space left on device.*going on"):
        store.flush()
    store.put(*some(3))
    store.close()


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/cache: Not a directory"):
        RowStore(tmp_path / "file" / "cache", (BYTES,), np.uint8)


def rot(shard, at=-1):
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(data)


def test_of_a_rotten_row_and_a_newer_one_the_newer_counts(tmp_path):
    keys, rows = some(10)
    write(tmp_path, keys, rows)
    rot(*shards(tmp_path))
    write(tmp_path, keys[9:], rows[9:])
    got, found = quietly(tmp_path).get(keys)
    assert found.all() and (got == rows).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("poison", [0, np.nan, np.inf, -np.inf])
def test_rows_that_are_zero_or_not_finite_are_neither_kept_nor_returned(tmp_path, dtype, poison):
    rng = np.random.default_rng(3)
    keys, _ = some(40)
    rows = rng.standard_normal((40, 3, 5)).astype(dtype)
    bad = rng.random(40) < 0.5
    for i in np.flatnonzero(bad):
        view = rng.integers(3)
        rows[i, view] = 0
        rows[i, view, rng.integers(5)] = poison
    store = RowStore(tmp_path / "put", (3, 5), dtype)
    store.put(keys, rows)
    store.close()
    raw = RowStore(tmp_path / "old", (3, 5, np.dtype(dtype).itemsize), np.uint8)
    raw.put(keys, rows.reshape(40, -1).view(np.uint8).reshape(40, *raw.shape))
    raw.close()
    for folder in ("put", "old"):
        store = RowStore(tmp_path / folder, (3, 5), dtype)
        assert len(store) == (40 if folder == "old" else (~bad).sum())
        got, found = store.get(keys)
        assert (found == ~bad).all() and (got[found] == rows[~bad]).all() and not got[bad].any()
        mapped = store.mapped(keys)
        assert [row is not None for row in mapped] == (~bad).tolist()
        assert all((mapped[i] == rows[i]).all() for i in np.flatnonzero(~bad))
    sound = np.where(np.isfinite(rows) & (rows != 0), rows, dtype(1))
    store.put(keys[bad], sound[bad])  # computed again
    store.close()
    assert (RowStore(tmp_path / "old", (3, 5), dtype).get(keys)[0] == np.where(bad[:, None, None], sound, rows)).all()


def test_the_folder_may_be_deleted_under_way(tmp_path):
    keys, rows = some(10)
    store = RowStore(tmp_path / "cache", (BYTES,), np.uint8)
    store.put(keys[:5], rows[:5])
    store.flush()
    shutil.rmtree(tmp_path / "cache")
    store.refresh()
    assert not store.get(keys)[1].any()
    store.put(keys[5:], rows[5:])
    store.close()
    assert quietly(tmp_path / "cache").get(keys)[1].tolist() == [False] * 5 + [True] * 5


def test_shards_that_vanish_while_they_are_read_have_no_rows(tmp_path, monkeypatch):
    store = RowStore(tmp_path, (BYTES,), np.uint8)
    monkeypatch.setattr(store, "_shard_names", lambda: ["ghost.rows"])
    store.refresh()
    assert len(store) == 0


def test_a_store_of_many_shards_holds_few_files_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    writers = [RowStore(tmp_path, (BYTES,), np.uint8) for _ in range(8)]
    for seed, writer in enumerate(writers):
        writer.put(*some(3, seed))
        writer.flush()
    for writer in writers:
        writer.close()
    store = RowStore(tmp_path, (BYTES,), np.uint8)
    assert len(shards(tmp_path)) == 8 and len(store) == 24
    assert len(os.listdir("/proc/self/fd")) == before
