"""Damaged and hostile files against every reader: each case ends well or in one UserError, in 5 s and bounded memory.

    python tests/fuzz.py --cases 50000                      every reader
    python tests/fuzz.py --cases 50000 --kind checkpoint    one of them
    python tests/fuzz.py --kind npz --only 1234 --keep DIR  one case again, its file kept

A case is made from the seed, the kind and its number alone. `tests/test_fuzz.py` runs 300 of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import pickletools
import random
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jclip_fewshot.clip.checkpoint import (Architecture, architecture, check_state_dict, inspect, layout,  # noqa: E402
                                           read_state_dict)
from jclip_fewshot.data.contest import read_contest, read_labels  # noqa: E402
from jclip_fewshot.data.decode import Recipe, decode  # noqa: E402
from jclip_fewshot.data.shots import read_shot_list  # noqa: E402
from jclip_fewshot.data.submission import check_result, write_result  # noqa: E402
from jclip_fewshot.errors import UserError  # noqa: E402
from jclip_fewshot.evaluation.suites import load_suite  # noqa: E402
from jclip_fewshot.features.table import FeatureTable  # noqa: E402
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline  # noqa: E402
from jclip_fewshot.storage.arrays import load_arrays  # noqa: E402
from jclip_fewshot.storage.records import load_record, load_test_record, load_validation  # noqa: E402
from tests.storage.samples import RECORD, TEST, VALIDATION  # noqa: E402

SECONDS = 5.0  # of the processor, a case
MEMORY = 64 << 20  # bytes a case beyond four times its file
IMAGE_MEMORY = 256 << 20
CHUNK = 1000  # cases a process


class Kind(NamedTuple):
    """seeds: sound files by name. read: what is tried, by the name of the seed. mutate: ways that know the format."""

    seeds: Dict[str, bytes]
    read: Callable[[str, Path], object]
    mutate: List[Callable[[random.Random, bytes], bytes]]
    memory: int = MEMORY


class TooLong(BaseException):
    """Passes through every `except Exception`."""


# Any bytes.


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def flip_early(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    out[rng.randrange(min(len(out), 200))] = rng.randrange(256)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[:rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes) -> bytes:
    """A span is repeated, moved, left out or blown up."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 8, 64, 4096)))
    at = rng.randrange(len(data) + 1)
    return rng.choice((data[:a] + data[b:], data[:at] + data[a:b] + data[at:], data[:a] + data[a:b] * 9 + data[b:]))


def number(rng: random.Random, data: bytes) -> bytes:
    """Four or eight bytes become a number that readers stumble over."""
    value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, 0x0FFFFFFF))
    piece = struct.pack("<Q", value)[:rng.choice((2, 4, 8))]
    at = rng.randrange(max(1, len(data) - len(piece)))
    return data[:at] + piece + data[at + len(piece):]


ANY = [flip, flip_early, cut, splice, number]


# Checkpoints.


