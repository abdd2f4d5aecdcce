"""OpenAI's released checkpoints: found in a folder, or downloaded to it. Neither torch nor Jittor is needed here."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jclip_fewshot.console import progress
from jclip_fewshot.errors import UserError

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


@dataclass(frozen=True)
class Release:
    """One of OpenAI's files: where it is, what it hashes to, about how large it is."""

    file: str
    url: str
    sha256: str
    mebibytes: int | None = None


def available_models() -> list[str]:
    """The names of OpenAI's released models."""
    return list(_RELEASED)


def release(name: str) -> Release:
    """The released file of a model name."""
    file, sha256, mebibytes = _RELEASED[name]
    return Release(file, f"{_BASE}/{sha256}/{file}", sha256, mebibytes)


def released_digest(path: str | Path) -> str | None:
    """The SHA-256 that a file of this name has if it is OpenAI's; None where they released none of that name."""
    return {file: sha for file, sha, _ in _RELEASED.values()}.get(Path(path).name)


def weights_folder() -> Path:
    """weights/ beside the package in a checkout, else in the working directory."""
    root = Path(__file__).resolve().parents[2]
    return root / "weights" if (root / "pyproject.toml").exists() else Path("weights")


def find_checkpoint(name_or_path: str | Path, folder: str | Path | None = None) -> Path:
    """The file of a model name, or a file or folder itself; a name that is not in `folder` yet is downloaded to it.

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
        raise UserError(f"no checkpoint {name_or_path}: neither a file or folder nor one of {', '.join(_RELEASED)}")
    return download(release(name), Path(folder) if folder is not None else weights_folder())


def local_checkpoint(name_or_path: str | Path, folder: str | Path | None = None) -> Path | None:
    """The file of a model name or path where it is here already; None where it is not."""
    name = _released_name(str(name_or_path))
    if name is None:
        return Path(name_or_path) if Path(name_or_path).exists() else None
    folder = Path(folder) if folder is not None else weights_folder()
    candidates = [folder / (_file_stem(name) + suffix) for suffix in (".pt", ".pkl", ".safetensors")]
    return next((path for path in candidates if path.is_file()), None)


def is_released(name: str | Path) -> bool:
    """Whether it is the name of one of OpenAI's models."""
    return _released_name(str(name)) is not None


def _released_name(name: str) -> str | None:
    """The released model that `name` means: ViT-B/32, or ViT-B-32 as JCLIP and open_clip write it."""
    return name if name in _RELEASED else {_file_stem(known): known for known in _RELEASED}.get(name)


def _file_stem(name: str) -> str:
    return Path(_RELEASED[name][0]).stem


def download(source: Release, folder: str | Path, timeout: float = 30.0) -> Path:
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


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
