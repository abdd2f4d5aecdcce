"""Arrays on disk: .npz of plain arrays, read against a schema.

A file that comes from outside may declare anything. Every array's header is read and compared with the schema and
with the bytes that are there before memory is taken for it.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3, in a zip.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write

MAX_DIRECTORY = 2 << 20  # bytes of a zip's table of contents
MAX_MEMBERS = 10_000
MAX_AXES = 8
EXPANSION, SPARE = 20, 16 << 20  # compressed arrays may take this many times the file, plus these bytes

KINDS = {"float": "f", "whole": "iu", "text": "US", "flag": "b", "any": "fiuUSb"}
_WORDS = {"float": "floating-point numbers", "whole": "whole numbers", "text": "texts", "flag": "booleans",
          "any": "plain numbers or texts"}
_HEADER_ITEM = re.compile(r"""\s*(['"])(descr|fortran_order|shape)\1\s*:\s*"""
                          r"""(?:(['"])([^'"]*)\3|(True|False)|\(([\d\s,L]*)\))\s*(?:,|$)\s*""")
_DTYPE = re.compile(r"[<>=|]?(?:f[248]|[iu][1248]|b1|\?|[US](\d{1,7}))")


@dataclass(frozen=True)
class Field:
    """What an array must be.

    kind: a key of KINDS. axes: a letter or number an axis, "N D"; arrays that share a letter share the size; None
    takes any. low, below: bounds of every number, `below` a number or a letter. rows: feature rows, neither zero nor
    beyond float32. needed: the file must have it.
    """

    kind: str
    axes: str | None = None
    low: float | None = None
    below: object | None = None
    rows: bool = False
    needed: bool = True


Schema = Mapping[str, Field]
ANY: Schema = {}


class _Header(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Wrong(Exception):
    """What is wrong with an array or a file; whoever reads it adds the file's name."""


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as .npz, the same bytes for the same arrays.

    Raises:
        UserError: an array of Python objects; nothing is written then.
    """
    for name, value in arrays.items():
        if np.asanyarray(value).dtype.hasobject:
            raise UserError(f"{path}: {name} holds Python objects; only numbers and texts can be saved")
    with atomic_write(path) as file:
        # np.savez stamps each member with the time; a fixed date keeps runs comparable byte for byte
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(arrays):
                member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as handle:
                    np.lib.format.write_array(handle, np.asanyarray(arrays[name]), allow_pickle=False)


def load_arrays(path: Path, schema: Schema = ANY, others: Field | None = Field("any"),
                said: str = "") -> dict[str, np.ndarray]:
    """Reads an .npz of plain arrays, each checked; floats are finite, texts are str.

    schema: what the arrays must be, by name. others: what arrays that it does not name must be; None leaves them
    unread. said: what messages call the file; its path by default.

    Raises:
        UserError: absent, cut short or not an .npz, an array missing or not as the schema has it.
    """
    path, said = Path(path), said or str(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{said}: no regular file")
        with open(path, "rb") as file:
            return _read(file, path.stat().st_size, schema, others)
    except FileNotFoundError:
        raise UserError(f"{said}: no such file; it is missing") from None
    except _Wrong as error:
        raise UserError(f"{said}: {error}") from None
    except OSError as error:
        raise UserError(f"{said}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, KeyError, OverflowError, NotImplementedError, RuntimeError, struct.error, zlib.error,
            zipfile.BadZipFile, MemoryError) as error:
        reason = str(error).encode("ascii", "backslashreplace").decode()
        raise UserError(f"{said}: cannot be read as .npz ({' '.join(reason.split())[:150]})") from None


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """A zip archive whose table of contents has a sane size; Python would hold some ten times that.

    Raises:
        ValueError: it has not. zipfile.BadZipFile: no zip archive.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY:  # type: ignore[attr-defined]
        raise ValueError("its table of contents is too large")
    return zipfile.ZipFile(file)


def _read(file: BinaryIO, size: int, schema: Schema, others: Field | None) -> dict[str, np.ndarray]:
    if file.read(6) == b"\x93NUMPY":
        raise _Wrong("cannot be read as .npz: it is an .npy, one array without a name; np.savez writes an .npz")
    with open_zip(file) as archive:
        entries = archive.infolist()
        names = [entry.filename[:-4] if entry.filename.endswith(".npy") else "" for entry in entries]
        if len(entries) > MAX_MEMBERS or len(set(names)) < len(names):
            raise _Wrong("cannot be read as .npz: a name is in it twice, or it has far too many")
        there = {name: entry for name, entry in zip(names, entries) if name}
        wanted = {name: there[name] for name in schema if name in there}  # the schema's order names the sizes
        if others is not None:
            wanted.update(there)
        missing = [name for name, field in schema.items() if field.needed and name not in wanted]
        if missing:
            raise _Wrong(f"has no array {', '.join(map(repr, missing))}; it needs "
                         f"{', '.join(name for name, field in schema.items() if field.needed)}")
        sizes: dict[str, int] = {}
        headers = {}
        for name, entry in wanted.items():
            with archive.open(entry) as handle:
                headers[name] = _header(handle, _shown(name))
            field = schema.get(name, others)
            _check_header(_shown(name), headers[name], field, sizes)
        if sum(header.nbytes for header in headers.values()) > EXPANSION * size + SPARE:
            raise _Wrong("declares arrays that are far larger than the file")
        arrays = {}
        for name, entry in wanted.items():
            array = _array(archive, entry, headers[name], _shown(name))
            arrays[name] = _checked(_shown(name), array, schema.get(name, others), sizes)
        return arrays


def _header(handle: BinaryIO, name: str) -> _Header:
    """The type and shape that an .npy declares; `handle` stands at its numbers then."""
    start = handle.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise _Wrong(f"{name} is no .npy")
    length = struct.unpack("<H", handle.read(2))[0] if start[6] == 1 else struct.unpack("<I", handle.read(4))[0]
    if length > 10_000:
        raise _Wrong(f"{name} has a header of {length:,} bytes")
    text = handle.read(length).decode("latin1").strip()
    items: dict[str, str] = {}
    inside, at = text[1:-1], 0
    while at < len(inside):
        match = _HEADER_ITEM.match(inside, at)
        if not match:
            break
        items[match.group(2)] = next(value for value in match.groups()[3:] if value is not None)
        at = match.end()
    if text[:1] + text[-1:] != "{}" or at < len(inside) or set(items) != {"descr", "fortran_order", "shape"}:
        raise _Wrong(f"{name} is no plain array of numbers or texts ({text[:60]!a})")
    code = _DTYPE.fullmatch(items["descr"])
    if code is None:
        hint = "; arrays of Python objects: .astype(str) before saving" if items["descr"].endswith("O") else ""
        raise _Wrong(f"{name} is of type {items['descr'][:20]!a}; only plain numbers and texts are read{hint}")
    sizes = [part.strip().rstrip("L") for part in items["shape"].split(",") if part.strip()]
    if len(sizes) > MAX_AXES or any(not part.isdigit() or len(part) > 15 for part in sizes) \
            or items["fortran_order"] not in ("True", "False"):
        raise _Wrong(f"{name} has an impossible shape ({text[:60]!a})")
    return _Header(np.dtype(items["descr"]), tuple(map(int, sizes)), items["fortran_order"] == "True")


def _check_header(name: str, header: _Header, field: Field, sizes: dict[str, int]) -> None:
    """Type and axes as the schema has them; `sizes` gathers what the letters stand for."""
    axes = None if field.axes is None else field.axes.split()
    known = [str(sizes.get(axis, axis)) for axis in axes or ()]
    wrong = _Wrong(f"{name} is {header.dtype} of shape {header.shape}; {_WORDS[field.kind]}"
                   + (f" of shape ({', '.join(known)})" if axes is not None else "") + " are needed")
    if header.dtype.kind not in KINDS[field.kind]:
        raise wrong
    if axes is not None:
        if len(axes) != len(header.shape):
            raise wrong
        for axis, n in zip(axes, header.shape):
            if n != (int(axis) if axis.isdigit() else sizes.setdefault(axis, n)):
                raise wrong


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, header: _Header, name: str) -> np.ndarray:
    """Its numbers, in C order and the machine's byte order; the zip's CRC-32 is compared."""
    with archive.open(entry) as handle:
        _header(handle, name)
        content = bytearray()
        while len(content) <= header.nbytes:
            block = handle.read(min(1 << 20, header.nbytes + 1 - len(content)))
            if not block:
                break
            content += block
    if len(content) != header.nbytes:
        amount = "more" if len(content) > header.nbytes else "less"
        raise _Wrong(f"{name} declares {header.nbytes:,} bytes and has {amount}")
    flat = np.frombuffer(content, header.dtype) if content else np.zeros(math.prod(header.shape), header.dtype)
    array = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.require(array, header.dtype.newbyteorder("="), ["C", "W"])


def _checked(name: str, array: np.ndarray, field: Field, sizes: dict[str, int]) -> np.ndarray:
    kind = array.dtype.kind
    if kind in "US":
        return _texts(name, array)
    if kind == "f" and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0]) if array.ndim else ()
        raise _Wrong(f"{name} is not finite at {place}")
    if field.rows and array.size:
        _check_rows(name, array)
    below = sizes.get(field.below, 0) if isinstance(field.below, str) else field.below
    if array.size and field.low is not None and array.min() < field.low:
        raise _Wrong(f"{name} holds {array.min()}; numbers from {field.low} up are needed")
    if array.size and below is not None and array.max() >= below:
        raise _Wrong(f"{name} holds {array.max()}; numbers below {below} are needed")
    return array


def _check_rows(name: str, rows: np.ndarray) -> None:
    """Feature rows (N, D) that can be made unit rows in float32."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)) if rows.ndim == 2 else np.zeros(1)
    broken = np.flatnonzero(~((norms > 1e-15) & (norms < 1e15)))
    if len(broken):
        raise _Wrong(f"row {broken[0]} of {name} is zero or not a feature ({len(broken)} such rows)")


def _texts(name: str, array: np.ndarray) -> np.ndarray:
    """Texts as str, fit for printing and for paths."""
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8") if array.size else array.astype(str)
    if array.size and array.dtype.itemsize:
        points = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
        if ((points > 0x10FFFF) | ((points >= 0xD800) & (points <= 0xDFFF))).any():
            raise _Wrong(f"{name} holds a text that is no Unicode")
        inner: list[str] = [text for text in array.reshape(-1).tolist() if "\0" in text]
        if inner:
            raise _Wrong(f"{name} holds a text with NUL in it")
    return array


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= 80 else f"{name[:60]!a}"