def tiny_clip(rng: np.random.Generator) -> Dict[str, np.ndarray]:
    shapes = layout(Architecture(16, 32, 1, 64, 16, 8, 20, 64, 1, 1))
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def hugging_face(tensors: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Some of CLIPModel's names: enough for the renaming and the joining of q, k and v."""
    found = {"logit_scale": tensors["logit_scale"], "text_projection.weight": tensors["text_projection"].T,
             "visual_projection.weight": tensors["visual.proj"].T,
             "text_model.embeddings.token_embedding.weight": tensors["token_embedding.weight"]}
    for tower in ("text", "vision"):
        for letter in "qkv":
            for part, shape in (("weight", (64, 64)), ("bias", (64,))):
                found[f"{tower}_model.encoder.layers.0.self_attn.{letter}_proj.{part}"] = np.ones(shape, np.float16)
    return found


def odd_tensor(rng: random.Random, array: np.ndarray) -> object:
    return rng.choice([
        None, array.astype(np.int64), array.astype(bool), array.astype(complex), array.astype(np.float64),
        np.full_like(array, np.nan), np.full_like(array, np.inf), np.full(array.shape, 1e300), array.reshape(-1),
        array[..., None], np.zeros((), np.float16), np.atleast_1d(array)[:0],
        np.zeros((0,) * max(array.ndim, 1), np.float16),
        np.zeros(array.shape[:-2] + (0, 0), np.float16), array.T, {"x": array}, [array], "text", 7, array.tolist(),
        np.asfortranarray(array), array.astype(">f4"), np.repeat(array[None], 3, 0) if array.size < 9999 else array])


SAFE_TYPES = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64", "bool": "BOOL"}


def as_safetensors(tensors: Dict[str, object], change: Callable[[dict], None] = lambda header: None) -> bytes:
    header, body = {}, b""
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray) or str(array.dtype) not in SAFE_TYPES:
            continue
        content = array.tobytes()
        header[name] = {"dtype": SAFE_TYPES[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def text_step(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number_step(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor_steps(numel: int, size: Tuple[int, ...], stride: Tuple[int, ...], offset: int = 0, key: str = "0",
                 storage: str = "FloatStorage") -> bytes:
    """What torch.save pickles for a tensor."""
    shape = [b"(" + b"".join(map(number_step, one)) + b"t" for one in (size, stride)]
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text_step("storage") + b"ctorch\n" + storage.encode() + b"\n"
            + text_step(key) + text_step("cpu") + number_step(numel) + b"tQ" + number_step(offset) + shape[0] + shape[1]
            + b"\x89ccollections\nOrderedDict\n)RtR")


def as_torch_zip(tensors: Dict[str, np.ndarray], script: bool) -> bytes:
    """float16 tensors as torch.save writes them, or as attributes of a TorchScript object."""
    steps, buffer = b"", io.BytesIO()
    for number, (name, array) in enumerate(tensors.items()):
        strides = tuple(step // array.itemsize for step in array.copy(order="C").strides)
        steps += text_step(name) + tensor_steps(array.size, array.shape, strides, 0, str(number), "HalfStorage") + b"s"
    body = b"c__torch__.m\nModel\n)\x81}" + steps + b"b" if script else b"ccollections\nOrderedDict\n)R" + steps
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("clip/data.pkl", b"\x80\x02" + body + b".")
        for number, array in enumerate(tensors.values()):
            archive.writestr(f"clip/data/{number}", array.tobytes())
    return buffer.getvalue()


def odd_clip(rng: random.Random, data: bytes) -> bytes:
    """A CLIP with an odd tensor, a name too few or too many; as a pickle or .safetensors."""
    tensors: Dict[str, object] = dict(tiny_clip(np.random.default_rng(0)))
    if rng.random() < 0.4:
        tensors = dict(hugging_face(tensors))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(tensors))
        what = rng.random()
        if what < 0.7 and isinstance(tensors[name], np.ndarray):
            tensors[name] = odd_tensor(rng, tensors[name])
        elif what < 0.85:
            del tensors[name]
        else:
            odd = rng.choice((name + "x", "visual.layer1.0.conv1.weight", "", "a\nb", "x" * 5000,
                              name.replace("0", "99")))
            tensors[odd] = tensors[name]
    if rng.random() < 0.5:
        return as_safetensors(tensors)
    try:
        return pickle.dumps(tensors, rng.choice((2, 3, 4, 5)))
    except (TypeError, AttributeError):
        return data


ODD_VALUES = [None, -1, 0, 1, 2**31, 2**63, 2**70, 1.5, "F32", "x" * 300, "\ud800", [], {}, [[]], [0, -1], [0, 2**60],
              [2**32, 2**32], True, "../../x", "\0", "a\nb"]


def odd_json(rng: random.Random, value: object) -> None:
    """Changes one place of a tree of dicts and lists."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if not keys:
            return
        key = rng.choice(list(keys))
        inside = value[key]
        if isinstance(inside, (dict, list)) and inside and rng.random() < 0.8:
            value = inside
            continue
        what = rng.random()
        if what < 0.2 and isinstance(value, dict):
            del value[key]
        elif what < 0.3 and isinstance(value, dict):
            value[rng.choice(("x", "", "a\nb", "../x", "9" * 50))] = inside
        else:
            value[key] = rng.choice(ODD_VALUES)
        return


def safetensors_header(rng: random.Random, data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
    if length > len(data):
        return flip(rng, data)
    try:
        header = json.loads(data[8:8 + length])
    except ValueError:
        return flip(rng, data)
    odd_json(rng, header)
    text = json.dumps(header).encode()
    text = rng.choice((text, text, b"[" * 5000, text[:-1] + b',"__metadata__":{"a":"b"}}'))
    size = rng.choice((len(text), len(text), len(text) + 1, 2**40))
    return struct.pack("<Q", size) + text + data[8 + length:]


def opcodes(rng: random.Random, data: bytes) -> bytes:
    """A pickle's steps are exchanged, repeated, left out or put in."""
    places = []
    with contextlib.suppress(Exception):
        for op, _, at in pickletools.genops(data):
            places.append(at)
    if len(places) < 2:
        return flip(rng, data)
    out = data
    for _ in range(rng.choice((1, 1, 2, 5))):
        i = rng.randrange(len(places) - 1)
        a, b = places[i], places[i + 1]
        step = rng.choice((data[a:b], b"\x80\x04", b"(", b"0", b"2", b"1", b"}", b"]", b")", b"N", b"t", b"\x85",
                           b"\x86", b"u", b"s", b"e", b"a", b"b", b"R", b"\x81", b"\x93", b"h\x00", b"q\x00", b"\x94",
                           b"r\xff\xff\xff\x0f", b"j\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8,
                           b"B\xff\xff\xff\xff", b"\x96" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f", b"K\x00",
                           b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"Q", b"cposix\nsystem\n",
                           b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n", b"\x95" + b"\xff" * 8, b".", b"\x8f",
                           b"c__torch__\nX\n", b"c_codecs\nencode\n", b"X\x02\x00\x00\x00<M",
                           b"G" + b"\x7f\xf0" + b"\0" * 6, b"(" * 9, b"}" * 9, b"\x85" * 50))
        out = rng.choice((data[:a] + step + data[b:], data[:a] + step + data[a:], data[:a] + data[b:]))
        data = out
    return out


def bomb(rng: random.Random, data: bytes) -> bytes:
    """Small pickles that would be large, deep or endless."""
    n = rng.choice((10, 60, 500, 5000))
    body = rng.choice((
        b"}X\x01\x00\x00\x00a" + b")" + b"\x85" * n + b"s", b"}" + b")" + b"\x85" * n + b"Ns",
        b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * n + b"Ns", b"}q\x00" + b"K\x00}q\x01sh\x01" * n,
        b"".join(b"}q" + bytes([i + 1]) + b"(K\x00h" + bytes([i]) + b"K\x01h" + bytes([i]) + b"u" if i else b"}q\x00"
                 for i in range(min(n, 100))),
        b"]" * n, b"(" * n, b"}" * n, b"}(K\x00K\x01u" * n, b"c_codecs\nencode\n(" + b"]" * n + b"tR",
        b"X" + b"\xff" * 4,
        b"r\xff\xff\xff\xff", b"}r\xff\xff\xff\x0f", b"c__torch__\nA\n)\x81" * n, b"\x8a\xff" + b"\xff" * 255,
        b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + b"(" + b"K\x00" * n + b"tR"))
    return b"\x80\x02" + body + b"."


def member(mutate: List[Callable]) -> Callable[[random.Random, bytes], bytes]:
    """Mutates a file inside a zip, or the zip's own words; check sums are right again then."""
    def change(rng: random.Random, data: bytes) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, ValueError, NotImplementedError):
            return flip(rng, data)
        name = rng.choice(sorted(files, key=lambda name: (not name.endswith("data.pkl"), name))[:rng.choice((1, 99))])
        what = rng.random()
        if what < 0.75 and files[name]:
            files[name] = rng.choice(mutate)(rng, files[name])
        elif what < 0.85:
            files[rng.choice(("x", "../x", "a/data.pkl", name + "/", "x" * 300))] = files.pop(name)
        else:
            del files[name]
        buffer, kind = io.BytesIO(), rng.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
                if rng.random() < 0.02:
                    archive.comment = b"x" * 60000
        return buffer.getvalue()
    return change


def read_checkpoint(name: str, path: Path) -> None:
    for read in (read_state_dict, inspect):
        with contextlib.suppress(UserError):
            read(path)
    check_state_dict(read_state_dict(path))


def checkpoint_kind(folder: Path) -> Kind:
    tensors = tiny_clip(np.random.default_rng(0))
    seeds = {"clip.safetensors": as_safetensors(tensors), "clip.pkl": pickle.dumps(tensors, 4),
             "old.pkl": pickle.dumps({name: tensors[name] for name in list(tensors)[:4]}, 2),
             "hf.safetensors": as_safetensors(hugging_face(tensors)), "clip5.pkl": pickle.dumps(tensors, 5)}
    seeds.update({"clip.pt": as_torch_zip(tensors, False), "script.pt": as_torch_zip(tensors, True)})
    for name in ("legacy_torch.pt", "training_torch.pt"):
        seeds[name] = (ROOT / "tests" / "data" / name).read_bytes()
    assert architecture(tensors)
    return Kind(seeds, read_checkpoint, [*ANY, odd_clip, safetensors_header, opcodes, bomb,
                                         member([flip, cut, splice, number, opcodes, bomb])])


# Arrays.


def npy_header(rng: random.Random, data: bytes) -> bytes:
    """Another type, shape or order than the numbers have; sometimes no header at all."""
    if len(data) < 10 or data[:6] != b"\x93NUMPY":
        return flip(rng, data)
    length = struct.unpack("<H", data[8:10])[0]
    text = data[10:10 + length].decode("latin1")
    what = rng.random()
    if what < 0.35:
        types = ("<f2", ">f8", "<c8", "|b1", "|i1", "<i8", "|O", "<U9", "<U99999999", "|S3", "|V8", "<M8[s]", "<f16",
                 "", "x")
        text = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(types)}'", text)
    elif what < 0.7:
        shapes = ("()", "(0,)", "(1,)", "(2, 3)", "(4, 16)", "(99999999999,)", "(2, 0, 3)", "(-1, 4)", "(1.5,)", "[2]",
                  "(" + "1," * 40 + ")", "((1,),)", "(True,)", "(10**9,)", "(4, 4, 4)", "(9" + "9" * 4999 + ",)")
        text = re.sub(r"'shape': \([^)]*\)", f"'shape': {rng.choice(shapes)}", text)
    elif what < 0.8:
        text = text.replace("False", rng.choice(("True", "1", "None", "'x'")))
    else:
        text = rng.choice(("", "{", "(" * 3000, "[" * 9000, "{'descr': " * 300, "'" * 99, "\0" * 50, "{" + "1:" * 2000,
                           "{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (4,), }"))
    body = text.encode("latin1")[:65535]
    version = bytes([rng.choice((1, 1, 1, 2, 3, 7)), 0])
    return data[:6] + version + struct.pack("<H", len(body)) + body + data[10 + length:]


def odd_array(rng: random.Random, data: bytes) -> bytes:
    """An .npz in which an array has another type, rank, length or content, as np.savez writes it."""
    try:
        with np.load(io.BytesIO(data)) as found:
            arrays = {name: found[name] for name in found.files}
    except Exception:
        return flip(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(arrays))
        array = arrays[name]
        if array.dtype.kind in "US":
            arrays[name] = rng.choice([array.astype(object), array[:0], array[..., None], np.zeros(array.shape),
                                       np.full(array.shape, "a\0b"), np.full(array.shape, "\ud800"),
                                       np.full(array.shape, "same"), np.full(array.shape, ""), array.astype("S40")])
            continue
        with np.errstate(all="ignore"):
            arrays[name] = rng.choice([
                array.astype(rng.choice((complex, bool, np.int8, np.float16, np.float64, np.uint64, "S3", "U3"))),
                np.zeros_like(array), array[..., None], array.reshape(-1), np.atleast_1d(array)[:1],
                np.atleast_1d(array)[:0], np.zeros(()),
                np.concatenate([array.reshape(-1), array.reshape(-1)]), np.full(array.shape, np.nan),
                np.full(array.shape, np.inf), np.full(array.shape, 1e38), np.full(array.shape, -1), array.T,
                np.full(array.shape, 1e-38), np.zeros(array.shape, "f4,i4"), np.full(array.shape, 2**63 - 1)])
        if rng.random() < 0.1:
            del arrays[name]
    buffer = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(buffer, **arrays)
    return buffer.getvalue()


def one_npy(rng: random.Random, data: bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 4)))
    return rng.choice((buffer.getvalue(), npy_header(rng, buffer.getvalue())))


