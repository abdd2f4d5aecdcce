"""Checkpoints: found, downloaded, read and written. Neither torch nor Jittor is needed here.

`read_state_dict` knows OpenAI's released TorchScript archives, `torch.save` files (zip and the older
format), Jittor's pickles (JCLIP's ViT-B-32.pkl) and .safetensors, under OpenAI's or Hugging Face's
names. Nothing in a file is ever run: pickles pass through an unpickler that knows tensors and plain
containers and refuses every other name.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import re
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple, Union

import numpy as np

from jclip_fewshot.console import progress
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write

StateDict = Dict[str, np.ndarray]

_BASE = "https://openaipublic.azureedge.net/clip/models"
# name: (file, SHA-256, size in MiB); OpenAI's clip/clip.py, where the hash is a part of the address
_RELEASED = {
    "RN50": ("RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 244),
    "RN101": ("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 278),
    "RN50x4": ("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 402),
    "RN50x16": ("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 630),
    "RN50x64": ("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 1290),
    "ViT-B/32": ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 338),
    "ViT-B/16": ("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 335),
    "ViT-L/14": ("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 890),
    "ViT-L/14@336px": ("ViT-L-14-336px.pt",
                       "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 891),
}


# Finding and downloading


@dataclass(frozen=True)
class Release:
    """One of OpenAI's files: where it is, what it hashes to, about how large it is."""

    file: str
    url: str
    sha256: str
    mebibytes: Optional[int] = None


def available_models() -> List[str]:
    """The names of OpenAI's released models."""
    return list(_RELEASED)


def release(name: str) -> Release:
    """The released file of a model name."""
    file, sha256, mebibytes = _RELEASED[name]
    return Release(file, f"{_BASE}/{sha256}/{file}", sha256, mebibytes)


def weights_folder() -> Path:
    """weights/ beside the package in a checkout, else in the working directory."""
    root = Path(__file__).resolve().parents[2]
    return root / "weights" if (root / "pyproject.toml").exists() else Path("weights")


def find_checkpoint(name_or_path: Union[str, Path], folder: Union[str, Path, None] = None) -> Path:
    """The file of a model name or path; a name that is not in `folder` yet is downloaded to it.

    folder: default `weights_folder()`. For a name like ViT-B/32 the files ViT-B-32.pt,
        ViT-B-32.pkl (JCLIP's) and ViT-B-32.safetensors will do, in this order.
    Raises:
        UserError: neither a name nor a file; no network, or a download that went wrong.
    """
    found = local_checkpoint(name_or_path, folder)
    if found is not None:
        return found
    name = _released_name(str(name_or_path))
    if name is None:
        raise UserError(f"no checkpoint {name_or_path}: neither a file nor one of {', '.join(_RELEASED)}")
    return download(release(name), Path(folder) if folder is not None else weights_folder())


def local_checkpoint(name_or_path: Union[str, Path], folder: Union[str, Path, None] = None) -> Optional[Path]:
    """The file of a model name or path where it is here already; None where it is not."""
    name = _released_name(str(name_or_path))
    if name is None:
        return Path(name_or_path) if Path(name_or_path).is_file() else None
    folder = Path(folder) if folder is not None else weights_folder()
    candidates = [folder / (_file_stem(name) + suffix) for suffix in (".pt", ".pkl", ".safetensors")]
    return next((path for path in candidates if path.is_file()), None)


def _released_name(name: str) -> Optional[str]:
    """The released model that `name` means: ViT-B/32, or ViT-B-32 as JCLIP and open_clip write it."""
    return name if name in _RELEASED else {_file_stem(known): known for known in _RELEASED}.get(name)


def _file_stem(name: str) -> str:
    return Path(_RELEASED[name][0]).stem


