"""Finished trainings on disk, found again by everything that they depend on: nothing is trained twice."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from jclip_fewshot.storage.files import mark_folder

MARK = "kept/"  # of the entries that say which training a file holds, and which arrays


class FitCache:
    """A folder of small files, one a training. about: a text that says so, kept in the folder."""

    def __init__(self, folder: str | Path, about: str = "") -> None:
        self.folder = Path(folder)
        self._about = about
        self._writable = True

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of a training; None where there are none, or the file is damaged or holds anything else."""
        try:
            arrays = load_arrays(self._file(key))
        except UserError:
            return None
        kept, names = arrays.pop(f"{MARK}key", None), arrays.pop(f"{MARK}names", None)
        whole = kept is not None and names is not None and kept.tolist() == key and names.tolist() == sorted(arrays)
        return arrays if whole else None

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a training; where that is not possible, warn once: the training itself goes on."""
        if not self._writable:
            return
        try:
            mark_folder(self.folder, self._about)
            save_arrays(self._file(key), {**arrays, f"{MARK}key": np.array(key),
                                          f"{MARK}names": np.array(sorted(arrays), str)})
        except (OSError, UserError) as error:
            self._writable = False
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(f"trainings cannot be kept in {self.folder} ({reason}); going on without")

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
