"""The .safetensors format: a JSON header of names, types, shapes and places, then the numbers.

https://huggingface.co/docs/safetensors: 8 bytes, the header's length N, little-endian; N bytes of JSON; the rest,
which the tensors fill without holes and without sharing.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

from jclip_fewshot.clip.checkpoint.names import StateDict, is_tensor_name
from jclip_fewshot.clip.checkpoint.objects import Unreadable, numbers, plain

MAX_HEADER = 2 << 20  # bytes; a ViT-L's header has 0.1 MB
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bf16", "I64": "<i8", "I32": "<i4", "I16": "<i2",
           "I8": "i1", "U8": "u1", "BOOL": "?"}


def read_safetensors(data: memoryview, outline: bool) -> tuple[StateDict, dict[str, str]]:
    """All tensors of a file's bytes, views where the file has them aligned, bfloat16 as float32; and its metadata.

    outline: arrays of the right shape and type without numbers.
    """
    if len(data) < 8:
        raise Unreadable("it is cut short")
    length = struct.unpack("<Q", data[:8])[0]
    if length > min(len(data) - 8, MAX_HEADER):
        raise Unreadable("its header is cut short, or larger than any checkpoint's")
    header = json.loads(bytes(data[8:8 + length]).decode("utf-8"))
    if not isinstance(header, dict):
        raise Unreadable("its header is no JSON object")
    said = header.pop("__metadata__", None)
    said = {key: text for key, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
    body = data[8 + length:]
    places, arrays = [], {}
    for name, entry in header.items():
        dtype, shape, begin, end = _checked(name, entry)
        if dtype not in _DTYPES:
            raise Unreadable(f"{name} is of type {dtype[:20]!r}; convert it to float16 or float32")
        dtype = _DTYPES[dtype]
        size = math.prod(shape)
        if end - begin != size * (2 if dtype == "bf16" else np.dtype(dtype).itemsize):
            raise Unreadable(f"{name} of shape {tuple(shape)} does not fill its {end - begin} bytes")
        if end > len(body):
            raise Unreadable(f"it is cut short: {len(body):,} bytes of numbers, {name} ends at {end:,}")
        places.append((begin, end))
        if outline:
            arrays[name] = np.broadcast_to(np.zeros((), "<f4" if dtype == "bf16" else dtype), shape)
        else:
            flat = numbers(body[begin:end], dtype) if size else np.zeros(0, "<f4" if dtype == "bf16" else dtype)
            arrays[name] = plain(flat).reshape(shape)
    reached = 0
    for begin, end in sorted(places):
        if begin != reached:
            raise Unreadable("its tensors overlap or leave holes")
        reached = end
    if reached != len(body):
        raise Unreadable(f"it has {len(body) - reached:,} bytes too many")
    return arrays, said


def _checked(name: str, entry: Any) -> tuple:
    """dtype, shape, begin and end of a tensor."""
    if not is_tensor_name(name):
        raise Unreadable("the name of a tensor in it is no name")
    if not isinstance(entry, dict):
        raise Unreadable(f"{name} has no type and shape")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    sizes = [shape, offsets]
    if not isinstance(dtype, str) or not all(
            isinstance(one, list) and all(type(n) is int and 0 <= n < 2**48 for n in one) for one in sizes) \
            or len(offsets) != 2 or len(shape) > 8 or offsets[0] > offsets[1]:
        raise Unreadable(f"{name} has no valid type, shape and place")
    return dtype, shape, offsets[0], offsets[1]
