"""JSON on disk: read as a declared type, written whole or not at all."""

import codecs
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write, named

MAX_BYTES = 64 << 20  # far more than any file of ours has
Kind = TypeVar("Kind")


def read_json(path: str | Path, kind: type[Kind] = dict, remedy: str = "") -> Kind:  # type: ignore[assignment]
    """Return a JSON file's content as `kind`, a type that msgspec knows. Raise UserError if it is absent, not JSON, or
    of another type; remedy: what to do then."""
    path = Path(path)
    with named(path, "JSON"):
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise OSError("no regular file, or more than 64 MB" if path.exists() else "no such file")
        try:
            return msgspec.json.decode(path.read_bytes().removeprefix(codecs.BOM_UTF8), type=kind)
        except msgspec.ValidationError as error:
            raise UserError(f"damaged or of another version: {error}{remedy and '; '}{remedy}") from None


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that a person can read, whole or not at all; NumPy's numbers and arrays as plain ones."""
    text = msgspec.json.format(msgspec.json.encode(content, enc_hook=_plain), indent=2)
    with atomic_write(path) as file:
        file.write(text + b"\n")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else os.fspath(value)
