"""All features that were ever computed, by encoder and content: one row store an encoder, preprocessing and view.

One more store remembers the digests of files' contents, so that finding a row again costs one `stat`. A folder is made
when something is written into it; `clear` knows it by its name, which is the digest of its about.json.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from jclip_fewshot.storage.files import ABOUT, DIGEST_BYTES, content_digest, mark_folder
from jclip_fewshot.storage.row_store import RowStore, as_keys

RACY_SECONDS = 2.0  # a file changed so lately may change again within one tick of its clock


class FeatureCache(AbstractContextManager):
    """Features by encoder, preprocessing and content, in a folder that many processes may use at once."""

    def __init__(self, folder: str | Path):
        self.folder = Path(os.path.abspath(str(folder)))  # once: the program may change its working folder
        self._stores: dict[str, RowStore] = {}

    def __exit__(self, *_) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        return FeatureCache, (self.folder,)  # a copy opens the shards itself

    def flush(self) -> None:
        for store in self._stores.values():
            store.flush()

    def close(self) -> None:
        """Write what is pending. The cache may be used again afterwards."""
        for store in self._stores.values():
            store.close()

    def _own(self) -> list[Path]:
        return [about.parent for about in self.folder.glob("[0-9a-f]" * 16 + f"/{ABOUT}")
                if about.is_file() and not about.parent.is_symlink()
                and about.parent.name == _digest(about.read_bytes().rstrip(b"\n"))]

    def size(self) -> int:
        files = [file for folder in self._own() for file in folder.rglob("*")]
        return sum(file.lstat().st_size for file in files if file.is_file())

    def clear(self) -> int:
        """Delete the folders that the cache has made, and nothing else beside them. Return the bytes."""
        self.close()
        self._stores = {}
        freed = self.size()
        for folder in self._own():
            shutil.rmtree(folder)
        return freed

    def rows(self, about: dict, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> RowStore:
        """Return the store of rows of (V, ...) numbers; about: encoder fingerprint, preprocessing, views."""
        text = json.dumps(about, sort_keys=True)
        if text not in self._stores:
            self._stores[text] = RowStore(self._folder(text), shape, dtype, text)
        return self._stores[text]

    @property
    def fits(self) -> FitCache:
        text = json.dumps({"what": "fits"})
        return FitCache(self._folder(text), text)

    @property
    def _files(self) -> RowStore:
        return self.rows({"what": "files"}, (DIGEST_BYTES // 8,), "<u8")

    def _folder(self, about: str) -> Path:
        return self.folder / _digest(about.encode())

    def known_files(self, paths: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return digests (n, 2) uint64 of files, known (n,) bool where unchanged, marks (n, 2) for `remember_files`."""
        marks = as_keys([_mark(path) for path in paths])
        self._files.refresh()
        return *self._files.get(marks), marks

    def remember_files(self, marks: np.ndarray, digests: np.ndarray) -> None:
        """Note the digests (n, 2) of the files that `known_files` gave these marks (n, 2)."""
        known = marks.any(axis=1)
        self._files.put(marks[known], digests[known])


class FitCache:
    """Finished trainings, one a file, by a name of everything that they depend on: nothing is trained twice."""

    def __init__(self, folder: str | Path, about: str = "") -> None:
        self.folder = Path(folder)
        self._about = about
        self._writable = True

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of a training; None where there are none, or the file is damaged or holds anything else."""
        try:
            arrays = load_arrays(self.folder / f"{key}.npz")
        except UserError:
            return None
        kept, names = arrays.pop("kept/key", None), arrays.pop("kept/names", None)
        whole = kept is not None and names is not None and kept.tolist() == key and names.tolist() == sorted(arrays)
        return arrays if whole else None

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a training; where that is not possible, warn once: the training itself goes on."""
        if not self._writable:
            return
        try:
            mark_folder(self.folder, self._about)
            save_arrays(self.folder / f"{key}.npz", {**arrays, "kept/key": np.array(key),
                                                     "kept/names": np.array(sorted(arrays), str)})
        except (OSError, UserError) as error:
            self._writable = False
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(f"trainings cannot be kept in {self.folder} ({reason}); going on without")


def _digest(about: bytes) -> str:
    return blake2b(about, digest_size=8).hexdigest()


def _mark(path: str | os.PathLike) -> bytes:
    """A mark that changes with a file's path, size or times; zeros where no mark can be trusted."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return bytes(DIGEST_BYTES)
    if max(facts.st_ctime_ns, facts.st_mtime_ns) > time.time_ns() - int(RACY_SECONDS * 1e9):
        return bytes(DIGEST_BYTES)
    # the change time, too: tools that copy over a file like to restore its modification time
    text = f"{os.path.abspath(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
    return content_digest(text.encode("utf-8", "surrogateescape"))