def download(source: Release, folder: Union[str, Path], timeout: float = 30.0) -> Path:
    """Fetches a file to `folder`; goes on where an earlier try stopped.

    What has come so far stands in FILE.part; it becomes FILE once its SHA-256 is right.

    Raises:
        UserError: no connection (with address, size, hash and where to put the file), a broken one
            (run again to resume), or a wrong hash.
    """
    folder = Path(folder)
    target, part = folder / source.file, folder / (source.file + ".part")
    size = f", about {source.mebibytes} MiB" if source.mebibytes else ""
    folder.mkdir(parents=True, exist_ok=True)
    with open(part, "ab") as file, _alone(file, part):
        try:
            _fetch(source.url, file, source.file, timeout)
        except (OSError, http.client.HTTPException) as error:
            have = f" ({file.tell()} bytes of it are kept in {part.name}; run again to go on)"
            have = have if file.tell() else ""
            reason = getattr(error, "reason", None) or error
            raise UserError(f"cannot download {source.file}: {reason}{have}; fetch {source.url}{size}, "
                            f"SHA-256 {source.sha256}, and put it into {folder} as {source.file}") from None
        finally:
            if not file.tell():
                part.unlink()
    found = sha256(part)
    if found != source.sha256:
        part.unlink()
        raise UserError(f"{source.url} came with SHA-256 {found} instead of {source.sha256}; "
                        "it was thrown away: run again, or fetch it by hand")
    os.replace(part, target)
    return target


@contextlib.contextmanager
def _alone(file, part: Path) -> Iterator[None]:
    """Two processes must not append to one file."""
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        raise UserError(f"another process is downloading to {part}; wait for it") from None
    yield


def _fetch(url: str, file, label: str, timeout: float) -> None:
    """Appends to `file` what of `url` is not in it yet."""
    done = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # nothing is left to fetch; the hash will tell
            return
        raise
    with response:
        if done and response.status != 206:  # the server sends it all again
            file.truncate(0)
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with progress(stage=label, unit="B", total=total) as bar:
            bar.unit_scale = True
            bar.update(done)
            while True:
                block = response.read(1 << 20)
                if not block:
                    break
                file.write(block)
                bar.update(len(block))
        file.flush()
        if total is not None and file.tell() < total:
            raise http.client.IncompleteRead(b"", total - file.tell())


