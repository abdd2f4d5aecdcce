"""Pickles read by an interpreter of our own that knows tensors, arrays and plain containers and runs nothing.

Python's unpickler, even with a strict `find_class`, allocates what a file declares (LONG_BINPUT), hashes what a file
nests (tuples as keys) and crashes on what is deep. Here a step allocates a bounded number of bytes, a length is
compared with what is left of the file, keys are text or whole numbers, and no step recurses.

Opcodes: Lib/pickletools.py, protocols 2 to 5 without sets and out-of-band buffers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from jclip_fewshot.clip.checkpoint.objects import (
    STORAGES,
    Array,
    Dtype,
    Namespace,
    Storage,
    StorageType,
    Tensor,
    Unreadable,
    whole_numbers,
)

MAX_STEPS = 400_000  # RN50x64 as TorchScript takes fewer than 100,000
LONG_TEXT = 1 << 16  # bytes; longer texts are bytes in disguise (_codecs.encode)


# What a pickle may call, by module and name. Each takes the arguments of the call and checks them.


def _ordered_dict(*items: Any) -> dict:
    if items and items != ([],):
        raise Unreadable("an OrderedDict with contents is in it")
    return {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise Unreadable("a tensor without numbers is in it")
    return Tensor(storage, *whole_numbers((offset,)), whole_numbers(size), whole_numbers(stride))


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Unreadable("a parameter without a tensor is in it")
    return tensor


def _reconstructed(*_: Any) -> Array:
    return Array()


def _dtype(code: Any = "", *_: Any) -> Dtype:
    return Dtype(code)


def _scalar(dtype: Any, data: Any) -> Array:
    return Array().set((), dtype, False, data)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Array:
    return Array().set(shape, dtype, order == "F", data)


def _var(array: Any, *_: Any) -> Array:
    if not isinstance(array, Array):
        raise Unreadable("a Var without an array is in it")
    return array


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, which older pickles use for bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Unreadable("bytes in it are written in an unknown way")
    return text.encode("latin1")


_CALLS: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("numpy", "ndarray"): _reconstructed,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
    ("jittor", "Var"): _var,
    ("jittor", "jittor_core.Var"): _var,
}
for _module in ("numpy.core", "numpy._core"):
    _CALLS[_module + ".multiarray", "_reconstruct"] = _reconstructed
    _CALLS[_module + ".multiarray", "scalar"] = _scalar
    _CALLS[_module + ".numeric", "_frombuffer"] = _frombuffer


class _Name:
    """A name that a pickle refers to; it can be called, and nothing else."""

    __slots__ = ("call",)

    def __init__(self, call: Callable):
        self.call = call


_NAMESPACE = _Name(lambda *_: Namespace())


def _named(module: Any, name: Any) -> Any:
    if isinstance(module, str) and isinstance(name, str):
        if (module, name) in _CALLS:
            return _Name(_CALLS[module, name])
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(name)
        if module == "__torch__" or module.startswith("__torch__."):
            return _NAMESPACE
        if len(module) + len(name) < 200 and (module + name).isprintable():
            raise Unreadable(f"it wants to use {module}.{name}: that is no tensor or plain container, so the file is "
                             "refused and nothing in it was run")
    raise Unreadable("it wants to use what is no tensor or plain container, so the file is refused")


_MARK = object()


class Machine:
    """Runs the pickles that stand in `data` one after another; `at` is where the next one begins."""

    def __init__(self, data: memoryview):
        self.data, self.at, self.steps = data, 0, 0
        self.storages: dict[str, Storage] = {}
        self.modules: set[str] = set()  # classes of a TorchScript archive, by their last names

    def take(self, n: int) -> memoryview:
        """The next n bytes.

        Raises:
            Unreadable: so many are not there.
        """
        if n < 0 or n > len(self.data) - self.at:
            raise Unreadable("it is cut short")
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, code: str) -> Any:
        """The next number in struct's little-endian code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def load(self) -> Any:
        """The object of the next pickle: dicts with keys of text or whole numbers, lists, tuples, texts, bytes,
        numbers, None, Storage, Tensor, Array, Namespace."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        while True:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Unreadable(f"its pickle takes more than {MAX_STEPS:,} steps")
            code = self.number("B")
            if code == 0x2E:  # STOP
                return _pop(stack)
            if code in _PUT or code == 0x94:
                memo[len(memo) if code == 0x94 else self.number(_PUT[code])] = _top(stack)
            elif code in _GET:
                place = self.number(_GET[code])
                if place not in memo:
                    raise Unreadable("its pickle refers to what is not there")
                stack.append(memo[place])
            elif code in _STEPS:
                _STEPS[code](self, stack)
            else:
                raise Unreadable(f"its pickle has a step {bytes([code])!r} that no checkpoint needs")

    def _named(self, module: Any, name: Any) -> Any:
        found = _named(module, name)
        if found is _NAMESPACE:
            self.modules.add(name)
        return found

    def _text(self, n: int) -> str:
        data = self.take(n)
        if n > LONG_TEXT and re.search(b"[\xc4-\xff]", data):  # could take four bytes a letter
            raise Unreadable("a long text is in it")
        return str(data, "utf-8", "surrogatepass")

    def _line(self) -> str:
        """Up to the next newline."""
        ahead = bytes(self.data[self.at:self.at + 300])
        end = ahead.find(b"\n")
        if end < 0:
            raise Unreadable("a name in it is cut short")
        self.at += end + 1
        return ahead[:end].decode("utf-8", "replace")

    def _storage(self, key: Any) -> Storage:
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], StorageType) \
                or type(key[2]) not in (str, int) or type(key[4]) is not int or not 0 <= key[4] < 2**40:
            raise Unreadable("it refers to something that is no tensor storage")
        known = self.storages.setdefault(str(key[2]), Storage(key[1], key[4]))
        if (known.kind.dtype, known.numel) != (key[1].dtype, key[4]):
            raise Unreadable(f"storage {str(key[2])[:20]} has two sizes")
        return known


_PUT = {0x71: "B", 0x72: "I"}  # BINPUT, LONG_BINPUT
_GET = {0x68: "B", 0x6A: "I"}  # BINGET, LONG_BINGET


def _top(stack: list[Any]) -> Any:
    if not stack or stack[-1] is _MARK:
        raise Unreadable("its pickle takes from an empty stack")
    return stack[-1]


def _pop(stack: list[Any]) -> Any:
    value = _top(stack)
    stack.pop()
    return value


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while stack:
        item = stack.pop()
        if item is _MARK:
            items.reverse()
            return items
        items.append(item)
    raise Unreadable("its pickle takes from an empty stack")


def _set_items(target: Any, pairs: list[Any]) -> None:
    if type(target) is not dict or len(pairs) % 2:
        raise Unreadable("its pickle fills what is no dictionary")
    for key, value in zip(pairs[::2], pairs[1::2]):
        if type(key) is not str and not (type(key) is int and abs(key) < 2**40):
            raise Unreadable("a key in it is neither text nor a number")
        target[key] = value


def _append(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise Unreadable("its pickle appends to what is no list")
    target.extend(items)


def _call(stack: list[Any]) -> None:
    arguments, function = _pop(stack), _pop(stack)
    if not isinstance(function, _Name) or type(arguments) is not tuple:
        raise Unreadable("its pickle calls what cannot be called")
    try:
        stack.append(function.call(*arguments))
    except TypeError:
        raise Unreadable("its pickle calls with the wrong arguments") from None


def _build(stack: list[Any]) -> None:
    """The state of an object; attributes that somebody hung on a dictionary or tensor mean nothing here."""
    state, target = _pop(stack), _top(stack)
    if isinstance(target, Namespace) and type(state) is dict:
        target.attributes.update(state)
    elif isinstance(target, Array) and type(state) is tuple and len(state) == 5:
        target.set(state[1], state[2], bool(state[3]) if type(state[3]) in (bool, int) else False, state[4])
    elif isinstance(target, Dtype) and type(state) is tuple and len(state) > 1:
        target.order = ">" if state[1] == ">" else "<"
    elif not isinstance(target, (dict, Tensor)):
        raise Unreadable("its pickle sets the state of what has none")


def _long(machine: Machine, n: int) -> int:
    if n > 255:
        raise Unreadable("a number of too many digits is in it")
    return int.from_bytes(machine.take(n), "little", signed=True)


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine, list[Any]], None]:
    return lambda machine, stack: stack.append(make(machine))


def _tuple_of(n: int) -> Callable[[Machine, list[Any]], None]:
    def step(machine: Machine, stack: list[Any]) -> None:
        items = [_pop(stack) for _ in range(n)]
        stack.append(tuple(reversed(items)))
    return step


def _one_item(machine: Machine, stack: list[Any]) -> None:
    value, key = _pop(stack), _pop(stack)
    _set_items(_top(stack), [key, value])


def _many_items(machine: Machine, stack: list[Any]) -> None:
    pairs = _pop_to_mark(stack)
    _set_items(_top(stack), pairs)


def _one_more(machine: Machine, stack: list[Any]) -> None:
    value = _pop(stack)
    _append(_top(stack), [value])


def _many_more(machine: Machine, stack: list[Any]) -> None:
    items = _pop_to_mark(stack)
    _append(_top(stack), items)


def _dict_of(machine: Machine, stack: list[Any]) -> None:
    pairs = _pop_to_mark(stack)
    stack.append({})
    _set_items(stack[-1], pairs)


def _stack_global(machine: Machine, stack: list[Any]) -> None:
    name, module = _pop(stack), _pop(stack)
    stack.append(machine._named(module, name))


_STEPS: dict[int, Callable[[Machine, list[Any]], Any]] = {
    0x80: lambda machine, stack: machine.take(1),  # PROTO
    0x95: lambda machine, stack: machine.take(8),  # FRAME: its length says nothing that matters here
    0x28: lambda machine, stack: stack.append(_MARK),
    0x30: lambda machine, stack: _pop(stack),
    0x31: lambda machine, stack: _pop_to_mark(stack),
    0x4E: _push(lambda machine: None), 0x88: _push(lambda machine: True), 0x89: _push(lambda machine: False),
    0x4A: _push(lambda machine: machine.number("i")), 0x4B: _push(lambda machine: machine.number("B")),
    0x4D: _push(lambda machine: machine.number("H")), 0x8A: _push(lambda machine: _long(machine, machine.number("B"))),
    0x8B: _push(lambda machine: _long(machine, machine.number("I"))),
    0x47: _push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    0x58: _push(lambda machine: machine._text(machine.number("I"))),
    0x8C: _push(lambda machine: machine._text(machine.number("B"))),
    0x8D: _push(lambda machine: machine._text(machine.number("Q"))),
    # Bytes of Python 2 and 3: a view of the file
    0x54: _push(lambda machine: machine.take(machine.number("I"))),
    0x55: _push(lambda machine: str(machine.take(machine.number("B")), "latin1")),
    0x42: _push(lambda machine: machine.take(machine.number("I"))),
    0x43: _push(lambda machine: machine.take(machine.number("B"))),
    0x8E: _push(lambda machine: machine.take(machine.number("Q"))),
    0x96: _push(lambda machine: machine.take(machine.number("Q"))),
    0x5D: _push(lambda machine: []), 0x7D: _push(lambda machine: {}), 0x29: _push(lambda machine: ()),
    0x6C: lambda machine, stack: stack.append(_pop_to_mark(stack)),
    0x74: lambda machine, stack: stack.append(tuple(_pop_to_mark(stack))),
    0x85: _tuple_of(1), 0x86: _tuple_of(2), 0x87: _tuple_of(3),
    0x64: _dict_of, 0x73: _one_item, 0x75: _many_items, 0x61: _one_more, 0x65: _many_more,
    0x63: _push(lambda machine: machine._named(machine._line(), machine._line())),
    0x93: _stack_global,
    0x52: lambda machine, stack: _call(stack), 0x81: lambda machine, stack: _call(stack),
    0x62: lambda machine, stack: _build(stack),
    0x51: lambda machine, stack: stack.append(machine._storage(_pop(stack))),  # BINPERSID
}
