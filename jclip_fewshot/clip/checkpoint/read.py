"""Checkpoint files of every format as tensors, as far as they can be trusted.

Nothing in a file is ever run. Memory stays below four times the file, whatever the file declares.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from jclip_fewshot.clip.checkpoint.architecture import Architecture, check_state_dict
from jclip_fewshot.clip.checkpoint.names import StateDict, openai_names
from jclip_fewshot.clip.checkpoint.objects import Unreadable
from jclip_fewshot.clip.checkpoint.safetensors_file import read_safetensors
from jclip_fewshot.clip.checkpoint.torch_files import read_pickle, read_torch_zip
from jclip_fewshot.errors import UserError

BLOCK = 1 << 18  # numbers that are tested for NaN at a time
FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_state_dict(path: str | Path) -> StateDict:
    """The weights of a checkpoint under OpenAI's names, as NumPy arrays in the file's precision.

    bfloat16 comes as float32. What belongs to no CLIP is dropped: OpenAI's three integers, Hugging
    Face's position ids, JCLIP's attention masks, batch counters.

    Raises:
        UserError: no such file, a damaged one, an unknown format, a pickle that names anything but
            tensors and plain containers, weights that are no floating-point numbers, NaN or infinite.
    """
    tensors = openai_names(read_tensors(path), path)
    for name, array in tensors.items():
        if array.dtype.kind != "f":
            raise UserError(f"{path}: {name} is of type {array.dtype}; weights are floating-point numbers")
        if not _all_finite(array):
            raise UserError(f"{path}: {name} holds NaN or an infinite number; fetch the file again")
    return tensors


def read_tensors(path: str | Path, outline: bool = False) -> StateDict:
    """All tensors of a checkpoint under the file's names, of any type.

    outline: look at the headers alone and compare sizes; the arrays have shape and type, but no numbers.

    Raises:
        UserError: as `read_state_dict`, but for the kind of the numbers.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"cannot read {path}: {'no regular file' if path.exists() else 'no such file'}")
        with open(path, "rb") as file:
            tensors = _tensors(file, os.fstat(file.fileno()).st_size, path.suffix, outline)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: its header has lists inside lists too deep") from None
    except (ValueError, KeyError, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error,
            zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or of an unknown format: {_one_line(error)}") from None
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors


def inspect(path: str | Path) -> Architecture:
    """The sizes of a CLIP in a file, from its headers: quick, and notices a file that is cut short.

    Raises:
        UserError: what `read_state_dict` and `check_state_dict` raise, damaged numbers aside.
    """
    tensors = openai_names(read_tensors(path, outline=True), path)
    return check_state_dict(tensors)


def _tensors(file, size: int, suffix: str, outline: bool) -> StateDict:
    head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return read_torch_zip(file, size, outline)
    pickled = head.startswith(b"\x80") and suffix != ".safetensors"
    if not pickled and suffix != ".safetensors" and head[8:9] != b"{":
        raise Unreadable(f"no checkpoint that is known here: its first bytes are {head[:8]!r}")
    file.seek(0)
    if outline and size:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found = read_pickle(data, outline) if pickled else read_safetensors(data, outline)
        return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in found.items()}
    file.raw.seek(0)
    data = memoryview(file.raw.readall())  # file.read() would join this with its buffer: a second copy
    return read_pickle(data, outline) if pickled else read_safetensors(data, outline)


def _one_line(error: Exception) -> str:
    said = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode()
    return " ".join(said.split())[:200]


def _all_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite in float32."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = flat[start:start + BLOCK]
        if block.dtype.itemsize == 2:  # NumPy is slow with float16: all bits of the exponent set is NaN or infinite
            finite = ((block.view(np.uint16) & 0x7C00) != 0x7C00).all()
        elif block.dtype.itemsize == 4:
            finite = np.isfinite(block).all()
        else:
            finite = (np.abs(block) <= FLOAT32_MAX).all()
        if not finite:
            return False
    return True
