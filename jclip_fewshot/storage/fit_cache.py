"""Finished trainings on disk, found again by everything that they depend on: nothing is trained twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import load_arrays, save_arrays


class FitCache:
    """A folder of small files, one a training."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of a training, or None; a damaged file counts as none."""
        try:
            return load_arrays(self._file(key))
        except UserError:
            return None

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keeps the arrays of a training."""
        save_arrays(self._file(key), arrays)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
