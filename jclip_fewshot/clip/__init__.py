"""CLIP in Jittor, with OpenAI's and JCLIP's calls.

    from jclip_fewshot import clip
    model, preprocess = clip.load("ViT-B/32")
    image = preprocess(Image.open("CLIP.png")).unsqueeze(0)
    text = clip.tokenize(["a diagram", "a dog", "a cat"])
    logits_per_image, logits_per_text = model(image, text)

Tokenizer, preprocessing and checkpoint reading work without Jittor, which starts with the first `load` or `tokenize`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jclip_fewshot.backend import jt
    from jclip_fewshot.clip.model import CLIP

__all__ = ["available_models", "build_model", "convert", "find_checkpoint", "image_array", "load",
           "read_state_dict", "token_array", "tokenize"]

_MODULES = {"image_array": "preprocess", "token_array": "tokenizer", "available_models": "download",
            "find_checkpoint": "download", "convert": "checkpoint", "read_state_dict": "checkpoint"}


def __getattr__(name: str) -> Any:
    # late, so that a decode worker, which wants preprocess.py, loads neither tokenizer nor downloader
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name_or_path: str | Path, device: str | None = None, download_root: str | Path | None = None,
         dtype: str = "float32", activation: str = "", head_width: int = 0) -> tuple[CLIP, Callable]:
    """Return a frozen CLIP, and its preprocessing of a PIL image to a Var (3, size, size), OpenAI's at its resolution.

    name_or_path: one of `available_models()`, or a checkpoint file or folder of any format that `read_clip` knows.
    device: "cpu", "cuda" or None for the one that Jittor runs on. dtype: see `build_model`.
    download_root: where a model given by name is looked for, and downloaded to (default: weights/).
    activation, head_width: how it is computed where nothing in or beside the file says it; without them as OpenAI's
    (QuickGELU, heads 64 wide), with a warning.
    Raise UserError if there is no such model, no network to download from, or a damaged or unsupported checkpoint.
    """
    from jclip_fewshot.clip.checkpoint import read_clip
    from jclip_fewshot.clip.download import find_checkpoint, said_of
    from jclip_fewshot.clip.preprocess import image_array
    from jclip_fewshot.console import warn
    path, how = find_checkpoint(name_or_path, download_root), said_of(name_or_path, activation, head_width)
    weights, sizes, said = read_clip(path, *how, openai=True)
    if said:
        warn(f"{name_or_path}: preprocess does as OpenAI's; the model's own files may want other pixels, which "
             "encoders.open_encoder makes")
    from jclip_fewshot.backend import runtime
    runtime.start(device)
    model = build_model(weights, dtype, sizes.conventions)
    size = model.visual.input_resolution
    return model, lambda image: runtime.jt.array(image_array(image, size))


def build_model(state_dict: dict, dtype: str = "float32", *conventions: Any) -> CLIP:
    """See `model.build_model`, which starts Jittor when it is imported."""
    from jclip_fewshot.clip.model import build_model as build
    return build(state_dict, dtype, *conventions)


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> jt.Var:
    """`token_array` as a Var: (B, context_length) int32."""
    from jclip_fewshot.backend import jt
    from jclip_fewshot.clip.tokenizer import token_array
    return jt.array(token_array(texts, context_length, truncate))
