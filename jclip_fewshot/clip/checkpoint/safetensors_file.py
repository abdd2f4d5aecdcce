"""The .safetensors format: a JSON header of names, types, shapes and places, then the numbers.

https://huggingface.co/docs/safetensors: 8 bytes, the header's length N, little-endian; N bytes of JSON; the rest,
which the tensors fill without holes and without sharing.
"""

from __future__ import annotations

import math
import struct

import msgspec

from jclip_fewshot.clip.checkpoint.tensors import BF16, Storage, Tensor, Unreadable

MAX_HEADER = 2 << 20  # bytes; a ViT-L's header has 0.1 MB
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BF16, "I64": "<i8", "I32": "<i4", "I16": "<i2",
           "I8": "i1", "U8": "u1", "BOOL": "?"}


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_safetensors(data: memoryview) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file's bytes, and its metadata."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= min(len(data) - 8, MAX_HEADER):
        raise Unreadable("its header is cut short, or larger than any checkpoint's")
    header = msgspec.json.decode(data[8:8 + length], type=dict[str, msgspec.Raw])
    said = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str] | None)
    body, reached, tensors = data[8 + length:], 0, {}
    entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    for name, entry in sorted(entries.items(), key=lambda one: one[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in _DTYPES:
            raise Unreadable(f"{name} is of type {entry.dtype[:20]!r}; convert it to float16 or float32")
        storage = Storage(_DTYPES[entry.dtype], math.prod(entry.shape), body[begin:end])
        if begin != reached:
            raise Unreadable("its tensors overlap or leave holes")
        if end > len(body):
            raise Unreadable(f"it is cut short: {len(body):,} bytes of numbers, {name} ends at {end:,}")
        if end - begin != storage.nbytes:
            raise Unreadable(f"{name} of shape {entry.shape} does not fill its {end - begin} bytes")
        tensors[name], reached = Tensor().set(storage, entry.shape), end
    if reached != len(body):
        raise Unreadable(f"it has {len(body) - reached:,} bytes too many")
    return {name: tensors[name] for name in entries}, said or {}
