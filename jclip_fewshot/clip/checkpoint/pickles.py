"""Pickles read by the standard library's unpickler in Python, that knows tensors, arrays and plain containers alone.

`pickle.Unpickler` in C, even with a strict `find_class`, allocates what a file declares (LONG_BINPUT), hashes what a
file nests (tuples as keys) and crashes on what is deep. `pickle._Unpickler` does not recurse; here it gets a file that
never hands out more than it has, the opcodes that checkpoints need, classes that are ours, and plain keys.
"""

import pickle
import re
import struct
from typing import Any

import numpy as np

from jclip_fewshot.errors import UserError

MAX_READS = 500_000  # an opcode takes one or two; RN50x64 as TorchScript needs fewer than 200,000
MAX_NAME = 300
SHORT = 256  # bytes; longer ones are handed out as a view of the file
BF16 = np.dtype([("bf16", "<u2")])  # the upper half of a float32; NumPy has no such numbers
STORAGES = {"DoubleStorage": np.dtype("<f8"), "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"),
            "BFloat16Storage": BF16, "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
            "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
            "BoolStorage": np.dtype("?")}


class Mapping(dict):
    """A dictionary, or an object of a TorchScript archive: its attributes alone."""

    def __init__(self, contents: Any = ()) -> None:
        if contents:
            raise UserError("an OrderedDict with contents is in it")

    def __setitem__(self, key: Any, value: Any) -> None:
        if not (type(key) is str and len(key) <= MAX_NAME or type(key) is int and abs(key) < 2**40):
            raise UserError("a key in it is neither a short text nor a number")
        super().__setitem__(key, value)

    def set_state(self, state: Any) -> None:
        self.update(state if isinstance(state, Mapping) else {})


class Dtype:
    """Stands for numpy.dtype, whose byte order comes later; plain numbers alone are let through."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>|=]?(f[248]|[iu][1248]|b1)", code):
            raise UserError(f"an array of type {code[:20]!r} is in it, only numbers are read")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class Array:
    """An array of NumPy's, whose numbers may come later."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> None:
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = Array(data, dtype, shape, "F" if fortran else "C").array


class Storage:
    """Numbers of any tensors; their bytes come later."""

    data: bytes | memoryview = b""

    def __init__(self, dtype: np.dtype, numel: int) -> None:
        self.dtype, self.nbytes = dtype, numel * dtype.itemsize


class Tensor:
    """A strided view of a storage; offset and strides count numbers."""

    def __init__(self, storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    @property
    def array(self) -> np.ndarray:
        dtype, data, width = self.storage.dtype, self.storage.data, self.storage.dtype.itemsize
        if 0 in self.size:
            return np.zeros(self.size, dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        # not left to NumPy, whose own check takes no bytes for enough and lets large strides overflow
        if min(0, self.offset, *self.size, *self.stride) < 0 or last >= len(data) // width:
            raise UserError("a tensor reaches past its numbers")
        return np.ndarray(self.size, dtype, data, self.offset * width, [step * width for step in self.stride])


# What a pickle may call, by module and name; nothing else on its stack can be called.
_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Mapping,
    ("torch._utils", "_rebuild_tensor_v2"): Tensor,
    **dict.fromkeys([("torch._utils", "_rebuild_parameter"), ("jittor", "Var"), ("jittor", "jittor_core.Var")],
                    lambda tensor, *_: tensor),
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): lambda text, *_: str.encode(text, "latin1"),  # older pickles' way to write bytes
}
for _core in ("numpy.core", "numpy._core"):
    _CALLS[_core + ".multiarray", "_reconstruct"] = lambda *_: Array(b"", Dtype("u1"), (0,))
    _CALLS[_core + ".multiarray", "scalar"] = lambda dtype, data: Array(data, dtype, ())
    _CALLS[_core + ".numeric", "_frombuffer"] = Array


class _Pieces:
    """The bytes of a file, handed out in pieces; `at` is where the next one begins."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.reads = data, 0, 0

    def read(self, n: int) -> bytes | memoryview:
        self.reads += 1
        piece = self.data[self.at:self.at + n]
        if len(piece) < n or self.reads > MAX_READS:
            raise UserError("it is cut short, or its pickle has far more steps than a checkpoint's")
        self.at += n
        return bytes(piece) if n < SHORT else piece

    def readline(self) -> bytes:
        return bytes(self.read(bytes(self.data[self.at:self.at + MAX_NAME]).find(b"\n") + 1))


_OPCODES = (b"\x80 ( 0 1 N \x88 \x89 J K M \x8a G X \x8c \x8d U B C \x8e ] ) t \x85 \x86 \x87 a e q r \x94 h j c "
            b"\x93 Q R \x81 s u .").split(b" ")
_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Machine(_Unpickler):
    """Runs the pickles that stand in `data` one after another. storages: those that tensors refer to, by key. modules:
    classes of a TorchScript archive, by their last names."""

    def __init__(self, data: memoryview) -> None:
        self.file = _Pieces(data)
        super().__init__(self.file, encoding="latin1")
        self.storages: dict[str, Storage] = {}
        self.modules: set[str] = set()

    def load(self) -> Any:
        self.memo: dict[int, Any] = {}  # each pickle has its own: MEMOIZE counts from 0
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLS:
            return _CALLS[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module.partition(".")[0] == "__torch__":
            self.modules.add(name)
            return Mapping
        raise UserError(f"it wants to use {module[:100]}.{name[:100]}: that is no tensor or plain container, so the "
                        "file is refused and nothing in it was run")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype) or type(key) is not str or type(numel) is not int:
            raise UserError("it refers to something that is no tensor storage")
        known = self.storages.setdefault(key, Storage(dtype, numel))
        if (known.dtype, known.nbytes) != (dtype, numel * dtype.itemsize):
            raise UserError(f"storage {key[:20]} has two sizes")
        return known

    def number(self) -> int:
        return struct.unpack("<Q", self.file.read(8))[0]

    def _build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].set_state(state)

    dispatch = {code[0]: _Unpickler.dispatch[code[0]] for code in _OPCODES} | {
        ord("}"): lambda self: self.append(Mapping()), ord("b"): _build,
        0x95: number,  # the length of a frame, which says nothing that matters here
        0x96: lambda self: self.append(self.file.read(self.number()))}  # a bytearray