def read_npz(name: str, path: Path) -> object:
    if name.startswith("features"):
        table = FeatureTable.read(path)
        rows = [table.lookup(list(table.index)[:2])] + ([table.text] if table.text is not None else [])
        assert all(np.isfinite(row).all() for row in rows)
        return table
    if name.startswith("suite"):
        suite = load_suite(path)
        assert np.isfinite(suite.features).all() and suite.features.any(axis=1).all()
        return suite
    if name.startswith("classifier"):
        from jclip_fewshot.classifier import FewShotClassifier
        return FewShotClassifier.load(path).predict_proba(np.ones((2, 16), np.float32))
    return Pipeline.from_state(load_arrays(path, STATE_SCHEMA))


def npz_kind(folder: Path) -> Kind:
    from jclip_fewshot.classifier import FewShotClassifier
    rng = np.random.default_rng(0)
    text = rng.standard_normal((4, 16)).astype(np.float32)
    rows = (np.repeat(text, 3, 0) + rng.standard_normal((12, 16)) / 3).astype(np.float32)
    labels, names = np.repeat(np.arange(4), 3), np.array(["Cat_a", "Cat_b", "Dog_c", "Dog_d"])
    paths = np.array([f"TrainSet/{k}.jpg" for k in range(12)])

    def npz(write=np.savez, **arrays) -> bytes:
        buffer = io.BytesIO()
        write(buffer, **arrays)
        return buffer.getvalue()

    classifier = FewShotClassifier(heads=["gda", "tip_adapter"]).fit(rows, labels, list(names), text)
    classifier.save(folder / "classifier.npz")
    suite = {"train_x": rows.astype(np.float16), "train_y": labels, "test_x": rows[::2], "test_y": labels[::2],
             "text": text, "classes": names}
    seeds = {"features.npz": npz(path=paths, feature=rows, text=text, classes=names), "suite.npz": npz(**suite),
             "features_small.npz": npz(np.savez_compressed, path=paths, feature=rows.astype(np.float64)),
             "classifier.npz": (folder / "classifier.npz").read_bytes(),
             "model.npz": npz(**classifier.pipeline_.state())}
    inside = member([flip, cut, splice, npy_header, npy_header])
    return Kind(seeds, read_npz, [*ANY, odd_array, odd_array, one_npy, inside])


