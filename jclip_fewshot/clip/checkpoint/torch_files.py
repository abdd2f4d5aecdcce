"""Checkpoints that are pickles: torch.save of both generations, TorchScript archives, Jittor's."""

from __future__ import annotations

import hashlib
import zipfile
from typing import Any, BinaryIO

from jclip_fewshot.clip.checkpoint.pickles import Machine
from jclip_fewshot.clip.checkpoint.tensors import Tensor, Unreadable
from jclip_fewshot.storage.arrays import open_zip

MAX_PICKLE = 64 << 20  # bytes; ViT-L as TorchScript has less than 1 MB
MAX_PLACES = 200_000  # containers and values that are looked at
MAX_DEPTH = 50
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_torch_zip(file: BinaryIO, size: int, outline: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """torch.save (since 1.6) and TorchScript archives: a zip of one pickle and a file for each storage, all stored.

    outline: read the pickle alone; storages are compared by size. Of a TorchScript archive it is said which
    activation's module it has.
    """
    with open_zip(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unreadable("a zip file, but no torch archive: it has no data.pkl")
        root = pickles[0][:-len("data.pkl")]
        order = entries.get(root + "byteorder")
        if order is not None and _stored(archive, order, 100).strip() == b"big":
            raise Unreadable("written on a big-endian machine; that is not supported")
        machine = Machine(memoryview(_stored(archive, entries[pickles[0]], min(MAX_PICKLE, size))))
        content = machine.load()
        if sum(storage.nbytes for storage in machine.storages.values()) > size:
            raise Unreadable("its storages are larger than the file")
        for key, storage in machine.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if entry is None or entry.file_size != storage.nbytes or entry.header_offset + entry.file_size > size:
                raise Unreadable(f"damaged: storage {key[:20]!a} is not {storage.nbytes} bytes long")
            if not outline:
                storage.data = _stored(archive, entry, size)
    classes = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
    activations = [ours for theirs, ours in classes.items() if theirs in machine.modules]
    return tensors_of(content), {"activation": activations[0]} if len(activations) == 1 else {}


def _stored(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """An entry's bytes, its CRC-32 compared; torch compresses nothing but code, and a compressed one could be huge."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
        raise Unreadable(f"no torch archive: {entry.filename[:60]!a} is compressed or too large")
    return archive.read(entry)


def read_pickle(data: memoryview, outline: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Jittor's pickles (with or without their check sum, which `outline` leaves aside) and torch.save before 1.6."""
    if bytes(data[-8:]) == b"HCAJSLHD":
        if not outline and hashlib.sha1(data[:-28]).digest() != bytes(data[-28:-8]):
            raise Unreadable("damaged: its SHA-1 is wrong; fetch it again")
        data = data[:-28]
    machine = Machine(data)
    content = machine.load()
    if type(content) is not int or content != LEGACY_MAGIC:
        return tensors_of(content), {}
    for _ in range(2):  # protocol version; the writing machine's properties
        machine.load()
    content, keys = machine.load(), machine.load()
    if type(keys) is not list or len(keys) > len(machine.storages):
        raise Unreadable("damaged: its list of storages is none")
    for key in keys:
        storage = machine.storages.get(str(key) if type(key) in (str, int) else "")
        if storage is None or machine.number("Q") != storage.numel:
            raise Unreadable("damaged: a storage has another size than its tensors need")
        storage.data = machine.file.read(storage.nbytes)
    if any(storage.data is None for storage in machine.storages.values()):
        raise Unreadable("damaged: a tensor's numbers are missing from it")
    return tensors_of(content), {}


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Tensors of nested dictionaries, dotted names joined."""
    if type(content) is dict and type(content.get("state_dict")) is dict:
        content = content["state_dict"]  # a training run's checkpoint
    found: dict[str, Tensor] = {}
    waiting, places = [("", content, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        places += 1
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict) and len(name) < 300:
            if depth > MAX_DEPTH or places + len(waiting) + len(value) > MAX_PLACES:
                raise Unreadable("it contains itself, or more than any checkpoint")
            waiting += [(f"{name}.{str(key)[:300]}" if name else str(key)[:300], child, depth + 1)
                        for key, child in reversed(value.items())]
    return found
