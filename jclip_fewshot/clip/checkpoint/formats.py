"""The bytes of a checkpoint file as arrays, under the file's names, and what the file says beside them.

All arrays are views of the bytes. outline: the bytes are a map of the file, of which no more is read than is needed.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np

from jclip_fewshot.clip.checkpoint.pickles import BF16, MAX_NAME, Array, Machine, Mapping, Tensor
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import open_zip

MAX_HEADER = 2 << 20  # bytes; a ViT-L's header has 0.1 MB
MAX_PLACES = 200_000  # containers and values that are looked at
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
Found = tuple[dict[str, np.ndarray], dict[str, str]]
_Size = Annotated[int, msgspec.Meta(ge=0)]
_DTYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BF16, "I64": "<i8", "I32": "<i4",
                           "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


def read_safetensors(data: memoryview) -> Found:
    """Of a .safetensors file: 8 bytes, the length N of its header, little-endian; N bytes of JSON; the numbers.

    https://huggingface.co/docs/safetensors; the tensors fill the bytes behind the header without holes.
    """
    length, = struct.unpack_from("<Q", data)
    if not 0 < length <= min(len(data) - 8, MAX_HEADER):
        raise UserError("its header is cut short, or larger than any checkpoint's")
    header = msgspec.json.decode(data[8:8 + length], type=dict[str, msgspec.Raw])
    said = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str] | None)
    body, tensors, filled = data[8 + length:], {}, 0
    for name, raw in header.items():
        entry = msgspec.json.decode(raw, type=_Entry)
        begin, end = entry.data_offsets
        if entry.dtype not in _DTYPES:
            raise UserError(f"{name} is of type {entry.dtype[:20]!r}; convert it to float16 or float32")
        if end > len(body):
            raise UserError(f"it is cut short: {len(body):,} bytes of numbers, {name} ends at {end:,}")
        tensors[name] = np.frombuffer(body[begin:end], _DTYPES[entry.dtype]).reshape(entry.shape)
        filled += end - begin
    if filled != len(body):
        raise UserError(f"its tensors fill {filled:,} of {len(body):,} bytes, with holes, or some of them twice")
    return tensors, said or {}


def read_torch_zip(data: memoryview, file: BinaryIO, outline: bool) -> Found:
    """Of torch.save (since 1.6) and TorchScript archives: a zip of one pickle and a file for each storage, all stored.

    Of a TorchScript archive it is said which activation's module it has.
    """
    with open_zip(file) as archive:
        def stored(name: str) -> memoryview:
            """Torch compresses nothing but code."""
            entry = archive.getinfo(name)
            begin = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
            found = data[begin:begin + entry.file_size]
            if entry.compress_type or len(found) < entry.file_size or not outline and zlib.crc32(found) != entry.CRC:
                raise UserError(f"no torch archive, or damaged: {name} is compressed, cut short or changed")
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


def read_pickle(data: memoryview, outline: bool) -> Found:
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
