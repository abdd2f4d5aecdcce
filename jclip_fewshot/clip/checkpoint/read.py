"""Checkpoint files of every format as tensors, as far as they can be trusted, and as a CLIP that can be computed.

Nothing in a file is ever run. Memory stays below a few times the file, whatever the file declares.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from jclip_fewshot.clip.checkpoint.architecture import Architecture, check_state_dict
from jclip_fewshot.clip.checkpoint.files import weight_files
from jclip_fewshot.clip.checkpoint.names import StateDict, openai_names
from jclip_fewshot.clip.checkpoint.origin import origin_of
from jclip_fewshot.clip.checkpoint.safetensors_file import read_safetensors
from jclip_fewshot.clip.checkpoint.tensors import Tensor, Unreadable
from jclip_fewshot.clip.checkpoint.torch_files import read_pickle, read_torch_zip
from jclip_fewshot.errors import UserError

BLOCK = 1 << 18  # numbers that are tested for NaN at a time
FLOAT32_MAX = float(np.finfo(np.float32).max)
_DAMAGED = (ValueError, KeyError, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error,
            zipfile.BadZipFile, msgspec.MsgspecError)


class Checkpoint(NamedTuple):
    """A CLIP's weights, as `read_state_dict` has them; its sizes and the conventions by which it is computed; what its
    preprocessing is, as open_clip ({"preprocess_cfg": …}) or transformers say it, empty for OpenAI's."""

    weights: StateDict
    sizes: Architecture
    preprocessing: dict[str, Any]


def read_clip(path: str | Path, activation: str = "", head_width: int = 0, outline: bool = False,
              openai: bool = False) -> Checkpoint:
    """Return the CLIP in a file, an index of shards, or a folder as the hub and open_clip have it.

    activation, head_width: where nothing in or beside the file says them (origin.py); openai: OpenAI's then.
    outline: look at the headers alone, which notices a file that is cut short; arrays have no numbers.

    Raise UserError as `read_state_dict` does, and if tensors are missing, too many or misshapen, if nothing says how
    they are computed, or if that is not computed here.
    """
    tensors, said = _read_all(path, outline)
    weights = openai_names(tensors, path)
    origin = origin_of(Path(path), tensors, weights, said, activation, head_width, openai)
    if not outline:
        _require_finite(weights, path)
    try:
        return Checkpoint(weights, check_state_dict(weights, origin.conventions), origin.preprocessing)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None


def read_state_dict(path: str | Path) -> StateDict:
    """Return the weights of a checkpoint under OpenAI's names, in the file's precision, bfloat16 as float32.

    What belongs to no CLIP is dropped: OpenAI's three integers, Hugging Face's position ids, JCLIP's attention masks,
    batch counters, SigLIP's bias of all logits.

    Raise UserError if there is no such file, if it is damaged or of an unknown format, if its pickle names anything but
    tensors and plain containers, or if weights are no finite floating-point numbers.
    """
    weights = openai_names(read_tensors(path), path)
    _require_finite(weights, path)
    return weights


def read_tensors(path: str | Path, outline: bool = False) -> StateDict:
    """Return all tensors of a checkpoint, whole or in shards, under the file's names, of any type.

    outline: look at the headers alone and compare sizes; the arrays have shape and type, but no numbers.
    Raise UserError as `read_state_dict` does, but for the kind of the numbers.
    """
    return _read_all(path, outline)[0]


def inspect(path: str | Path, activation: str = "", head_width: int = 0) -> Architecture:
    """Return the sizes and conventions of a CLIP in a file, from its headers: quick.

    Raise UserError as `read_clip` does, damaged numbers aside.
    """
    return read_clip(path, activation, head_width, outline=True).sizes


def _read_all(path: str | Path, outline: bool) -> tuple[StateDict, dict[str, str]]:
    """The tensors of one file or of several shards, and what the files say beside them."""
    tensors: StateDict = {}
    said: dict[str, str] = {}
    for file in weight_files(path):
        found, more = _read(file, outline)
        if not tensors.keys().isdisjoint(found):
            raise UserError(f"{file}: has tensors that another shard has too")
        tensors.update(found)
        said.update(more)
    return tensors, said


def _read(path: Path, outline: bool) -> tuple[StateDict, dict[str, str]]:
    try:
        if not path.is_file():
            raise UserError(f"cannot read {path}: {'no regular file' if path.exists() else 'no such file'}")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            tensors, said = _tensors(file, size, path.suffix, outline)
            shapes = {name: tensor.outline() for name, tensor in tensors.items()}
            if not all(0 < len(name) <= 300 and name.isprintable() for name in tensors):
                raise Unreadable("the name of a tensor in it is no name")
            # A file that shows the same numbers many times must not fill memory; a text tower may share a few.
            if sum(array.size for array in shapes.values()) > size:
                raise Unreadable("it shows the same numbers too many times")
            found = shapes if outline else {name: tensor.array for name, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Unreadable as error:
        raise UserError(f"{path}: {_printable(str(error))}") from None
    except RecursionError:
        raise UserError(f"{path}: its header has lists inside lists too deep") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged or of an unknown format: "
                        f"{_printable(f'{type(error).__name__}: {error}')}") from None
    if not found:
        raise UserError(f"{path} holds no tensors")
    return found, said


def _tensors(file: Any, size: int, suffix: str, outline: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return read_torch_zip(file, size, outline)
    pickled = head.startswith(b"\x80") and suffix != ".safetensors"
    if not pickled and suffix != ".safetensors" and head[8:9] != b"{":
        raise Unreadable(f"no checkpoint that is known here: its first bytes are {head[:8]!r}")
    if outline and size:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    else:
        file.raw.seek(0)
        data = memoryview(file.raw.readall())  # file.read() would join this with its buffer: a second copy
    return read_pickle(data, outline) if pickled else read_safetensors(data)


def _printable(said: str) -> str:
    """One line without what a terminal would take for an order."""
    return ascii(" ".join(said.split()))[1:-1][:400]


def _require_finite(weights: StateDict, path: str | Path) -> None:
    for name, array in weights.items():
        if array.dtype.kind != "f":
            raise UserError(f"{path}: {name} is of type {array.dtype}; weights are floating-point numbers")
        flat = array.reshape(-1)
        if not all(_finite(flat[start:start + BLOCK]) for start in range(0, flat.size, BLOCK)):
            raise UserError(f"{path}: {name} holds NaN or an infinite number; fetch the file again")


def _finite(block: np.ndarray) -> bool:
    """Whether all numbers are finite in float32."""
    if block.dtype.itemsize == 2:  # NumPy is slow with float16: all bits of the exponent set is NaN or infinite
        return bool(((block.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool((np.abs(block) <= FLOAT32_MAX).all())
