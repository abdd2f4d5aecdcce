"""OpenAI's released checkpoints: found in a folder, or downloaded to it. Neither torch nor Jittor is needed here."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from jclip_fewshot.console import progress
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import fed_with, lock

_BASE = "https://openaipublic.azureedge.net/clip/models"


class Release(NamedTuple):
    file: str
    url: str
    sha256: str
    mebibytes: int


def _file_stem(name: str) -> str:
    return name.replace("/", "-").replace("@", "-")


# OpenAI's clip/clip.py, where the hash is a part of the address
RELEASED = {name: Release(f"{_file_stem(name)}.pt", f"{_BASE}/{sha256}/{_file_stem(name)}.pt", sha256, mebibytes)
             for name, mebibytes, sha256 in (
    ("RN50", 244, "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    ("RN101", 278, "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    ("RN50x4", 402, "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    ("RN50x16", 630, "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    ("RN50x64", 1290, "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    ("ViT-B/32", 338, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ("ViT-B/16", 335, "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ("ViT-L/14", 890, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    ("ViT-L/14@336px", 891, "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
)}


def available_models() -> list[str]:
    """The names of OpenAI's released models."""
    return list(RELEASED)


def released(name: str | Path) -> Release | None:
    """OpenAI's file of a name: ViT-B/32, or ViT-B-32 as JCLIP and open_clip write it; None where it is no name."""
    return next((one for one in RELEASED.values() if one.file == f"{_file_stem(str(name))}.pt"), None)


def said_of(name: str | Path, activation: str, head_width: int) -> tuple[str, int]:
    """Activation and width of the heads of a model asked for by OpenAI's name; of another, what the user says."""
    return ("quick_gelu", 64) if released(name) else (activation, head_width)


def weights_folder(given: str | Path | None = None) -> Path:
    """The folder given, else weights/ beside the package in a checkout, else in the working directory."""
    if given is not None:
        return Path(given)
    root = Path(__file__).resolve().parents[2]
    return root / "weights" if (root / "pyproject.toml").exists() else Path("weights")


def find_checkpoint(name_or_path: str | Path, folder: str | Path | None = None) -> Path:
    """Return the file of a model name, or a file or folder itself; a name that is not in `folder` yet is downloaded.

    For a name like ViT-B/32 the files ViT-B-32.pt, ViT-B-32.pkl (JCLIP's) and ViT-B-32.safetensors will do.
    Raise UserError if it is neither a name nor a file, or a download went wrong.
    """
    source, found = released(name_or_path), local_checkpoint(name_or_path, folder)
    if found is not None:
        return found
    if source is None:
        raise UserError(f"no checkpoint {name_or_path}: neither a file or folder nor one of {', '.join(RELEASED)}")
    return download(source, weights_folder(folder))


def local_checkpoint(name_or_path: str | Path, folder: str | Path | None = None) -> Path | None:
    """The file of a model name or path where it is here already; None where it is not."""
    source = released(name_or_path)
    if source is None:
        return Path(name_or_path) if Path(name_or_path).exists() else None
    file = weights_folder(folder) / source.file
    candidates = [file.with_suffix(suffix) for suffix in (".pt", ".pkl", ".safetensors")]
    return next((path for path in candidates if path.is_file()), None)


def download(source: Release, folder: str | Path, timeout: float = 30.0) -> Path:
    """Fetch a file to `folder` by way of FILE.part, which a later call goes on with; UserError if that fails."""
    target, part = Path(folder) / source.file, Path(folder) / (source.file + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab") as file:
        if not lock(file.fileno()):
            raise UserError(f"another process is downloading to {part}; wait for it")
        try:
            _fetch(source.url, file, source.file, timeout)
        except (OSError, http.client.HTTPException) as error:
            have = f"{file.tell()} bytes of it are kept in {part.name}; run again to go on"
            reason = f"{getattr(error, 'reason', None) or error}{f' ({have})' if file.tell() else ''}"
            raise UserError(f"cannot download {source.file}: {reason}; fetch {source.url}, about {source.mebibytes} "
                            f"MiB, SHA-256 {source.sha256}, and put it into {folder} as {source.file}") from None
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


def _fetch(url: str, file: Any, label: str, timeout: float) -> None:
    """Append to `file` what of `url` is not in it yet."""
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
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        file.flush()
        if total is not None and file.tell() < total:
            raise http.client.IncompleteRead(b"", total - file.tell())


def sha256(path: str | Path) -> str:
    return fed_with(path, hashlib.sha256()).hexdigest()
