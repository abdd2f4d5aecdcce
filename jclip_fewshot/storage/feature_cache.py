"""All features that were ever computed, by encoder and content: one row store an encoder, preprocessing and view.

    cache = FeatureCache(".cache")
    store = cache.rows({"encoder": fingerprint, "views": 0}, row_bytes=4 * width)

`files` remembers the content's digest of files that have not changed since, so that finding a row again costs one
`stat`. The folders' names are digests of what their rows are (about.json inside).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from jclip_fewshot.storage.files import DIGEST_BYTES, write_text
from jclip_fewshot.storage.row_store import RowStore, as_keys

RACY_SECONDS = 2.0  # a file changed so lately may change again within one tick of its clock


class FeatureCache:
    """Features by encoder, preprocessing and content, in a folder that many processes may use at once."""

    def __init__(self, folder: str | Path):
        self.folder = Path(os.path.abspath(str(folder)))  # once: the program may change its working folder
        self._stores: dict[str, RowStore] = {}

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {"folder": self.folder}  # a copy opens the shards itself

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])

    def flush(self) -> None:
        """Hands what is pending to the operating system, and heals what was found damaged."""
        for store in self._stores.values():
            store.heal()

    def close(self) -> None:
        """Writes what is pending. The cache may be used again afterwards."""
        for store in self._stores.values():
            store.close()

    def _folders(self) -> list[Path]:
        """Those that caches make, this one or another."""
        try:
            entries = sorted(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path for path in entries if re.fullmatch("[0-9a-f]{16}|files|fits|ranks", path.name)
                and path.is_dir() and not path.is_symlink()]

    def size(self) -> int:
        """Bytes on the disk."""
        files = [file for folder in self._folders() for file in folder.rglob("*")]
        return sum(file.lstat().st_size for file in files if file.is_file())

    def clear(self) -> int:
        """Deletes everything that the cache has ever kept, and nothing else in its folder; returns the bytes."""
        self.close()
        self._stores = {}
        freed = self.size()
        for folder in self._folders():
            shutil.rmtree(str(folder))
        return freed

    def rows(self, about: dict, row_bytes: int) -> RowStore:
        """The store of what `about` describes: encoder fingerprint, preprocessing, views."""
        text = json.dumps(about, sort_keys=True)
        name = blake2b(text.encode(), digest_size=8).hexdigest()
        if name not in self._stores:
            self._stores[name] = RowStore(self.folder / name, row_bytes)
            with contextlib.suppress(OSError):
                if not (self.folder / name / "about.json").exists():
                    write_text(self.folder / name / "about.json", text + "\n")
        return self._stores[name]

    @property
    def _files(self) -> RowStore:
        if "files" not in self._stores:
            self._stores["files"] = RowStore(self.folder / "files", DIGEST_BYTES)
        return self._stores["files"]

    def known_files(self, paths: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recognises files that have not changed since their content was last read, by one `stat` each.

        Returns digests (n, 2) uint64, known (n,) bool, and marks (n, 2) to hand to `remember_files`.
        """
        marks = as_keys(_marks(paths)) if len(paths) else np.zeros((0, 2), "<u8")
        self._files.refresh()
        rows, known = self._files.get(marks)
        return rows.view("<u8").reshape(-1, 2), known, marks

    def remember_files(self, marks: np.ndarray, digests: np.ndarray) -> None:
        """Notes the digests (n, 2) of the files that `known_files` gave these marks (n, 2)."""
        known = marks.any(axis=1)
        rows = np.ascontiguousarray(digests[known]).view(np.uint8).reshape(-1, DIGEST_BYTES)
        self._files.put(marks[known], rows)


def _marks(paths: Sequence) -> list[bytes]:
    """Of each file a mark that changes when its path, size or times do; zeros where no mark can be trusted.

    The change time is part of it because tools that copy over a file like to restore its modification
    time.
    """
    here = os.path.join(os.getcwd(), "")
    unknown = bytes(DIGEST_BYTES)
    lately = time.time_ns() - int(RACY_SECONDS * 1e9)
    marks = []
    for path in paths:
        path = os.fspath(path)
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            marks.append(unknown)
            continue
        if facts.st_ctime_ns > lately or facts.st_mtime_ns > lately:
            marks.append(unknown)
            continue
        whole = path if path[:1] == "/" else here + path
        text = f"{whole}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
        marks.append(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest())
    return marks
