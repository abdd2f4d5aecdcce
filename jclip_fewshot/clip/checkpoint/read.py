"""Checkpoint files of every format as tensors, as far as they can be trusted, and as a CLIP that can be computed.

Nothing in a file is ever run, and whatever it declares, memory stays below a few times its size. Arrays are views of
the file's bytes; with `outline` these are a map of the file, of which no more is read than is needed.
"""

import hashlib
import mmap
import re
import struct
import zlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from jclip_fewshot.clip.checkpoint.architecture import Architecture, check_state_dict
from jclip_fewshot.clip.checkpoint.files import weight_files
from jclip_fewshot.clip.checkpoint.names import StateDict, openai_names
from jclip_fewshot.clip.checkpoint.origin import origin_of
from jclip_fewshot.clip.checkpoint.pickles import BF16, MAX_NAME, Array, Machine, Mapping, Tensor
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import open_zip
from jclip_fewshot.storage.files import named

FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_HEADER = 2 << 20  # bytes; a ViT-L's header has 0.1 MB
MAX_PLACES = 200_000  # containers and values that are looked at
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
Found = tuple[StateDict, dict[str, str]]  # the tensors, and what the file says beside them
_Size = Annotated[int, msgspec.Meta(ge=0)]
_DTYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BF16, "I64": "<i8", "I32": "<i4",
                           "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


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
    Raise UserError as `read_state_dict` does, and if this is no whole CLIP, or it is not known how to compute it.
    """
    tensors, said = _read_all(path, outline)
    with named(path):
        weights = _weights(tensors, outline)
        how, preprocessing = origin_of(Path(path), tensors, weights, said, activation, head_width, openai)
        return Checkpoint(weights, check_state_dict(weights, how), preprocessing)


def read_state_dict(path: str | Path, outline: bool = False) -> StateDict:
    """Return the weights of a checkpoint under OpenAI's names, in the file's precision, bfloat16 as float32.

    What is no weight of a CLIP is dropped. outline: as for `read_clip`.
    Raise UserError if the file is absent, damaged, unknown or wants to run code, or if weights are not finite.
    """
    tensors = read_tensors(path, outline)
    with named(path):
        return _weights(tensors, outline)


def read_tensors(path: str | Path, outline: bool = False) -> StateDict:
    """Return all tensors of a checkpoint, whole or in shards, under the file's names, of any type. outline: as for
    `read_clip`. Raise UserError as `read_state_dict` does, but for the kind of the numbers."""
    return _read_all(path, outline)[0]


def _read_all(path: str | Path, outline: bool) -> Found:
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
            tensors, said = _torch_zip(data, file, outline)
        elif data[:1] == b"\x80" and path.suffix != ".safetensors":
            tensors, said = _pickle(data, outline)
        elif data[8:9] == b"{":
            tensors, said = _safetensors(data)
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
        if not _finite(array):
            raise UserError(f"{name} holds NaN or an infinite number; fetch the file again")
    return weights


def _finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite in float32."""
    if array.dtype.itemsize == 2:  # NumPy is slow with float16: all bits of the exponent set is NaN or infinite
        return bool(((array.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool((np.abs(array) <= FLOAT32_MAX).all())


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


def _safetensors(data: memoryview) -> Found:
    """Of a .safetensors file (https://huggingface.co/docs/safetensors): 8 bytes, the length N of its header,
    little-endian; N bytes of JSON; the numbers, without holes."""
    length, = struct.unpack_from("<Q", data)
    if not 0 < length <= min(len(data) - 8, MAX_HEADER):
        raise UserError("its header is cut short, or larger than any checkpoint's")
    header = msgspec.json.decode(data[8:8 + length], type=dict[str, msgspec.Raw])
    said = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str] | None)
    entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    body, tensors = data[8 + length:], {}
    filled = sum(end - begin for begin, end in (entry.data_offsets for entry in entries.values()))
    if filled != len(body):
        raise UserError(f"it is cut short or damaged: its tensors fill {filled:,} bytes, it has {len(body):,} for them")
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise UserError(f"{name[:80]} is of type {entry.dtype[:20]!r}; convert it to float16 or float32")
        tensors[name] = np.frombuffer(body[slice(*entry.data_offsets)], _DTYPES[entry.dtype]).reshape(entry.shape)
    return tensors, said or {}


def _torch_zip(data: memoryview, file: BinaryIO, outline: bool) -> Found:
    """Of torch.save (since 1.6) and TorchScript archives: a zip of one pickle and a file for each storage, all stored;
    of a TorchScript archive also which activation's module it has."""
    with open_zip(file) as archive:
        def stored(name: str) -> memoryview:
            """Torch compresses nothing but code."""
            entry = archive.getinfo(name)
            begin = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
            found = data[begin:begin + entry.file_size]
            if entry.compress_type or len(found) < entry.file_size or not outline and zlib.crc32(found) != entry.CRC:
                raise UserError(f"no torch archive, or damaged: {name[:80]} is compressed, cut short or changed")
            return found

        names = archive.namelist()
        roots = [name[:-len("data.pkl")] for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise UserError("a zip file, but no torch archive: it has no data.pkl")
        root, = roots
        if root + "byteorder" in names and stored(root + "byteorder") == b"big":
            raise UserError("written on a big-endian machine; that is not supported")
        machine = Machine(stored(root + "data.pkl"))
        content = machine.load()
        for key, storage in machine.storages.items():
            storage.data = stored(f"{root}data/{key}")
            if len(storage.data) != storage.nbytes:
                raise UserError(f"damaged: storage {key[:20]} is not {storage.nbytes} bytes long")
    classes = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
    activations = [ours for theirs, ours in classes.items() if theirs in machine.modules]
    return _tensors(content), {"activation": activations[0]} if len(activations) == 1 else {}


def _pickle(data: memoryview, outline: bool) -> Found:
    """Of Jittor's pickles, with or without their check sum, and of torch.save before 1.6."""
    if data[-8:] == b"HCAJSLHD":
        if not outline and hashlib.sha1(data[:-28]).digest() != data[-28:-8]:
            raise UserError("damaged: its SHA-1 is wrong; fetch it again")
        data = data[:-28]
    machine = Machine(data)
    content = machine.load()
    if content == LEGACY_MAGIC:  # then: protocol version; the writing machine's properties; content; keys; storages
        _, _, content, keys = [machine.load() for _ in range(4)]
        if keys != sorted(machine.storages):
            raise UserError("damaged: its list of storages is not that of its tensors")
        for storage in map(machine.storages.__getitem__, keys):
            if machine.number() * storage.dtype.itemsize != storage.nbytes:
                raise UserError("damaged: a storage has another size than its tensors need")
            storage.data = machine.file.read(storage.nbytes)
    return _tensors(content), {}


def _tensors(content: Any) -> dict[str, np.ndarray]:
    """Tensors of nested dictionaries, dotted names joined."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # a training run's checkpoint
    found, places = {}, [("", content)]
    for name, value in places:
        if isinstance(value, (Array, Tensor)):
            found[name] = value.array
        elif isinstance(value, Mapping) and len(name) < MAX_NAME:
            if len(places) + len(value) > MAX_PLACES:
                raise UserError("it contains itself, or more than any checkpoint")
            places += [(f"{name}.{key}" if name else str(key), child) for key, child in value.items()]
    return found
