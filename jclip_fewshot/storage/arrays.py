"""Arrays and records on disk: .npz of plain arrays, JSON."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Dict

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write, write_text


def save_arrays(path: Path, arrays: Dict[str, np.ndarray]) -> None:
    """Writes arrays as .npz, the same bytes for the same arrays."""
    with atomic_write(path) as file:
        # np.savez stamps each member with the time; a fixed date keeps runs comparable byte for byte
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(arrays):
                member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as handle:
                    np.lib.format.write_array(handle, np.asanyarray(arrays[name]), allow_pickle=False)


def load_arrays(path: Path) -> Dict[str, np.ndarray]:
    """Reads an .npz of plain arrays.

    Raises:
        UserError: absent, cut short or not an .npz.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz ({error})")


def save_json(path: Path, record: dict) -> None:
    """Writes JSON, whole or not at all; numpy's scalars and arrays as plain numbers."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: object) -> object:
    """numpy's scalars and arrays, and paths, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into a record")