# Records and lists.


def odd_record(rng: random.Random, data: bytes) -> bytes:
    try:
        content = json.loads(data)
    except ValueError:
        return flip(rng, data)
    for _ in range(rng.choice((1, 1, 3))):
        if isinstance(content, (dict, list)):
            odd_json(rng, content)
    return json.dumps(content).encode()


def odd_text(rng: random.Random, data: bytes) -> bytes:
    """A word or line of a text becomes what readers stumble over."""
    words = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\t", b",", b"9" * 5000, b"-1", b"1e9", b"../../x",
             b"/etc", b" ", b"\n\n", b"#", "\u2028".encode(), b"\xed\xa0\x80", "１".encode(), b"x" * 70000, b"[" * 2000,
             b"NaN", b"Infinity", b"1e999", b"\x1b[31m", b"null", b"true", b",,,", b"image_1.jpg")
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 6))):
        i = rng.randrange(len(lines))
        parts = lines[i].split(b" ")
        j = rng.randrange(len(parts))
        what = rng.random()
        if what < 0.4:
            parts[j] = rng.choice(words)
        elif what < 0.6:
            parts.insert(j, rng.choice(words))
        elif what < 0.8:
            lines.insert(i, rng.choice(lines))
        else:
            del parts[j]
        lines[i] = b" ".join(parts)
    return b"\n".join(lines)


