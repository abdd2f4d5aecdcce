"""Arrays on disk: .npz, read by NumPy against a schema, once what it says of sizes is compared with the file's."""

import math
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write, named

MAX_DIRECTORY = 2 << 20  # bytes of a zip's table of contents
EXPANSION, SPARE = 20, 16 << 20  # compressed arrays may take this many times the file, plus these bytes
KINDS = {"float": ("f", "floating-point numbers"), "whole": ("iu", "whole numbers"), "text": ("US", "texts"),
         "flag": ("b", "booleans"), "any": ("fiuUSb", "plain numbers or texts")}


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
    below: float | str | None = None
    rows: bool = False
    needed: bool = True


Schema = Mapping[str, Field]
ANY: Schema = {}


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as .npz, the same bytes for the same arrays. Raise UserError if one is of Python objects."""
    # np.savez stamps each member with the time; a fixed date keeps runs comparable byte for byte
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in sorted(arrays.items()):
            if np.asanyarray(array).dtype.hasobject:
                raise UserError(f"{path}: {name} holds Python objects; only numbers and texts can be saved")
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as handle:
                npy.write_array(handle, np.asanyarray(array), allow_pickle=False)


def load_arrays(path: Path, schema: Schema = ANY, others: Field | None = Field("any"),
                said: str = "") -> dict[str, np.ndarray]:
    """Return the plain arrays of an .npz, each checked; floats are finite, texts are str.

    schema: what the arrays must be, by name. others: what those that it does not name must be; None leaves them unread.
    Raise UserError if it is absent, cut short or no .npz, or an array is missing or not as the schema has it.
    """
    with named(said or path, ".npz"):
        if not path.is_file():
            raise UserError("no regular file" if path.exists() else "no such file; it is missing")
        with open(path, "rb") as file:
            return _read(file, path.stat().st_size, schema, others)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Return a zip archive of stored or deflated members: other kinds may grow without bound while they are read.

    Raise ValueError if it is of another kind or its table of contents is huge; zipfile.BadZipFile if it is no zip.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY:  # type: ignore[attr-defined]
        raise ValueError("its table of contents is too large")
    archive = zipfile.ZipFile(file)
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise ValueError("its compression is neither deflate nor none")
    return archive


def _read(file: BinaryIO, size: int, schema: Schema, others: Field | None) -> dict[str, np.ndarray]:
    if file.read(6) == npy.MAGIC_PREFIX:
        raise UserError("cannot be read as .npz: it is an .npy, one array without a name; np.savez writes an .npz")
    with open_zip(file) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        there = {entry.filename[:-4]: entry for entry in entries}
        if len(there) < len(entries):
            raise UserError("cannot be read as .npz: a name is in it twice")
        needed = [name for name, field in schema.items() if field.needed]
        missing = [name for name in needed if name not in there]
        if missing:
            raise UserError(f"has no array {', '.join(map(repr, missing))}; it needs {', '.join(needed)}")
        fields = {name: schema[name] for name in schema if name in there}  # the schema's order names the sizes
        if others is not None:
            fields.update({name: others for name in there if name not in schema})
        if sum(there[name].file_size for name in fields) > EXPANSION * size + SPARE:
            raise UserError("holds arrays that are far larger than the file")
        arrays: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}
        for name, field in fields.items():
            arrays[name] = _array(archive, there[name], name[:80])
            _check_form(name[:80], arrays[name], field, sizes)
    return {name: _checked(name[:80], array, fields[name], sizes) for name, array in arrays.items()}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> np.ndarray:
    """The whole array, in C order and the machine's byte order."""
    with archive.open(entry) as handle:
        read_header = npy.read_array_header_1_0 if npy.read_magic(handle) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(handle)
        if dtype.hasobject:
            raise UserError(f"{name} is of Python objects: .astype(str) before saving")
        if handle.tell() + math.prod(shape) * max(1, dtype.itemsize) != entry.file_size:
            raise UserError(f"{name} has fewer or more numbers than it declares")
    with archive.open(entry) as handle:
        array = npy.read_array(handle, allow_pickle=False)
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])


def _check_form(name: str, array: np.ndarray, field: Field, sizes: dict[str, int]) -> None:
    """Type and axes as the schema has them; `sizes` gathers what the letters stand for."""
    (kinds, what), axes = KINDS[field.kind], (field.axes or "").split()
    known = [str(sizes.get(axis, axis)) for axis in axes]
    fits = array.dtype.kind in kinds and (field.axes is None or len(axes) == array.ndim)
    for axis, n in zip(axes, array.shape):
        fits = fits and n == (int(axis) if axis.isdigit() else sizes.setdefault(axis, n))
    if not fits:
        shape = "" if field.axes is None else f" of shape ({', '.join(known)})"
        raise UserError(f"{name} is {str(array.dtype)[:40]} of shape {array.shape}; {what}{shape} are needed")


def _checked(name: str, array: np.ndarray, field: Field, sizes: dict[str, int]) -> np.ndarray:
    """An array whose numbers are in bounds, or whose texts, as str, are fit for printing and for paths."""
    if array.dtype.kind in "US":
        try:
            if array.dtype.kind == "S":
                array = np.char.decode(array, "utf-8") if array.size else array.astype(str)
            if array.itemsize and (array.reshape(-1).view(np.uint32) > sys.maxunicode).any():
                raise ValueError  # Python makes a text of some, and fails when that is used
            if b"\0" in "".join(array.reshape(-1).tolist()).encode("utf-8"):
                raise UserError(f"{name} holds a text with NUL in it")
        except (ValueError, SystemError):  # half a surrogate pair, or beyond Unicode
            raise UserError(f"{name} holds a text that is no Unicode") from None
        return array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{name} is not finite at {tuple(np.argwhere(~np.isfinite(array))[0].tolist())}")
    if field.rows and array.size:  # (N, D) that can be made unit rows in float32
        norms = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
        broken = np.flatnonzero(~((norms > 1e-15) & (norms < 1e15)))
        if len(broken):
            raise UserError(f"row {broken[0]} of {name} is zero or not a feature ({len(broken)} such rows)")
    below = sizes.get(field.below, 0) if isinstance(field.below, str) else field.below
    if array.size and field.low is not None and array.min() < field.low:
        raise UserError(f"{name} holds {array.min()}; numbers from {field.low} up are needed")
    if array.size and below is not None and array.max() >= below:
        raise UserError(f"{name} holds {array.max()}; numbers below {below} are needed")
    return array
