"""Rows on disk, found again by content: nothing is computed twice.

A store is a folder of shards, a shard one file of blocks that are appended and never changed:

    header   magic, number of rows n, bytes a row, CRC-32 of all that stands before the rows
    keys     n x 16 bytes
    sums     n x uint32, the CRC-32 of each row
    rows     n x bytes a row

Every process appends to a shard of its own, so that none waits for another. A block that was not finished
(kill -9, full disk) fails its checksum and is dropped, so is a row that rotted on the disk: both are computed
again. Shards that nobody writes any more are merged when a store has gathered many of them. Who writes a
shard holds its flock, which the kernel releases however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import stat
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import DIGEST_BYTES, atomic_write

MAGIC = b"JCFROWS1"
HEADER = struct.Struct("<8sIII")  # magic, n, bytes a row, CRC-32
FLUSH_SECONDS = 2.0
MANY_SHARDS = 8  # merged when there are more
LARGE_SHARD = 256 << 20  # bytes; merged no further
MERGE_ROWS = 8192  # rows a block of a merged shard
AT_ONCE = 256  # shards a merge at most: each is an open file
MAP_FROM = 4 << 20  # bytes; smaller shards are read, for a mapped one is an open file
TRIES = 20  # of listing a folder whose shards other processes merge


def as_keys(digests: Sequence[bytes]) -> np.ndarray:
    """(n, 2) uint64 from n digests of 16 bytes."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


class _Block(NamedTuple):
    keys: np.ndarray  # (n, 2) uint64
    sums: np.ndarray  # (n,) uint32
    start: int        # where its rows begin in the file


def _encode_block(keys: np.ndarray, rows: np.ndarray) -> list[bytes]:
    """keys (n, 2) uint64 and rows (n, row_bytes) uint8 -> the pieces of one block."""
    sums = np.array([zlib.crc32(row) for row in rows], "<u4").tobytes()
    keys = np.ascontiguousarray(keys, "<u8").tobytes()
    sizes = struct.pack("<II", len(rows), rows.shape[1])
    return [HEADER.pack(MAGIC, *rows.shape, zlib.crc32(sizes + keys + sums)), keys, sums, rows.tobytes()]


def _read_blocks(data: memoryview, row_bytes: int) -> tuple[list[_Block], bool]:
    """The undamaged blocks of a shard, and whether they are all there is to it."""
    blocks, at = [], 0
    while at + HEADER.size <= len(data):
        magic, n, size, checksum = HEADER.unpack_from(data, at)
        head = at + HEADER.size
        start = head + n * (DIGEST_BYTES + 4)
        end = start + n * size
        if magic != MAGIC or size != row_bytes or end > len(data):
            break
        if zlib.crc32(data[head:start], zlib.crc32(struct.pack("<II", n, size))) != checksum:
            break
        keys = np.frombuffer(data, "<u8", 2 * n, head).reshape(n, 2)
        blocks.append(_Block(keys, np.frombuffer(data, "<u4", n, head + n * DIGEST_BYTES), start))
        at = end
    return blocks, at == len(data)


def _content(fd: int) -> memoryview:
    """A file's bytes, mapped where it is large; they stay readable after it is deleted."""
    size = os.fstat(fd).st_size
    if size >= MAP_FROM:
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
    with open(fd, "rb", closefd=False) as file:
        return memoryview(file.read())