def record_kind(folder: Path) -> Kind:
    seeds = {"record.json": RECORD, "test_A.json": TEST, "validate.json": VALIDATION}
    load = {"record.json": load_record, "test_A.json": load_test_record, "validate.json": load_validation}
    return Kind({name: json.dumps(record).encode() for name, record in seeds.items()},
                lambda name, path: load[name](path), [*ANY, odd_record, odd_record, odd_record, odd_text])


LISTS = {"classes.txt": b"Animal_Bear 0\nAnimal_Bee 1\nThu-dog_x 2\n",
         "train.txt": b"".join(b"TrainSet/%d_%d.jpg %d\n" % (k, n, k) for k in range(3) for n in range(2)),
         "labels_TestSetA.txt": b"image_1.jpg 0\nimage_2.jpg 2\n",
         "shots.txt": b"TrainSet/0_0.jpg 0\nTrainSet/2_1.jpg 2\n"}


def lists_kind(folder: Path) -> Kind:
    root = folder / "data"
    for name in [f"TrainSet/{k}_{n}.jpg" for k in range(3) for n in range(2)] + ["TestSetA/image_1.jpg",
                                                                                 "TestSetA/image_2.jpg"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()

    def read(name: str, path: Path) -> None:
        for other, content in LISTS.items():
            (root / other).write_bytes(path.read_bytes() if other == name else content)
        contest = read_contest(root)
        read_labels(contest)
        read_shot_list(root / "shots.txt", contest)
    return Kind(LISTS, read, [*ANY, odd_text, odd_text, odd_text])


def images_kind(folder: Path) -> Kind:
    from PIL import Image
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    wide = Image.fromarray(np.uint16(rng.integers(0, 65535, (20, 20))))
    seeds = {}
    for name, picture, options in [
            ("a.jpg", image, {}), ("prog.jpg", image, {"progressive": True}), ("cmyk.jpg", image.convert("CMYK"), {}),
            ("a.png", image, {}), ("p.png", image.convert("P"), {}), ("wide.png", wide, {}), ("a.gif", image, {}),
            ("a.bmp", image, {}), ("a.webp", image, {}), ("a.tiff", image, {}),
            ("thin.png", image.resize((3000, 1)), {}), ("la.png", image.convert("LA"), {})]:
        buffer = io.BytesIO()
        picture.save(buffer, name.split(".")[1].upper().replace("JPG", "JPEG"), **options)
        seeds[name] = buffer.getvalue()

    def read(name: str, path: Path) -> None:
        out = np.empty((2, 32, 32, 3), np.uint8)
        for recipe, views in ((Recipe(32), out[:1]), (Recipe(32, 2), out), (Recipe(32, draft=True), out[:1])):
            done = decode(str(path), recipe, views)
            assert len(done.digest) == 16
        if done.reason:
            raise UserError(done.reason)

    return Kind(seeds, read, [*ANY, png_size], IMAGE_MEMORY)


def png_size(rng: random.Random, data: bytes) -> bytes:
    """A PNG of another size, its check sum right; other formats get a large number early."""
    if data[12:16] != b"IHDR":
        at = rng.randrange(min(len(data) - 2, 200))
        return data[:at] + rng.choice((b"\xff\xff", b"\x7f\xff", b"\x00\x00", b"\x20\x00")) + data[at + 2:]
    sides = (0, 1, 5, 40, 9000, 40_000, 2**31 - 1, 2**32 - 1)
    header = data[12:16] + struct.pack(">II", rng.choice(sides), rng.choice(sides)) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


NAMES = ["image_1.jpg", "image_2.jpg", "image_10.jpg"]


def submission_kind(folder: Path) -> Kind:
    write_result(folder / "result.txt", NAMES, [[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [9, 8, 7, 6, 5]], 10)
    seeds = {name: (folder / name).read_bytes() for name in ("result.txt", "result.zip")}

    def read(name: str, path: Path) -> None:
        found = check_result(path, NAMES, 10)
        for line in found.problems + found.notes:
            assert line.isprintable() and len(line) < 2000, line[:200]
        if not found.ok:
            raise UserError(found.problems[0])

    return Kind(seeds, read, [*ANY, odd_text, odd_text, member([flip, cut, splice, odd_text])])


KINDS: Dict[str, Callable[[Path], Kind]] = {
    "checkpoint": checkpoint_kind, "npz": npz_kind, "record": record_kind, "lists": lists_kind, "images": images_kind,
    "submission": submission_kind}


# Cases.


class Result(NamedTuple):
    """counts: "read", "refused"; failures: (number of the case, what happened)."""

    counts: Counter
    failures: List[Tuple[int, str]]


def make_case(kind: Kind, label: str, seed: int, index: int) -> Tuple[str, bytes]:
    """The name of the seed, and the bytes."""
    rng = random.Random(f"{seed} {label} {index}")
    name = rng.choice(sorted(kind.seeds))
    data = kind.seeds[name]
    for _ in range(rng.choice((1, 1, 1, 2))):
        if data:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    data = rng.choice(kind.mutate)(rng, data)
            except Exception:  # damaged already, beyond what this way can change
                data = flip(rng, data)
    return name, data


def run(label: str, first: int, cases: int, seed: int = 0, keep: str = "", name: str = "") -> Result:
    """Tries the cases `first`, ...; files of those that fail are kept in `keep`."""
    counts, failures = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[label](Path(folder))
        for index in range(first, first + cases):
            source, data = make_case(kind, label, seed, index)
            path = Path(folder, f"case{Path(source).suffix}")
            path.write_bytes(data)
            outcome = try_case(kind, source, path, 4 * len(data) + kind.memory)
            counts[outcome if outcome in ("read", "refused") else "failed"] += 1
            if outcome not in ("read", "refused"):
                failures.append((index, f"{source}: {outcome}"))
                if keep:
                    Path(keep).mkdir(parents=True, exist_ok=True)
                    Path(keep, f"{label}-{seed}-{index}-{source}").write_bytes(data)
    return Result(counts, failures)


def try_case(kind: Kind, source: str, path: Path, most: int) -> str:
    """"read", "refused", or what went wrong."""
    before, warned = reset_peak(), io.StringIO()
    previous = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with contextlib.redirect_stderr(warned):
            kind.read(source, path)
        outcome = "read"
    except UserError as error:
        line = str(error)
        outcome = "refused" if line and "\n" not in line and len(line) < 5000 else f"the line is none: {line[:100]!r}"
        with contextlib.suppress(UnicodeEncodeError):
            line.encode("utf-8")
            line = ""
        outcome = outcome if not line else f"the line cannot be printed: {line[:100]!r}"
    except TooLong:
        outcome = f"took more than {SECONDS:.0f} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    used = peak() - before
    if used > most and outcome in ("read", "refused"):
        outcome = f"took {used >> 20} MB, more than {most >> 20}"
    return outcome


def _too_long(*_: object) -> None:
    raise TooLong


def reset_peak() -> int:
    """Sets the peak of resident memory to the present; returns it in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    with contextlib.suppress(OSError, AttributeError):
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1)) << 10
    return 0


def in_child(label: str, first: int, cases: int, seed: int, keep: str) -> Result:
    """`run` in a process of its own, so that a crash is a failure and nothing piles up."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        with os.fdopen(writable, "w") as pipe:
            counts, failures = run(label, first, cases, seed, keep)
            json.dump([dict(counts), failures], pipe)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status or not said:
        return Result(Counter(failed=1), [(first, f"the process died ({status}) in this or the next {cases}")])
    counts, failures = json.loads(said)
    return Result(Counter(counts), [tuple(failure) for failure in failures])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000, help="of each kind")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="repeat for several; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="one case, in this process")
    parser.add_argument("--keep", default="", metavar="DIR", help="where the files of failures go")
    given = parser.parse_args()
    failed = 0
    for label in given.kind or list(KINDS):
        begun, counts = time.monotonic(), Counter()
        if given.only is not None:
            found = run(label, given.only, 1, given.seed, given.keep)
            print(label, dict(found.counts), *(text for _, text in found.failures))
            failed += len(found.failures)
            continue
        for first in range(given.first, given.first + given.cases, CHUNK):
            size = min(CHUNK, given.first + given.cases - first)
            found = in_child(label, first, size, given.seed, given.keep)
            counts += found.counts
            failed += len(found.failures)
            for index, text in found.failures:
                print(f"{label} {index}: {text}", flush=True)
        print(f"{label}: {sum(counts.values())} cases, {counts['read']} read, {counts['refused']} refused, "
              f"{counts['failed']} failed, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
