"""Pickles read by the standard library's unpickler in Python, that knows tensors, arrays and plain containers alone.

`pickle.Unpickler` in C, even with a strict `find_class`, allocates what a file declares (LONG_BINPUT), hashes what a
file nests (tuples as keys) and crashes on what is deep. The one in Python, `pickle._Unpickler`, keeps its memo in a
dictionary and does not recurse; here it gets a file that never hands out more than it has, the opcodes that checkpoints
need, calls that are ours, and keys of text or whole numbers.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from jclip_fewshot.clip.checkpoint.tensors import BF16, Storage, Tensor, Unreadable

MAX_READS = 500_000  # an opcode takes one or two; RN50x64 as TorchScript needs fewer than 200,000
SHORT = 256  # bytes; longer ones are handed out as a view of the file
STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": BF16,
            "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
            "ByteStorage": "u1", "BoolStorage": "?"}


class StorageType(str):
    """The type of numbers that torch.FloatStorage and its like stand for."""


class Namespace(dict):
    """An object of a TorchScript archive: its attributes alone."""


class Dtype:
    """Stands for numpy.dtype, whose byte order comes later; plain numbers alone are let through."""

    def __init__(self, code: Any) -> None:
        self.code, self.big = code, False

    def __str__(self) -> str:
        if not isinstance(self.code, str) or not re.fullmatch(r"[<>|=]?(f[248]|[iu][1248]|b1)", self.code):
            raise Unreadable(f"an array of type {str(self.code)[:20]!r} is in it, only numbers are read")
        return np.dtype(self.code).newbyteorder(">" if self.big else "<").str


# What a pickle may call, by module and name. Each takes the arguments of the call and checks them.


def _ordered_dict(*items: Any) -> dict:
    if items and items != ([],):
        raise Unreadable("an OrderedDict with contents is in it")
    return {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise Unreadable("a tensor without numbers is in it")
    return Tensor().set(storage, _whole(size), _whole((offset,))[0], _whole(stride))


def _same(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Unreadable("a parameter or Var without numbers is in it")
    return tensor


def _array(*_: Any) -> Tensor:
    return Tensor()


def _dtype(code: Any = "", *_: Any) -> Dtype:
    return Dtype(code)


def _scalar(dtype: Any, data: Any) -> Tensor:
    return _frombuffer(data, dtype, ())


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Tensor:
    return _filled(Tensor(), data, dtype, shape, order == "F")


def _filled(array: Tensor, data: Any, dtype: Any, shape: Any, fortran: bool) -> Tensor:
    if not isinstance(dtype, Dtype) or not isinstance(data, (bytes, memoryview)):
        raise Unreadable("an array without plain bytes is in it")
    storage = Storage(str(dtype), math.prod(_whole(shape)), data)
    if storage.nbytes != len(data):
        raise Unreadable(f"an array of shape {shape} has {len(data):,} bytes")
    return array.set(storage, shape, fortran=fortran)


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, which older pickles use for bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Unreadable("bytes in it are written in an unknown way")
    return text.encode("latin1")


def _namespace(*_: Any) -> Namespace:
    return Namespace()


def _whole(value: Any) -> tuple[int, ...]:
    """Return a tuple of sizes; raise Unreadable if it is anything else."""
    if not isinstance(value, tuple) or len(value) > 8 or not all(type(n) is int and -2**62 < n < 2**62 for n in value):
        raise Unreadable("a shape in it is no short tuple of whole numbers")
    return value


_CALLS: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _same,
    ("numpy", "ndarray"): _array,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
    ("jittor", "Var"): _same,
    ("jittor", "jittor_core.Var"): _same,
}
for _module in ("numpy.core", "numpy._core"):
    _CALLS[_module + ".multiarray", "_reconstruct"] = _array
    _CALLS[_module + ".multiarray", "scalar"] = _scalar
    _CALLS[_module + ".numeric", "_frombuffer"] = _frombuffer


class _Pieces:
    """The bytes of a file, handed out in pieces; `at` is where the next one begins."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.reads = data, 0, 0

    def read(self, n: int) -> bytes | memoryview:
        """Return the next n bytes; raise Unreadable if so many are not there, or a pickle has far too many steps."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise Unreadable(f"its pickle takes more than {MAX_READS:,} steps")
        if n < 0 or n > len(self.data) - self.at:
            raise Unreadable("it is cut short")
        self.at += n
        piece = self.data[self.at - n:self.at]
        return bytes(piece) if n < SHORT else piece

    def readline(self) -> bytes:
        """Return what comes up to the next newline, which is near in a name."""
        end = bytes(self.data[self.at:self.at + 300]).find(b"\n") + 1
        if not end:
            raise Unreadable("a name in it is cut short")
        return bytes(self.read(end))


_OPCODES = (b"\x80 ( 0 1 N \x88 \x89 J K M \x8a G X \x8c \x8d U B C \x8e ] } ) l t \x85 \x86 \x87 a e q r \x94 h j c "
            b"\x93 Q .").split(b" ")


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Machine(_Unpickler):
    """Runs the pickles that stand in `data` one after another.

    storages: those that tensors refer to, by key. modules: classes of a TorchScript archive, by their last names.
    """

    dispatch = {code[0]: _Unpickler.dispatch[code[0]] for code in _OPCODES}

    def __init__(self, data: memoryview) -> None:
        self.file = _Pieces(data)
        super().__init__(self.file, encoding="latin1")
        self.storages: dict[str, Storage] = {}
        self.modules: set[str] = set()

    def load(self) -> Any:
        """Return the object of the next pickle: dicts with keys of text or whole numbers, lists, tuples, texts, bytes,
        numbers, None, Storage, Tensor, Namespace."""
        self.memo: dict[int, Any] = {}
        try:
            return super().load()
        except (LookupError, TypeError, AttributeError, AssertionError, EOFError, struct.error, pickle.UnpicklingError):
            raise Unreadable("its pickle has a step that no checkpoint needs, or is damaged") from None

    def number(self, code: str) -> Any:
        """Return the next number in struct's little-endian code."""
        return struct.unpack("<" + code, self.file.read(struct.calcsize("<" + code)))[0]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLS:
            return _CALLS[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name])
        if module == "__torch__" or module.startswith("__torch__."):
            self.modules.add(name)
            return _namespace
        if len(module) + len(name) < 200 and (module + name).isprintable():
            raise Unreadable(f"it wants to use {module}.{name}: that is no tensor or plain container, so the file is "
                             "refused and nothing in it was run")
        raise Unreadable("it wants to use what is no tensor or plain container, so the file is refused")

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StorageType) \
                or type(pid[2]) not in (str, int) or type(pid[4]) is not int or not 0 <= pid[4] < 2**40:
            raise Unreadable("it refers to something that is no tensor storage")
        known = self.storages.setdefault(str(pid[2]), Storage(str(pid[1]), pid[4]))
        if (known.dtype, known.numel) != (pid[1], pid[4]):
            raise Unreadable(f"storage {str(pid[2])[:20]} has two sizes")
        return known

    def _frame(self) -> None:
        self.read(8)  # its length says nothing that matters here

    def _bytes(self) -> None:
        self.append(self.read(self.number("I")))  # Python 2's text of 256 bytes and more: an array's numbers

    def _bytearray(self) -> None:
        self.append(self.read(self.number("Q")))

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not FunctionType or type(arguments) is not tuple:  # the functions above alone get here
            raise Unreadable("its pickle calls what cannot be called")
        self.append(function(*arguments))

    def _build(self) -> None:
        """The state of an object; attributes that somebody hung on a dictionary or tensor mean nothing here."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Namespace and type(state) is dict:
            target.update(state)
        elif type(target) is Tensor and target.storage is None and type(state) is tuple and len(state) == 5:
            _filled(target, state[4], state[2], state[1], state[3] in (True, 1))
        elif isinstance(target, Dtype) and type(state) is tuple and len(state) > 1:
            target.big = state[1] == ">"
        elif not isinstance(target, (dict, Tensor)):
            raise Unreadable("its pickle sets the state of what has none")

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Unreadable("its pickle fills what is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not str and not (type(key) is int and abs(key) < 2**40):
                raise Unreadable("a key in it is neither text nor a number")
            target[key] = value

    def _one_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _many_items(self) -> None:
        self._fill(self.pop_mark())

    def _dict_of(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    dispatch |= {0x95: _frame, 0x54: _bytes, 0x96: _bytearray, 0x52: _call, 0x81: _call, 0x62: _build, 0x73: _one_item,
                 0x75: _many_items, 0x64: _dict_of}
