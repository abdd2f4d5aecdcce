"""JSON on disk: read as a declared type, written whole or not at all."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write

MAX_BYTES = 64 << 20  # far more than any file of ours has
Kind = TypeVar("Kind")


def read_json(path: str | Path, kind: type[Kind] = dict, remedy: str = "") -> Kind:  # type: ignore[assignment]
    """Return a JSON file's content as `kind`, a type that msgspec knows; remedy: what to do about one of another type.

    Raise UserError if it is absent, unreadable, not JSON, or has a key that is missing or of another type.
    """
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            what = "no regular file, or more than 64 MB" if path.exists() else "no such file"
            raise UserError(f"{path}: cannot be read ({what})")
        return msgspec.json.decode(path.read_bytes().removeprefix(codecs.BOM_UTF8), type=kind)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is damaged or of another version: {_said(error)}{remedy and '; '}{remedy}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _said(error: msgspec.ValidationError) -> str:
    """msgspec's message, the key first: "config.shots: expected `int`, got `str`"."""
    what, _, where = str(error).partition(" - at `")
    where = where.rstrip("`").removeprefix("$").lstrip(".")
    return f"{where}: {what[:1].lower()}{what[1:]}" if where else what


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that a person can read, whole or not at all; NumPy's numbers and arrays as plain ones."""
    text = msgspec.json.format(msgspec.json.encode(content, enc_hook=_plain), indent=2)
    with atomic_write(path) as file:
        file.write(text + b"\n")


def _plain(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
