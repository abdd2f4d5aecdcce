"""Finished trainings on disk, found again by everything that they depend on: nothing is trained twice."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from jclip_fewshot.storage.files import mark_folder


class FitCache:
    """A folder of small files, one a training. about: a text that says so, kept in the folder."""

    def __init__(self, folder: str | Path, about: str = "") -> None:
        self.folder = Path(folder)
        self._about = about
        self._writable = True

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of a training; None where there are none, or the file is damaged."""
        try:
            arrays = load_arrays(self.folder / f"{key}.npz")
        except UserError:
            return None
        return {name: array for name, array in arrays.items() if not name.startswith("kept/")}  # as once was noted

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a training; where that is not possible, warn once: the training itself goes on."""
        if not self._writable:
            return
        try:
            mark_folder(self.folder, self._about)
            save_arrays(self.folder / f"{key}.npz", arrays)
        except (OSError, UserError) as error:
            self._writable = False
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(f"trainings cannot be kept in {self.folder} ({reason}); going on without")
