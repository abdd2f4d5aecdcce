"""Rows on disk, found again by content: nothing is computed twice.

A store is a folder of shards, a shard one file of blocks that are appended and never changed:

    header   magic, number of rows n, bytes a row, CRC-32 of all that stands before the rows
    keys     n x 16 bytes
    sums     n x uint32, the CRC-32 of each row
    rows     n x bytes a row

Every process appends to a shard of its own, whose flock the kernel releases however the process ends. A block that is
not finished (kill -9, full disk) fails its checksum and is cut off; a row that rotted, is zero or not finite counts as
absent. Both are computed again, and of several rows of a key the newest counts.
"""

import contextlib
import mmap
import os
import secrets
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import DIGEST_BYTES, lock, mark_folder

MAGIC = b"JCFROWS1"
HEADER = struct.Struct("<8sIII")  # magic, n, bytes a row, CRC-32
FLUSH_SECONDS = 2.0
MAP_FROM = 4 << 20  # bytes; smaller shards are read, for a mapped one is an open file
# where a row stands: the halves of its key, its CRC-32, its shard, where it begins there
PLACE = np.dtype([("first", "<u8"), ("second", "<u8"), ("sum", "<u4"), ("shard", "<i4"), ("start", "<i8")])


def as_keys(digests: Sequence[bytes]) -> np.ndarray:
    """Return (n, 2) uint64 from n digests of 16 bytes."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def sound(rows: np.ndarray) -> np.ndarray:
    """Return which rows (n, V, ...) are finite and have no view of zeros, (n,) bool; of whole numbers all."""
    if rows.dtype.kind != "f" or not len(rows):
        return np.ones(len(rows), bool)
    views = rows.reshape(*rows.shape[:2], -1)
    return np.isfinite(views).all(axis=(1, 2)) & views.any(axis=2).all(axis=1)


def _encode_block(keys: np.ndarray, rows: np.ndarray) -> bytes:
    flat = rows.reshape(len(rows), -1).view(np.uint8)
    head = np.ascontiguousarray(keys, "<u8").tobytes() + np.array([zlib.crc32(row) for row in flat], "<u4").tobytes()
    checksum = zlib.crc32(struct.pack("<II", *flat.shape) + head)
    return b"".join([HEADER.pack(MAGIC, *flat.shape, checksum), head, flat.data])


def _read_blocks(fd: int, row_bytes: int) -> tuple[memoryview, np.ndarray, int]:
    """A shard's bytes, the rows in its undamaged blocks, (n,) of PLACE, and where these blocks end."""
    length = os.fstat(fd).st_size  # mapped or not, the bytes stay readable after the file is deleted
    data = memoryview(mmap.mmap(fd, length, prot=mmap.PROT_READ) if length >= MAP_FROM else os.pread(fd, length, 0))
    places, at = [np.zeros(0, PLACE)], 0
    while at + HEADER.size <= len(data):
        magic, n, size, checksum = HEADER.unpack_from(data, at)
        head = at + HEADER.size
        start = head + n * (DIGEST_BYTES + 4)
        if magic != MAGIC or size != row_bytes or start + n * size > len(data) \
                or zlib.crc32(data[head:start], zlib.crc32(struct.pack("<II", n, size))) != checksum:
            break
        found = np.zeros(n, PLACE)
        found["first"], found["second"] = np.frombuffer(data, "<u8", 2 * n, head).reshape(n, 2).T
        found["sum"] = np.frombuffer(data, "<u4", n, head + n * DIGEST_BYTES)
        found["start"] = start + size * np.arange(n)
        places.append(found)
        at = start + n * size
    return data, np.concatenate(places), at