def _open_shard(path: Path) -> int | None:
    """A file descriptor; None where a folder, a pipe or a link to nowhere has a shard's name.

    Raises:
        FileNotFoundError: merged away by another process since it was listed.
    """
    try:
        fd = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _lock(fd: int) -> bool:
    """Takes the file's lock if nobody has it (false also where the file system knows no locks)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


class RowStore:
    """Fixed-size rows of bytes by 16-byte key, in a folder. Several processes may share it."""

    def __init__(self, folder: str | Path, row_bytes: int):
        if row_bytes < 1:
            raise ValueError(f"rows of {row_bytes} bytes")  # every row that is there would pass for damaged
        self.folder = Path(os.path.abspath(str(folder)))  # once: the program may change its working folder
        self.row_bytes = row_bytes
        self._writer: int | None = None
        self._writable = True
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._flushed = time.monotonic()
        self._damaged: set[str] = set()
        self._make_folder()
        self.refresh()
        self._merge()

    def __len__(self) -> int:
        return len(self._first)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"feature cache: cannot make {self.folder} ({error.strerror}); choose another")

    def refresh(self) -> None:
        """Reads the index again: rows that any process has written since become visible.

        Raises:
            UserError: its files cannot be read, or vanish as fast as they are listed.
        """
        for _ in range(TRIES):
            try:
                return self._read_index()
            except FileNotFoundError:  # merged away by another process between listing and opening
                if not self.folder.is_dir():
                    warnings.warn(f"feature cache: {self.folder} has been deleted; what was in it is computed again")
                    self._make_folder()
                time.sleep(0.01)
            except PermissionError as error:
                raise UserError(f"feature cache: {error.filename}: {error.strerror}; choose another --cache")
        raise UserError(f"feature cache: files in {self.folder} vanish while they are read; choose another --cache")

    def _read_index(self) -> None:
        self._maps: list[memoryview] = []
        self._names: list[str] = []
        keys, sums, shard, offset = [np.zeros((0, 2), "<u8")], [np.zeros(0, "<u4")], [[]], [[]]
        for name in self._shard_names():
            fd = _open_shard(self.folder / name)
            if fd is None:
                self._drop(name, "is no file")
                continue
            try:
                data = _content(fd)
                blocks, whole = _read_blocks(data, self.row_bytes)
                if not whole and _lock(fd):  # locked by its writer: a block in the making, no damage
                    self._drop(name, "its end is damaged or half-written")
            finally:
                os.close(fd)
            for block in blocks:
                n = len(block.keys)
                keys.append(block.keys)
                sums.append(block.sums)
                shard.append(np.full(n, len(self._maps)))
                offset.append(block.start + np.arange(n) * self.row_bytes)
            self._maps.append(data)
            self._names.append(name)
        keys = np.concatenate(keys)
        # Sorted by the first half of the key; two keys that share it and nothing else cost a recomputation,
        # and there is one such pair in a cache of six billion rows.
        order = np.argsort(keys[:, 0], kind="stable")
        self._first, self._second = keys[order, 0], keys[order, 1]
        self._sums = np.concatenate(sums)[order]
        self._shard = np.concatenate(shard).astype(np.int32)[order]
        self._offset = np.concatenate(offset).astype(np.int64)[order]

    def _shard_names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if name.endswith(".rows"))

    def _drop(self, name: str, why: str) -> None:
        if name not in self._damaged:
            warnings.warn(f"feature cache: {self.folder / name}: {why}; "
                          "that part is dropped and computed again")
        self._damaged.add(name)

    def get(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """keys (n, 2) uint64 -> rows (n, row_bytes) uint8, zeros where there is none, and found (n,) bool."""
        n, size = len(keys), self.row_bytes
        rows, found = np.zeros((n, size), np.uint8), np.zeros(n, bool)
        at, there = self._places(keys)
        hits = np.flatnonzero(there)
        at = at[hits]
        order = np.lexsort((self._offset[at], self._shard[at]))  # as they lie on the disk
        hits, at = hits[order], at[order]
        found[hits] = True
        out = memoryview(rows.reshape(-1))
        crc32, maps = zlib.crc32, self._maps
        for i, s, begin, checksum in zip(hits.tolist(), self._shard[at].tolist(), self._offset[at].tolist(),
                                         self._sums[at].tolist()):
            row = maps[s][begin:begin + size]
            if crc32(row) != checksum:
                self._drop(self._names[s], "a row fails its checksum")
                row = self._sound_copy(keys[i])
                if row is None:
                    found[i] = False
                    continue
            out[i * size:i * size + size] = row
        return rows, found

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Which of the keys (n, 2) have a row, (n,) bool, by the index alone: no row is read or checked."""
        return self._places(keys)[1]

    def _places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each key would stand in the index, and whether it does."""
        if not len(keys) or not len(self):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        at = np.minimum(np.searchsorted(self._first, keys[:, 0]), len(self) - 1)
        return at, (self._first[at] == keys[:, 0]) & (self._second[at] == keys[:, 1])

    def mapped(self, keys: np.ndarray) -> list[memoryview | None]:
        """As `get`, without a copy: each row where it lies on the disk, mapped; None where there is none.

        For rows too large to hold at once. They stay readable whatever becomes of their shard.
        """
        return [self._sound_copy(key) for key in keys]

    def _sound_copy(self, key: np.ndarray) -> memoryview | None:
        """A row of that key which passes its checksum, from whichever shard."""
        at = np.searchsorted(self._first, key[0])
        while at < len(self) and self._first[at] == key[0]:
            begin = self._offset[at]
            row = self._maps[self._shard[at]][begin:begin + self.row_bytes]
            if self._second[at] == key[1] and zlib.crc32(row) == self._sums[at]:
                return row
            at += 1
        return None

    def put(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Adds rows (n, row_bytes) uint8; they are written with the first put after FLUSH_SECONDS."""
        if len(keys):
            self._pending.append((np.array(keys, "<u8"), np.array(rows, np.uint8)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hands everything to the operating system: from here on not even kill -9 loses it."""
        self._flushed = time.monotonic()
        pending, self._pending = self._pending, []
        if not pending or not self._writable:
            return
        keys, rows = map(np.concatenate, zip(*pending))
        try:
            if self._writer is not None and os.fstat(self._writer).st_nlink == 0:  # somebody deleted it
                os.close(self._writer)
                self._writer = None
            if self._writer is None:
                self._writer = self._new_shard()
            view = memoryview(b"".join(_encode_block(keys, rows)))
            while view:
                view = view[os.write(self._writer, view):]
        except OSError as error:
            self._writable = False
            warnings.warn(f"feature cache: cannot write to {self.folder} ({error.strerror}); "
                          "going on without")

    def _new_shard(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():016x}-{secrets.token_hex(4)}"
        fd = os.open(self.folder / f".{name}.tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
        _lock(fd)  # before it has its name, or a merge could take it for abandoned
        os.rename(self.folder / f".{name}.tmp", self.folder / f"{name}.rows")
        return fd

    def heal(self) -> None:
        """Writes what is pending and rewrites shards that were found damaged without their damage."""
        self.flush()
        if self._damaged:
            self._merge()

    def close(self) -> None:
        """Writes what is pending and rewrites shards that were found damaged."""
        self.flush()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._writer)
            os.close(self._writer)
            self._writer = None
        if self._damaged:
            self._merge()

    def _merge(self) -> None:
        """Merges small shards where there are many, and rewrites damaged ones without their damage."""
        names = self._shard_names()
        if len(names) <= MANY_SHARDS and not self._damaged:
            return
        try:
            guard = os.open(self.folder / "merge.lock", os.O_CREAT | os.O_RDWR, 0o666)
        except OSError:  # a folder that may only be read
            return
        held = [guard]
        try:
            if not _lock(guard):
                return
            merged: dict[str, memoryview] = {}
            for name in sorted(names, key=lambda name: name not in self._damaged)[:AT_ONCE]:
                with contextlib.suppress(FileNotFoundError):
                    fd = _open_shard(self.folder / name)
                    if fd is None:
                        merged[name] = memoryview(b"")
                        continue
                    held.append(fd)
                    small = len(names) > MANY_SHARDS and os.fstat(fd).st_size < LARGE_SHARD
                    if (small or name in self._damaged) and _lock(fd):
                        merged[name] = _content(fd)
            if len(merged) > 1 or self._damaged & set(merged):
                with atomic_write(self.folder / f"{time.time_ns():016x}-{secrets.token_hex(4)}.rows") as file:
                    for block in self._sound_rows(list(merged.values())):
                        file.writelines(_encode_block(*block))
                for name in merged:
                    with contextlib.suppress(IsADirectoryError):
                        os.unlink(self.folder / name)
                self._damaged -= set(merged)
        except OSError as error:
            warnings.warn(f"feature cache: cannot merge shards in {self.folder} ({error.strerror or error})")
        finally:
            for fd in held:
                os.close(fd)
        self.refresh()

    def _sound_rows(self, shards: list[memoryview]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(keys, rows) of all rows that pass their checksum, each key once, in blocks of MERGE_ROWS."""
        keys, rows, seen = [], [], set()
        for data in shards:
            for block in _read_blocks(data, self.row_bytes)[0]:
                for i, checksum in enumerate(block.sums.tolist()):
                    key = block.keys[i].tobytes()
                    begin = block.start + i * self.row_bytes
                    row = data[begin:begin + self.row_bytes]
                    if key in seen or zlib.crc32(row) != checksum:
                        continue
                    seen.add(key)
                    keys.append(key)
                    rows.append(row)
                    if len(rows) == MERGE_ROWS:
                        yield as_keys(keys), self._as_rows(rows)
                        keys, rows = [], []
        if rows:
            yield as_keys(keys), self._as_rows(rows)

    def _as_rows(self, rows: list[memoryview]) -> np.ndarray:
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, self.row_bytes)
