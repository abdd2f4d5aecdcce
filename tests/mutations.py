"""Ways to damage a file, blindly or knowing its format; each takes a random generator and bytes and returns bytes."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from jclip_fewshot.clip.checkpoint import Architecture, layout

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


def tiny_clip(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = layout(Architecture(16, 32, 1, 64, 16, 8, 20, 64, 1))
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def hugging_face(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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


def as_safetensors(tensors: dict[str, object], change: Callable[[dict], None] = lambda header: None) -> bytes:
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


def tensor_steps(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, key: str = "0",
                 storage: str = "FloatStorage") -> bytes:
    """What torch.save pickles for a tensor."""
    shape = [b"(" + b"".join(map(number_step, one)) + b"t" for one in (size, stride)]
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text_step("storage") + b"ctorch\n" + storage.encode() + b"\n"
            + text_step(key) + text_step("cpu") + number_step(numel) + b"tQ" + number_step(offset) + shape[0] + shape[1]
            + b"\x89ccollections\nOrderedDict\n)RtR")


def as_torch_zip(tensors: dict[str, np.ndarray], script: bool) -> bytes:
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
    tensors: dict[str, object] = dict(tiny_clip(np.random.default_rng(0)))
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
        for _, _, at in pickletools.genops(data):
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


def member(mutate: list[Callable]) -> Callable[[random.Random, bytes], bytes]:
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


# Images.


def png_size(rng: random.Random, data: bytes) -> bytes:
    """A PNG of another size, its check sum right; other formats get a large number early."""
    if data[12:16] != b"IHDR":
        at = rng.randrange(min(len(data) - 2, 200))
        return data[:at] + rng.choice((b"\xff\xff", b"\x7f\xff", b"\x00\x00", b"\x20\x00")) + data[at + 2:]
    sides = (0, 1, 5, 40, 9000, 40_000, 2**31 - 1, 2**32 - 1)
    header = data[12:16] + struct.pack(">II", rng.choice(sides), rng.choice(sides)) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
