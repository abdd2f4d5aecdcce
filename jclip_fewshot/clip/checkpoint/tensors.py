"""Tensors of a file until their numbers are asked for: what every format of checkpoint is read to."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

BF16 = "bf16"  # the upper half of a float32; NumPy has no such type


class Unreadable(Exception):
    """What is wrong with a file; whoever reads it adds its name."""


class Storage:
    """A block of numbers, by NumPy's code of their type or BF16; their bytes may come later, or never."""

    def __init__(self, dtype: str, numel: int, data: Any = None) -> None:
        self.dtype, self.numel, self.data = dtype, numel, data
        self.nbytes = numel * (2 if dtype == BF16 else np.dtype(dtype).itemsize)

    @cached_property
    def flat(self) -> np.ndarray:
        """All its numbers, (numel,); one array for all tensors that share it."""
        if self.data is None or len(self.data) != self.nbytes:
            raise Unreadable("a tensor's numbers are missing from it")
        if not self.numel:
            return np.zeros(0, "<f4" if self.dtype == BF16 else self.dtype)
        if self.dtype != BF16:
            return np.frombuffer(self.data, self.dtype)
        bits = np.frombuffer(self.data, "<u2").astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)


class Tensor:
    """A strided view of a storage; offset and strides count numbers."""

    storage: Storage | None = None

    def set(self, storage: Storage, size: tuple[int, ...], offset: int = 0, stride: tuple[int, ...] | None = None,
            fortran: bool = False) -> Tensor:
        """Return itself. stride: None if the numbers lie side by side, the first axis fastest where `fortran` says so.

        Raise Unreadable if it is not within its storage.
        """
        if len(size) > 8 or min((*size, offset)) < 0:
            raise Unreadable("a tensor has an impossible shape")
        if stride is None:
            stride = tuple(math.prod(size[:axis] if fortran else size[axis + 1:]) for axis in range(len(size)))
        if len(size) != len(stride) or min((*stride, 0)) < 0:
            raise Unreadable("a tensor has an impossible shape")
        self.numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if self.numel else 0
        if self.numel > storage.numel or (self.numel and last >= storage.numel):
            raise Unreadable("a tensor reaches past its numbers")
        self.storage, self.size, self.offset, self.stride = storage, size, offset, stride
        return self

    @cached_property
    def array(self) -> np.ndarray:
        """Its numbers, aligned, in C order and the machine's byte order; a view of the file where that has them so."""
        flat = self._held().flat
        if not self.numel:
            return np.zeros(self.size, flat.dtype.newbyteorder("="))
        view = np.lib.stride_tricks.as_strided(flat[self.offset:], self.size,
                                               [step * flat.itemsize for step in self.stride], writeable=False)
        return np.require(view, flat.dtype.newbyteorder("="), ["C", "A"])

    def outline(self) -> np.ndarray:
        """An array of its shape and type that takes no memory."""
        dtype = self._held().dtype
        dtype = "<f4" if dtype == BF16 else dtype
        return np.broadcast_to(np.zeros((), np.dtype(dtype).newbyteorder("=")), self.size)

    def _held(self) -> Storage:
        if self.storage is None:
            raise Unreadable("an array without numbers is in it")
        return self.storage