def sha256(path: Union[str, Path]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# Reading


def read_state_dict(path: Union[str, Path]) -> StateDict:
    """All tensors of a checkpoint under OpenAI's names, as NumPy arrays in the file's precision.

    bfloat16 comes as float32. What belongs to no CLIP is dropped: OpenAI's three integers, Hugging
    Face's position ids, JCLIP's attention masks, batch counters.

    Raises:
        UserError: no such file, a damaged one, an unknown format, a pickle that names anything but
            tensors and plain containers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        if head.startswith(b"PK\x03\x04"):
            tensors = _read_torch_zip(path)
        elif path.suffix == ".safetensors" or head[8:9] == b"{":
            tensors = _read_safetensors(path)
        elif head.startswith(b"\x80"):
            tensors = _read_pickle(path)
        else:
            raise UserError(f"{path} is no checkpoint that is known here: its first bytes are {head[:8]!r}")
    except UserError:
        raise
    except _Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can break a reader anywhere
        raise UserError(
            f"{path} is damaged or of an unknown format: {type(error).__name__}: {error}") from None
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return openai_names(tensors, path)


class _Unreadable(Exception):
    """What is wrong with a file; `read_state_dict` adds its name."""


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
           "U8": "u1", "BOOL": "?"}


def _read_safetensors(path: Path) -> StateDict:
    import safetensors
    tensors = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        kind = entry["dtype"]
        if kind == "BF16":
            array = _bfloat16(np.frombuffer(entry["data"], dtype="<u2"))
        elif kind in _DTYPES:
            array = np.frombuffer(entry["data"], dtype=_DTYPES[kind])
        else:
            raise UserError(f"{path}: {name} is of type {kind}; convert it to float16 or float32")
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def _bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


_STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
             "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
             "ByteStorage": "u1", "BoolStorage": "?"}


class _StorageType:
    def __init__(self, name: str):
        self.dtype = _STORAGES[name]
        self.itemsize = 2 if self.dtype == "bf16" else np.dtype(self.dtype).itemsize


class _Storage:
    """A block of numbers in a torch file; its bytes may come later."""

    def __init__(self, kind: _StorageType, numel: int):
        self.kind, self.numel = kind, int(numel)
        self.data = None

    def array(self) -> np.ndarray:
        if self.data is None or len(self.data) != self.numel * self.kind.itemsize:
            raise _Unreadable("a tensor's numbers are missing from it")
        if self.kind.dtype == "bf16":
            return _bfloat16(np.frombuffer(self.data, dtype="<u2"))
        return np.frombuffer(self.data, dtype=self.kind.dtype)


class _Tensor:
    """A strided view of a storage, as `torch._utils._rebuild_tensor_v2` describes it."""

    def __init__(self, storage: _Storage, offset: int, size: Tuple[int, ...], stride: Tuple[int, ...]):
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def __setstate__(self, state) -> None:
        """Attributes that someone hung on a tensor mean nothing here."""

    def array(self) -> np.ndarray:
        flat = self.storage.array()
        if len(self.size) != len(self.stride) or min(self.size + self.stride + (self.offset,)) < 0:
            raise _Unreadable("a tensor has an impossible shape")
        if 0 in self.size:
            return np.zeros(self.size, dtype=flat.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        if last >= flat.size:
            raise _Unreadable("a tensor reaches past its numbers")
        strides = [step * flat.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset:], self.size, strides, writeable=False)
        return np.ascontiguousarray(view).reshape(self.size)


class _NumpyType:
    """Stands for numpy.dtype; only plain numbers are let through."""

    def __init__(self, code="", *_):
        self.code, self.order = str(code), "<"

    def __setstate__(self, state) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"[<>|=]?[fiub][1248]", self.code):
            raise _Unreadable(f"an array of type {self.code!r} is in it, only numbers are read")
        return np.dtype(self.code).newbyteorder(self.order)


class _NumpyArray:
    """Stands for numpy.ndarray while it is unpickled."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state) -> None:
        _, shape, kind, fortran, data = state
        self.value = _numpy_frombuffer(data, kind, shape, "F" if fortran else "C").value


def _numpy_frombuffer(data, kind: _NumpyType, shape, order: str = "C") -> _NumpyArray:
    if not isinstance(data, (bytes, bytearray)):
        raise _Unreadable("an array without plain bytes is in it")
    result = _NumpyArray()
    array = np.frombuffer(data, dtype=kind.dtype())
    result.value = np.array(array.reshape(shape, order=order), order="C")
    return result


def _numpy_scalar(kind: _NumpyType, data: bytes) -> np.ndarray:
    return _numpy_frombuffer(data, kind, ()).value


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, which older pickles use for bytes."""
    return str(text).encode("latin1")


def _rebuild_tensor(storage, offset, size, stride, *_) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor, *_) -> _Tensor:
    return tensor


_PICKLE_NAMES = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("numpy", "ndarray"): _NumpyArray,
    ("numpy", "dtype"): _NumpyType,
    ("_codecs", "encode"): _latin1,
}
for _module in ("numpy.core", "numpy._core"):
    _PICKLE_NAMES[_module + ".multiarray", "_reconstruct"] = _NumpyArray
    _PICKLE_NAMES[_module + ".multiarray", "scalar"] = _numpy_scalar
    _PICKLE_NAMES[_module + ".numeric", "_frombuffer"] = _numpy_frombuffer


class _Unpickler(pickle.Unpickler):
    """Knows tensors, arrays and plain containers; every other name in the file is refused.

    The objects of a TorchScript archive (`__torch__.…`) become empty namespaces that hold their
    attributes; none of their code is looked at.
    """

    def __init__(self, file, path: Path, storages: Dict[str, _Storage]):
        super().__init__(file, encoding="latin1")
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str):
        if (module, name) in _PICKLE_NAMES:
            return _PICKLE_NAMES[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(name)
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Namespace", (), {})
        raise UserError(f"{self._path} wants to use {module}.{name}: that is no tensor or plain container, "
                        "so the file is refused and nothing in it was run")

    def persistent_load(self, key) -> _Storage:
        mark, kind, number, _, numel = key[:5]
        if mark != "storage" or not isinstance(kind, _StorageType):
            raise UserError(f"{self._path} refers to something that is no tensor storage")
        return self._storages.setdefault(str(number), _Storage(kind, numel))


def _read_torch_zip(path: Path) -> StateDict:
    """torch.save (since 1.6) and TorchScript archives: a zip of one pickle and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        pickles = [entry for entry in archive.namelist()
                   if entry.count("/") == 1 and entry.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip file, but no torch archive: it has no data.pkl")
        root = pickles[0][:-len("data.pkl")]
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder").strip() == b"big":
            raise UserError(f"{path} was written on a big-endian machine; that is not supported")
        storages: Dict[str, _Storage] = {}
        content = _Unpickler(io.BytesIO(archive.read(pickles[0])), path, storages).load()
        for key, storage in storages.items():
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.file_size != storage.numel * storage.kind.itemsize:
                raise UserError(f"{path} is damaged: storage {key} has {entry.file_size} bytes")
            storage.data = archive.read(entry)
    return _arrays(content)


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _read_pickle(path: Path) -> StateDict:
    """Jittor's pickles (with or without their check sum) and torch.save files from before 1.6."""
    content = path.read_bytes()
    if content.endswith(b"HCAJSLHD"):
        if hashlib.sha1(content[:-28]).digest() != content[-28:-8]:
            raise UserError(f"{path} is damaged: its SHA-1 is wrong; fetch it again")
        content = content[:-28]
    file = io.BytesIO(content)
    storages: Dict[str, _Storage] = {}
    first = _Unpickler(file, path, storages).load()
    if first != _LEGACY_MAGIC:
        return _arrays(first)
    for _ in range(2):  # protocol version; the writing machine's properties
        _Unpickler(file, path, storages).load()
    tensors = _Unpickler(file, path, storages).load()
    for key in _Unpickler(file, path, storages).load():
        storage = storages[str(key)]
        numel = int.from_bytes(file.read(8), "little")
        if numel != storage.numel:
            raise UserError(f"{path} is damaged: storage {key} has {numel} numbers")
        storage.data = file.read(numel * storage.kind.itemsize)
    return _arrays(tensors)


def _arrays(content) -> StateDict:
    """Tensors and arrays of nested containers and namespaces, dotted names joined."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a training run's checkpoint
    found: StateDict = {}
    ancestors = set()

    def visit(name: str, value) -> None:
        if isinstance(value, _Tensor):
            found[name] = value.array()
        elif isinstance(value, _NumpyArray):
            found[name] = value.value
        elif isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, dict) or type(value).__name__ == "Namespace":
            if id(value) in ancestors or len(ancestors) > 50:
                raise _Unreadable("it contains itself")
            ancestors.add(id(value))
            for key, child in (value if isinstance(value, dict) else vars(value)).items():
                if len(found) > 100_000:
                    raise _Unreadable("it has more than 100,000 tensors")
                visit(f"{name}.{key}" if name else str(key), child)
            ancestors.discard(id(value))

    visit("", content)
    if all(name.startswith("module.") for name in found):  # torch's DataParallel
        found = {name[len("module."):]: array for name, array in found.items()}
    return found


# Names


_IGNORED = re.compile(r"input_resolution|context_length|vocab_size|.*\.num_batches_tracked|(.*\.)?attn_mask"
                      r"|.*\.position_ids")
_HF_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HF_IN_BLOCK = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_HF_NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # Hugging Face's spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}


def openai_names(tensors: StateDict, path: Union[str, Path] = "the checkpoint") -> StateDict:
    """The tensors under OpenAI's names, buffers that are no weights left out."""
    tensors = {name: array for name, array in tensors.items() if not _IGNORED.fullmatch(name)}
    if any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        _refuse_other_activation(Path(path))
        tensors = _from_hugging_face(tensors)
    return tensors


def _from_hugging_face(tensors: StateDict) -> StateDict:
    """CLIPModel's names to OpenAI's: q, k, v fused, the two projections transposed.

    A name that is not CLIPModel's stays as it is, so that the check of the names lists it.
    """
    result: StateDict = {}
    split: Dict[str, Dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        block = _HF_BLOCK.fullmatch(name)
        if name in _HF_NAMES:
            result[_HF_NAMES[name]] = array.reshape(()) if name == "logit_scale" else array
        elif name == "text_projection.weight":
            result["text_projection"] = np.ascontiguousarray(array.T)
        elif name == "visual_projection.weight":
            result["visual.proj"] = np.ascontiguousarray(array.T)
        elif block:
            tower, number, part, kind = block.groups()
            prefix = ("visual." if tower == "vision" else "") + f"transformer.resblocks.{number}."
            if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                split.setdefault(f"{prefix}attn.in_proj_{kind}", {})[part[-6]] = array
            else:
                result[f"{prefix}{_HF_IN_BLOCK.get(part, part)}.{kind}"] = array
        else:
            result[name] = array
    for name, parts in split.items():
        if set(parts) == set("qkv"):  # otherwise it is reported as missing
            result[name] = np.concatenate([parts["q"], parts["k"], parts["v"]])
    return result


def _refuse_other_activation(path: Path) -> None:
    """Hugging Face's name the activation beside the weights; OpenAI's models use QuickGELU alone."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        towers = [config.get(tower) or {} for tower in ("text_config", "vision_config")]
    except (OSError, ValueError, AttributeError):
        return
    for tower in towers:
        if tower.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise UserError(f"{path} uses the activation {tower['hidden_act']} (config.json); "
                            "only OpenAI's quick_gelu is computed here")


# Shapes


@dataclass(frozen=True)
class Architecture:
    """What OpenAI's CLIP constructor takes, in its order."""

    embed_dim: int
    image_resolution: int
    vision_layers: Union[int, Tuple[int, int, int, int]]  # four numbers: a ModifiedResNet
    vision_width: int
    vision_patch_size: Optional[int]
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int


def architecture(state_dict: StateDict) -> Architecture:
    """Reads a CLIP's sizes off its tensors' shapes.

    Raises:
        UserError: tensors that no CLIP lacks are missing.
    """
    def shape(name: str, ndim: int) -> Tuple[int, ...]:
        if name not in state_dict:
            raise UserError(f"this is no CLIP checkpoint: it has no tensor {name}")
        if state_dict[name].ndim != ndim:
            raise UserError(f"this is no CLIP checkpoint: {name} has shape {state_dict[name].shape}")
        return state_dict[name].shape

    def count(pattern: str) -> int:
        return len({match.group(1) for match in (re.match(pattern, name) for name in state_dict) if match})

    def grid(tokens: int, name: str) -> int:
        side = math.isqrt(tokens - 1) if tokens else 0
        if side * side + 1 != tokens:
            raise UserError(
                f"this is no CLIP checkpoint: {name} has {tokens} positions, not a square and one")
        return side

    context_length, width = shape("positional_embedding", 2)
    if "visual.proj" in state_dict:
        vision_width, _, _, patch = shape("visual.conv1.weight", 4)
        layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
        name = "visual.positional_embedding"
        resolution = patch * grid(shape(name, 2)[0], name)
    else:
        patch = None
        vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
        layers = tuple(count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        name = "visual.attnpool.positional_embedding"
        resolution = 32 * grid(shape(name, 2)[0], name)
    if width % 64 or (patch and vision_width % 64):
        raise UserError(f"CLIP's heads are 64 wide, but its towers are {vision_width} and {width} wide")
    return Architecture(
        embed_dim=shape("text_projection", 2)[1], image_resolution=resolution, vision_layers=layers,
        vision_width=vision_width, vision_patch_size=patch, context_length=context_length,
        vocab_size=shape("token_embedding.weight", 2)[0], transformer_width=width,
        transformer_heads=width // 64, transformer_layers=count(r"transformer\.resblocks\.(\d+)\."))


def layout(sizes: Architecture) -> Dict[str, Tuple[int, ...]]:
    """Name and shape of every tensor of a CLIP of these sizes."""
    shapes: Dict[str, Tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[name + ".weight"], shapes[name + ".bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[name + ".weight"] = shapes[name + ".bias"] = (width,)

    def batch_norm(name: str, width: int) -> None:
        norm(name, width)
        shapes[name + ".running_mean"] = shapes[name + ".running_var"] = (width,)

    def transformer(prefix: str, width: int, layers: int) -> None:
        for number in range(layers):
            block = f"{prefix}transformer.resblocks.{number}."
            shapes[block + "attn.in_proj_weight"] = (3 * width, width)
            shapes[block + "attn.in_proj_bias"] = (3 * width,)
            linear(block + "attn.out_proj", width, width)
            norm(block + "ln_1", width)
            linear(block + "mlp.c_fc", width, 4 * width)
            linear(block + "mlp.c_proj", 4 * width, width)
            norm(block + "ln_2", width)

    def bottleneck(block: str, inputs: int, planes: int, downsample: bool) -> None:
        for number, (out, into, side) in enumerate(
                [(planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1)], start=1):
            shapes[f"{block}conv{number}.weight"] = (out, into, side, side)
            batch_norm(f"{block}bn{number}", out)
        if downsample:
            shapes[block + "downsample.0.weight"] = (4 * planes, inputs, 1, 1)
            batch_norm(block + "downsample.1", 4 * planes)

    width, vision = sizes.transformer_width, sizes.vision_width
    if isinstance(sizes.vision_layers, int):
        patch = sizes.vision_patch_size
        shapes["visual.conv1.weight"] = (vision, 3, patch, patch)
        shapes["visual.class_embedding"] = (vision,)
        shapes["visual.positional_embedding"] = ((sizes.image_resolution // patch) ** 2 + 1, vision)
        norm("visual.ln_pre", vision)
        transformer("visual.", vision, sizes.vision_layers)
        norm("visual.ln_post", vision)
        shapes["visual.proj"] = (vision, sizes.embed_dim)
    else:
        stem = [(vision // 2, 3), (vision // 2, vision // 2), (vision, vision // 2)]
        for number, (out, into) in enumerate(stem, start=1):
            shapes[f"visual.conv{number}.weight"] = (out, into, 3, 3)
            batch_norm(f"visual.bn{number}", out)
        inputs = vision
        for stage, blocks in enumerate(sizes.vision_layers, start=1):
            planes = vision * 2 ** (stage - 1)
            for number in range(blocks):
                bottleneck(f"visual.layer{stage}.{number}.", inputs, planes, downsample=number == 0)
                inputs = 4 * planes
        shapes["visual.attnpool.positional_embedding"] = ((sizes.image_resolution // 32) ** 2 + 1, inputs)
        for name in ("k_proj", "q_proj", "v_proj"):
            linear(f"visual.attnpool.{name}", inputs, inputs)
        linear("visual.attnpool.c_proj", inputs, sizes.embed_dim)
    transformer("", width, sizes.transformer_layers)
    shapes["token_embedding.weight"] = (sizes.vocab_size, width)
    shapes["positional_embedding"] = (sizes.context_length, width)
    norm("ln_final", width)
    shapes["text_projection"] = (width, sizes.embed_dim)
    shapes["logit_scale"] = ()
    return shapes


def check_state_dict(state_dict: StateDict) -> Architecture:
    """The sizes of a complete CLIP.

    Raises:
        UserError: lists all missing, unexpected and misshapen tensors.
    """
    sizes = architecture(state_dict)
    wanted = layout(sizes)
    problems = []
    missing = [name for name in wanted if name not in state_dict]
    unexpected = [name for name in state_dict if name not in wanted]
    misshapen = [f"{name} {tuple(state_dict[name].shape)} instead of {shape}"
                 for name, shape in wanted.items()
                 if name in state_dict and tuple(state_dict[name].shape) != shape
                 and not (shape == () and state_dict[name].size == 1)]  # Jittor has no 0-d arrays
    for label, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            problems.append(f"{label}: {', '.join(names)}")
    if problems:
        raise UserError("the checkpoint's tensors are not those of a CLIP; " + "; ".join(problems))
    return sizes


# Writing


def write_safetensors(path: Union[str, Path], state_dict: StateDict,
                      metadata: Optional[Dict[str, str]] = None) -> None:
    """Writes tensors to a .safetensors file, whole or not at all."""
    from safetensors.numpy import save
    content = save({name: np.ascontiguousarray(array).reshape(array.shape)
                   for name, array in state_dict.items()}, metadata)
    with atomic_write(path) as file:
        file.write(content)


def convert(source: Union[str, Path], target: Union[str, Path], half: bool = False) -> StateDict:
    """Rewrites any checkpoint that can be read as .safetensors under OpenAI's names.

    half: store floating-point tensors as float16; otherwise each keeps its precision.

    Returns:
        What was written.
    Raises:
        UserError: `target` is no .safetensors name; `source` is unreadable or no complete CLIP.
    """
    if Path(target).suffix != ".safetensors":
        raise UserError(f"{target} does not end in .safetensors, the one format that convert writes")
    state_dict = read_state_dict(source)
    check_state_dict(state_dict)
    state_dict["logit_scale"] = state_dict["logit_scale"].reshape(())
    if half:
        state_dict = {name: array.astype(np.float16) for name, array in state_dict.items()}
    write_safetensors(target, state_dict, {"format": "pt"})
    return state_dict
