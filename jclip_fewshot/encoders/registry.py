"""The families of encoders: which one a model belongs to, and how it is opened.

A new family is a module with two functions and a line in FAMILIES: `recognises(path)` looks at names and headers alone,
and the first family that says yes opens it, `open(path, name, options)`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jclip_fewshot.clip.checkpoint import read_state_dict
from jclip_fewshot.clip.checkpoint.architecture import NoClip, architecture
from jclip_fewshot.clip.download import find_checkpoint
from jclip_fewshot.encoders import clip_encoder, onnx_encoder, resnet
from jclip_fewshot.encoders.base import Encoder, Options
from jclip_fewshot.errors import UserError


class Family(NamedTuple):
    """One kind of encoders."""

    recognises: Callable[[Path], bool]
    open: Callable[[Path, str, Options], Encoder]


# The first that recognises a model opens it: a folder with a CLIP's weights and ONNX files is taken as a CLIP.
FAMILIES = {
    "CLIP": Family(clip_encoder.recognises, clip_encoder.open_clip),
    "ResNet": Family(resnet.recognises, resnet.open_resnet),
    "ONNX": Family(onnx_encoder.recognises, onnx_encoder.open_onnx),
}


def family_of(path: Path) -> str:
    """Return the name of the family that a file or a folder belongs to.

    Raise UserError if it belongs to none, or cannot be read.
    """
    trouble = None  # of a file that one family cannot read, and another might
    for name, family in FAMILIES.items():
        try:
            if family.recognises(path):
                return name
        except UserError as error:
            trouble = trouble or error
    if trouble is not None:
        raise trouble
    try:
        architecture(read_state_dict(path, outline=True))
    except NoClip as error:
        raise UserError(f"{path} is neither a CLIP ({error}) nor a ResNet of torchvision's layout (supervised, MoCo v2 "
                        "or v3) nor a folder of ONNX files") from None
    raise UserError(f"{path} has a part of a CLIP's tensors alone")


def open_encoder(name_or_path: str | Path, *, download_root: str | Path | None = None, **options: Any) -> Encoder:
    """Open a model of any family, by the name of a released CLIP, a file or a folder.

    download_root: where a model given by name is looked for, and downloaded to. options: see `Options`.
    Raise UserError if there is no such model, or it is of no known family or damaged.
    """
    path = find_checkpoint(name_or_path, download_root)
    return FAMILIES[family_of(path)].open(path, str(name_or_path), Options(**options))