class RowStore:
    """Rows of one shape and type, which `about` describes, by 16-byte key, in a folder that processes may share."""

    def __init__(self, folder: str | Path, shape: tuple[int, ...], dtype: npt.DTypeLike, about: str = "") -> None:
        self.folder = Path(folder)
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._bytes = self.dtype.itemsize * int(np.prod(shape))
        self._about = about
        self._writer: int | None = None
        self._writable = True
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._flushed = time.monotonic()
        self.refresh()

    def __len__(self) -> int:
        return len(self._first)

    def refresh(self) -> None:
        """Read the index again, for what any process has written since. Raise UserError if it cannot be read."""
        self._data: list[memoryview] = []
        found = [np.zeros(0, PLACE)]
        try:
            for name in self._shard_names():
                data, places = self._read_shard(name)
                places["shard"] = len(self._data)
                self._data.append(data)
                found.append(places)
        except FileNotFoundError:
            pass  # there is no folder yet, or somebody clears the cache
        except OSError as error:
            raise UserError(f"feature cache: {error.filename}: {error.strerror}; choose another --cache") from None
        index = np.concatenate(found)
        # by the first half of the key; two keys that share it alone, one pair in six billion rows, are recomputed
        self._index = index[np.argsort(index["first"], kind="stable")]
        self._first = np.ascontiguousarray(self._index["first"])

    def _shard_names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if name.endswith(".rows"))  # oldest first

    def _read_shard(self, name: str) -> tuple[memoryview, np.ndarray]:
        """A shard's bytes and rows; what stands behind the sound blocks is cut off, unless its writer is at work."""
        with open(self.folder / name, "rb") as file:
            data, places, end = _read_blocks(file.fileno(), self._bytes)
            if end < len(data) and lock(file.fileno()):  # locked by its writer, it has a block in the making
                data, places, end = _read_blocks(file.fileno(), self._bytes)  # which may have been finished since
                if end < len(data):
                    with contextlib.suppress(OSError):  # a folder that may only be read
                        os.truncate(self.folder / name, end)
                    warnings.warn(f"feature cache: {self.folder / name}: its end is damaged or half-written; that part "
                                  "is dropped and computed again")
        return data, places

    def get(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (n, *shape) of keys (n, 2), zeros where there is none, and which were found, (n,) bool."""
        rows, found = np.zeros((len(keys), *self.shape), self.dtype), np.zeros(len(keys), bool)
        for i, row in self._stored(keys):
            rows[i], found[i] = row, True
        return rows, found

    def mapped(self, keys: np.ndarray) -> list[np.ndarray | None]:
        """Return each row where it lies on the disk, for rows too large to hold at once; None where there is none."""
        rows = dict(self._stored(keys))
        return [rows.get(i) for i in range(len(keys))]

    def _stored(self, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(which key, its newest row) where there is one that passes its checksum."""
        if not len(self):
            return
        places = self._index[np.searchsorted(self._first, keys[:, 0], side="right") - 1]
        there = (places["first"] == keys[:, 0]) & (places["second"] == keys[:, 1])
        for i, (_, _, checksum, shard, start) in zip(np.flatnonzero(there).tolist(), places[there].tolist()):
            data = self._data[shard][start:start + self._bytes]
            if zlib.crc32(data) == checksum:
                row = np.frombuffer(data, self.dtype).reshape(self.shape)
                if sound(row[None])[0]:
                    yield i, row
            else:
                warnings.warn(f"feature cache: a row in {self.folder} fails its checksum; it is computed again")

    def put(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Add the sound ones of rows (n, *shape); they are written with the first put after FLUSH_SECONDS."""
        kept = sound(np.asarray(rows, self.dtype))
        if kept.any():
            self._pending.append((keys[kept], np.array(rows[kept], self.dtype)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system: from here on not even kill -9 loses it."""
        self._flushed = time.monotonic()
        pending, self._pending = self._pending, []
        if not pending or not self._writable:
            return
        keys, rows = map(np.concatenate, zip(*pending))
        try:
            if self._writer is not None and os.fstat(self._writer).st_nlink == 0:  # somebody cleared the cache
                os.close(self._writer)
                self._writer = None
            if self._writer is None:
                self._writer = self._locked_shard()
            view = memoryview(_encode_block(keys, rows))
            while view:
                view = view[os.write(self._writer, view):]
        except OSError as error:
            self._writable = False
            warnings.warn(f"feature cache: cannot write to {self.folder} ({error.strerror}); going on without")

    def _locked_shard(self) -> int:
        """A shard to append to: the newest that nobody writes, else a new one."""
        mark_folder(self.folder, self._about)
        for name in reversed(self._shard_names()):
            with contextlib.suppress(OSError):  # cleared since, or another user's
                fd = os.open(self.folder / name, os.O_RDWR | os.O_APPEND)
                if lock(fd):
                    os.truncate(fd, _read_blocks(fd, self._bytes)[2])
                    return fd
                os.close(fd)
        name = f"{time.time_ns():016x}-{secrets.token_hex(4)}.rows"
        fd = os.open(self.folder / f".{name}.tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
        lock(fd)  # before it has its name, or another process could take it
        os.rename(self.folder / f".{name}.tmp", self.folder / name)
        return fd

    def close(self) -> None:
        """Write what is pending. The store may be used again afterwards."""
        self.flush()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._writer)
            os.close(self._writer)
            self._writer = None
