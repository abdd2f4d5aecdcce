"""Encoders: pixels or tokens in, NumPy rows out, not normalised. They know no methods and no paths of images.

A new family is a module with two functions and a line in FAMILIES: `recognises(path)` looks at names and headers alone,
and the first family that says yes opens it, `open(path, name, options)`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jclip_fewshot.clip.checkpoint import read_tensors
from jclip_fewshot.clip.download import find_checkpoint
from jclip_fewshot.encoders import clip_encoder, onnx_encoder, resnet
from jclip_fewshot.encoders.base import Encoder, Options
from jclip_fewshot.errors import UserError

# In order: a folder with a CLIP's weights and ONNX files is taken as a CLIP.
FAMILIES: dict[str, tuple[Callable[[Path], bool], Callable[[Path, str, Options], Encoder]]] = {
    "CLIP": (clip_encoder.recognises, clip_encoder.open_clip),
    "ResNet": (resnet.recognises, resnet.ResNetEncoder),
    "ONNX": (onnx_encoder.recognises, onnx_encoder.OnnxEncoder),
}


def family_of(path: Path) -> str:
    """Return the family that a file or a folder belongs to; raise UserError if to none, or if it cannot be read."""
    trouble = None  # of a file that one family cannot read, and another might
    for name, (recognises, _) in FAMILIES.items():
        try:
            if recognises(path):
                return name
        except UserError as error:
            trouble = trouble or error
    if trouble is not None:
        raise trouble
    read_tensors(path, outline=True)  # says of a folder what it lacks
    raise UserError(f"{path} is neither a CLIP (both its towers) nor a ResNet of torchvision's layout (supervised, "
                    "MoCo v2 or v3) nor a folder of ONNX files")


def open_encoder(name_or_path: str | Path, *, download_root: str | Path | None = None, **options: Any) -> Encoder:
    """Open a released CLIP by its name, or a file or a folder of any family; raise UserError if there is none such.

    download_root: where a model given by name is looked for, and downloaded to. options: see `Options`.
    """
    path = find_checkpoint(name_or_path, download_root)
    return FAMILIES[family_of(path)][1](path, str(name_or_path), Options(**options))
