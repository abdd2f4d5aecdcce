"""Checkpoint files of every format as tensors, as far as they can be trusted, and as a CLIP that can be computed.

Nothing in a file is ever run. Memory stays below a few times the file, whatever the file declares.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jclip_fewshot.clip.checkpoint.architecture import Architecture, check_state_dict
from jclip_fewshot.clip.checkpoint.files import named, weight_files
from jclip_fewshot.clip.checkpoint.formats import Found, read_pickle, read_safetensors, read_torch_zip
from jclip_fewshot.clip.checkpoint.names import StateDict, openai_names
from jclip_fewshot.clip.checkpoint.origin import origin_of
from jclip_fewshot.clip.checkpoint.pickles import BF16, MAX_NAME
from jclip_fewshot.errors import UserError

BLOCK = 1 << 18  # numbers that are tested for NaN at a time
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Checkpoint(NamedTuple):
    """A CLIP's weights, its sizes and conventions; what its preprocessing is, as open_clip ({"preprocess_cfg": …}) or
    transformers say it, empty for OpenAI's."""

    weights: StateDict
    sizes: Architecture
    preprocessing: dict[str, Any]


def read_clip(path: str | Path, activation: str = "", head_width: int = 0, outline: bool = False,
              openai: bool = False) -> Checkpoint:
    """Return the CLIP in a file, an index of shards, or a folder as the hub and open_clip have it.

    activation, head_width: where nothing in or beside the file says them (origin.py); openai: OpenAI's then.
    outline: look at the headers alone, which is quick; matrices are zeros then.

    Raise UserError as `read_state_dict` does, and if tensors are missing, too many or misshapen, if nothing says how
    they are computed, or if that is not computed here.
    """
    tensors, said = _read_all(path, outline)
    with named(path):
        weights = _weights(tensors, outline)
        how, preprocessing = origin_of(Path(path), tensors, weights, said, activation, head_width, openai)
        return Checkpoint(weights, check_state_dict(weights, how), preprocessing)


def read_state_dict(path: str | Path, outline: bool = False) -> StateDict:
    """Return the weights of a checkpoint under OpenAI's names, in the file's precision, bfloat16 as float32.

    What belongs to no CLIP is dropped: OpenAI's three integers, Hugging Face's position ids, JCLIP's attention masks,
    batch counters, SigLIP's bias of all logits. outline: as for `read_clip`.

    Raise UserError if there is no such file, if it is damaged or of an unknown format, if its pickle names anything but
    tensors and plain containers, or if weights are no finite floating-point numbers.
    """
    tensors = read_tensors(path, outline)
    with named(path):
        return _weights(tensors, outline)


def read_tensors(path: str | Path, outline: bool = False) -> StateDict:
    """Return all tensors of a checkpoint, whole or in shards, under the file's names, of any type.

    outline: as for `read_clip`. Raise UserError as `read_state_dict` does, but for the kind of the numbers.
    """
    return _read_all(path, outline)[0]


def _read_all(path: str | Path, outline: bool) -> Found:
    """The tensors of one file or of several shards, and what the files say beside them."""
    tensors: StateDict = {}
    said: dict[str, str] = {}
    for file in weight_files(path):
        with named(file):
            found, more = _read(file, outline)
            if not tensors.keys().isdisjoint(found):
                raise UserError("it has tensors that another shard has too")
        tensors.update(found)
        said.update(more)
    return tensors, said


def _read(path: Path, outline: bool) -> Found:
    if not path.is_file():
        raise OSError("no regular file" if path.exists() else "no such file")
    with open(path, "rb", buffering=0) as file:  # a buffer would join what comes: a second copy
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if outline else file.readall())
        if data[:4] == b"PK\x03\x04":
            tensors, said = read_torch_zip(data, file, outline)
        elif data[:1] == b"\x80" and path.suffix != ".safetensors":
            tensors, said = read_pickle(data, outline)
        elif data[8:9] == b"{":
            tensors, said = read_safetensors(data)
        else:
            raise UserError(f"no checkpoint that is known here: its first bytes are {bytes(data[:8])!r}")
    if not tensors or not all(0 < len(name) <= MAX_NAME and name.isprintable() for name in tensors):
        raise UserError("it holds no tensors, or one whose name is no name")
    # A file that shows the same numbers many times must not fill memory; a text tower may share a few.
    if sum(array.size for array in tensors.values()) > len(data):
        raise UserError("it shows the same numbers too many times")
    for name, array in tensors.items():
        few = np.zeros((), array.dtype) if outline and array.ndim > 1 else array
        tensors[name] = np.broadcast_to(_plain(few), array.shape)
    return tensors, said


def _plain(array: np.ndarray) -> np.ndarray:
    """Aligned, in C order and the machine's byte order; a view of the file where that has it so."""
    if array.dtype != BF16:
        return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])
    bits = array["bf16"].astype(np.uint32, order="C")
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _weights(tensors: StateDict, outline: bool) -> StateDict:
    weights = openai_names(tensors)
    for name, array in weights.items() if not outline else ():
        if array.dtype.kind != "f":
            raise UserError(f"{name} is of type {array.dtype}; weights are floating-point numbers")
        flat = array.reshape(-1)
        if not all(_finite(flat[start:start + BLOCK]) for start in range(0, flat.size, BLOCK)):
            raise UserError(f"{name} holds NaN or an infinite number; fetch the file again")
    return weights


def _finite(block: np.ndarray) -> bool:
    """Whether all numbers are finite in float32."""
    if block.dtype.itemsize == 2:  # NumPy is slow with float16: all bits of the exponent set is NaN or infinite
        return bool(((block.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool((np.abs(block) <= FLOAT32_MAX).all())
