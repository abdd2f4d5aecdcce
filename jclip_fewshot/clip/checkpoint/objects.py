"""What stands in a checkpoint, until its numbers are asked for: storages, tensors, arrays, types, namespaces."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
            "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
            "ByteStorage": "u1", "BoolStorage": "?"}


class Unreadable(Exception):
    """What is wrong with a file; whoever reads it adds its name."""


def bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def numbers(data, dtype: str) -> np.ndarray:
    """Bytes as a flat array; dtype as in STORAGES."""
    if dtype == "bf16":
        return bfloat16(np.frombuffer(data, "<u2"))
    return np.frombuffer(data, dtype)


def plain(view: np.ndarray) -> np.ndarray:
    """The view itself where it is aligned and in C order and native byte order, else a copy that is."""
    if view.flags.c_contiguous and view.flags.aligned and view.dtype.isnative:
        return view
    return np.array(view, view.dtype.newbyteorder("="), order="C")


class StorageType:
    """torch.FloatStorage and its like."""

    def __init__(self, name: str):
        self.dtype = STORAGES[name]
        self.itemsize = 2 if self.dtype == "bf16" else np.dtype(self.dtype).itemsize


class Storage:
    """A block of numbers in a torch file; its bytes come later, or never where only the header is read."""

    def __init__(self, kind: StorageType, numel: int):
        self.kind, self.numel = kind, numel
        self.data: Any = None
        self._flat: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.kind.itemsize

    def flat(self) -> np.ndarray:
        """All its numbers, (numel,); one array for all tensors that share it."""
        if self._flat is None:
            if self.data is None or len(self.data) != self.nbytes:
                raise Unreadable("a tensor's numbers are missing from it")
            self._flat = numbers(self.data, self.kind.dtype)
        return self._flat


class Tensor:
    """A strided view of a storage, as `torch._utils._rebuild_tensor_v2` describes it."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride
        if len(size) != len(stride) or len(size) > 8 or min((*size, *stride, offset)) < 0:
            raise Unreadable("a tensor has an impossible shape")
        self.numel = 1
        for n in size:
            self.numel *= n
        last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if self.numel else 0
        if self.numel > storage.numel or (self.numel and last >= storage.numel):
            raise Unreadable("a tensor reaches past its numbers")
        self._array: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """Its numbers, in C order."""
        if self._array is None:
            flat = self.storage.flat()
            strides = [step * flat.itemsize for step in self.stride]
            view = np.lib.stride_tricks.as_strided(flat[self.offset:], self.size, strides, writeable=False) \
                if self.numel else np.zeros(self.size, flat.dtype)
            self._array = plain(view)
        return self._array

    def outline(self) -> np.ndarray:
        """An array of its shape and type that takes no memory."""
        dtype = "<f4" if self.storage.kind.dtype == "bf16" else self.storage.kind.dtype
        return np.broadcast_to(np.zeros((), dtype), self.size)


class Array:
    """A numpy.ndarray of numbers inside a pickle; its bytes are a view of the file."""

    def __init__(self) -> None:
        self._made: tuple | None = None
        self._array: np.ndarray | None = None

    def set(self, shape: Any, dtype: Dtype, fortran: bool, data: Any) -> Array:
        if not isinstance(dtype, Dtype) or not isinstance(data, (bytes, memoryview)):
            raise Unreadable("an array without plain bytes is in it")
        self._made = (whole_numbers(shape), dtype.dtype(), "F" if fortran else "C", data)
        return self

    def array(self) -> np.ndarray:
        """Its numbers, in C order and the machine's byte order."""
        if self._array is None:
            self._array = plain(self.outline())
        return self._array

    def outline(self) -> np.ndarray:
        """A view of the file's bytes."""
        if self._made is None:
            raise Unreadable("an array without numbers is in it")
        shape, dtype, order, data = self._made
        flat = np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)
        size = 1
        for n in shape:
            size *= n
        if len(shape) > 8 or min((*shape, 0)) < 0 or size != flat.size:
            raise Unreadable(f"an array of shape {shape} has {flat.size} numbers")
        return flat.reshape(shape, order=order)


class Dtype:
    """Stands for numpy.dtype; only plain numbers are let through."""

    def __init__(self, code: Any):
        self.code, self.order = code, "<"

    def dtype(self) -> np.dtype:
        if not isinstance(self.code, str) or not re.fullmatch(r"[<>|=]?(f[248]|[iu][1248]|b1)", self.code):
            raise Unreadable(f"an array of type {str(self.code)[:20]!r} is in it, only numbers are read")
        return np.dtype(self.code).newbyteorder(self.order)


class Namespace:
    """An object of a TorchScript archive: its attributes alone."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


def whole_numbers(value: Any) -> tuple[int, ...]:
    """A tuple of sizes.

    Raises:
        Unreadable: anything else.
    """
    if not isinstance(value, tuple) or not all(type(n) is int and -2**62 < n < 2**62 for n in value):
        raise Unreadable("a shape in it is no tuple of whole numbers")
    return value
