"""How a checkpoint is computed, by whatever says it: the file, a configuration beside it, its digest, the user.

The order is that of certainty: what this program or TorchScript wrote into the file; marks that OpenAI's and JCLIP's
own files have; the configuration beside it, if it is of a CLIP of these sizes; the digest of a known file. What the
user says fills in what none of these say; without that the file is refused: nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jclip_fewshot.clip.checkpoint.architecture import Architecture, architecture
from jclip_fewshot.clip.checkpoint.conventions import (
    ACTIVATIONS,
    OPENAI,
    Conventions,
    Tower,
    from_hugging_face,
    from_metadata,
    from_open_clip,
)
from jclip_fewshot.clip.checkpoint.files import weight_files
from jclip_fewshot.clip.checkpoint.names import StateDict, is_hugging_face, is_jittors, unwrapped
from jclip_fewshot.clip.download import sha256
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.json_files import read_json

# First digits of the SHA-256 of well-known files with heads 64 wide. OpenAI's, and those on which open_clip's release
# page has its v0.2-weights, whose names end in these digits; the two of the built-in contest.
KNOWN = {
    **dict.fromkeys(("afeb0e10", "8fa8567b", "7e526bd1", "52378b40", "be1cfb55", "40d36571", "5806e77c", "b8cca3fd",
                     "3035c92b"), "quick_gelu"),
    **dict.fromkeys(("455df137", "f000538c", "3e04b30e", "d867053b", "46683a32"), "quick_gelu"),
    **dict.fromkeys(("af8dbd0c", "00efa78f", "55e67d44", "8fb26589", "699c4b84", "69988bb6", "3d133497"), "gelu"),
    **dict.fromkeys(("baae9bc2", "fa39351b"), "quick_gelu"),
}
# Widths of released image towers and of their heads (open_clip's model_configs), and of released text towers, whose
# heads are 64 wide. A tower of another width must say.
RELEASED_HEADS = {**dict.fromkeys((384, 512, 640, 768, 896, 1024), 64), 1280: 80, 1408: 88, 1664: 104, 1792: 112}
RELEASED_TEXTS = (256, 384, 512, 640, 768, 1024, 1280)
_OPENAIS_MARKS = {"input_resolution", "context_length", "vocab_size"}


def configuration(path: Path, tensors: StateDict, weights: StateDict, said: Mapping[str, str]) -> dict[str, str]:
    """The texts of the configuration beside a file, if it is of a CLIP of these sizes: {file name: JSON}, else empty.

    Where both libraries' are there, that of the one whose names the tensors have. A file that says itself how it is
    computed needs none.
    """
    if _in_the_file(path, tensors, said) is not None:
        return {}
    folder = weight_files(path)[0].parent
    kinds = [("open_clip_config.json",), ("config.json", "preprocessor_config.json")]
    if is_hugging_face(unwrapped(tensors, path)):
        kinds.reverse()
    for names in kinds:
        if (folder / names[0]).is_file() and _sizes_said(read_json(folder / names[0])) == _sizes(weights):
            return {name: json.dumps(read_json(folder / name)) for name in names if (folder / name).is_file()}
    return {}


def preprocessing_of(said: Mapping[str, str]) -> dict[str, Any]:
    """What a file, or the configuration beside it, says of pixels; empty where it says nothing.

    Raises:
        UserError: no JSON object in a header of ours.
    """
    if "open_clip_config.json" in said:
        config = json.loads(said["open_clip_config.json"])
        return {"preprocess_cfg": config["preprocess_cfg"]} if config.get("preprocess_cfg") else {}
    try:
        found = json.loads(said.get("preprocessing", said.get("preprocessor_config.json", "{}")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("its header's preprocessing is not that which this program writes")
    return found


def conventions_of(path: Path, tensors: StateDict, weights: StateDict, said: Mapping[str, str], activation: str = "",
                   head_width: int = 0, openai: bool = False) -> Conventions:
    """How the CLIP of a file is computed.

    tensors, weights: under the file's names and under OpenAI's. said: what the file and `configuration` say.
    activation, head_width: what the user says. openai: OpenAI's conventions, with a warning, where nothing says any.
    Raises:
        UserError: nothing says it, or it is not computed here.
    """
    if activation and activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    found = _in_the_file(path, tensors, said) or _beside(path, said)
    if found is None:
        known = KNOWN.get(sha256(path)[:8]) if path.is_file() else None
        found = OPENAI.given(known) if known else None
    if found is None:
        return _asked(path, architecture(weights, _ONE_HEAD), said.get("activation", activation), head_width, openai)
    for what, given, own in (("activation", activation, found.image.activation),
                             ("head_width", head_width, found.image.head_width)):
        if given and given != own:
            warn(f"{path}: its {what} is {own} by itself or the configuration beside it; {given} is left aside")
    return found


_ONE_HEAD = Conventions(Tower(head_width=1), Tower(head_width=1))  # fits into any tower


def _in_the_file(path: Path, tensors: StateDict, said: Mapping[str, str]) -> Conventions | None:
    plain = unwrapped(tensors, path)
    try:
        if "conventions" in plain:  # a Jittor model of ours that is not computed as OpenAI's
            return from_metadata(plain["conventions"].astype("uint8").tobytes().decode("utf-8", "replace"))
        if "conventions" in said:
            return from_metadata(said["conventions"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if plain.keys() >= _OPENAIS_MARKS or is_jittors(plain) or any(name.endswith(".attn_mask") for name in plain):
        return OPENAI
    return None


def _beside(path: Path, said: Mapping[str, str]) -> Conventions | None:
    for name, read in (("open_clip_config.json", from_open_clip), ("config.json", from_hugging_face)):
        if name in said:
            try:
                return read(json.loads(said[name]))
            except UserError as error:
                raise UserError(f"{weight_files(path)[0].parent / name}: {error}") from None
    return None


def _sizes(weights: StateDict) -> tuple:
    """What tells one model's configuration from another's: depths and widths of both towers."""
    sizes = architecture(weights, _ONE_HEAD)
    return (sizes.embed_dim, sizes.vision_width, sizes.vision_layers, sizes.transformer_width,
            sizes.transformer_layers)


def _sizes_said(config: Mapping[str, Any]) -> tuple | None:
    """The same as a configuration has it; None where it is that of no CLIP. Defaults are those of the libraries."""
    model = config.get("model_cfg", config)
    if not isinstance(model, dict):
        return None
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    if isinstance(vision, dict) and isinstance(text, dict):
        layers = vision.get("layers", 12)
        return (model.get("embed_dim"), vision.get("width", 768), tuple(layers) if isinstance(layers, list) else layers,
                text.get("width", 512), text.get("layers", 12))
    sections = [{**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}
                for name in ("vision", "text") if isinstance(config.get(f"{name}_config") or {}, dict)]
    if len(sections) < 2 or not any(sections) and config.get("model_type") != "clip":
        return None
    vision, text = sections
    return (config.get("projection_dim", 512), vision.get("hidden_size", 768), vision.get("num_hidden_layers", 12),
            text.get("hidden_size", 512), text.get("num_hidden_layers", 12))


def _asked(path: Path, sizes: Architecture, activation: str, head_width: int, openai: bool) -> Conventions:
    """By what the user says; a head's width that all released towers of this width have need not be said."""
    image = head_width or (RELEASED_HEADS.get(sizes.vision_width) if sizes.vision_patch_size else 64)
    text = 64 if sizes.transformer_width in RELEASED_TEXTS else head_width
    if openai and not (activation and image and text):
        warn(f"{path}: nothing says how it is computed; as OpenAI's own clip.load does: {activation or 'quick_gelu'}, "
             f"heads {head_width or 64} wide")
        return OPENAI.given(activation, head_width)
    if not activation:
        raise UserError(
            f"{path}: nothing says whether its activation is QuickGELU or GELU, and its tensors do not tell; put the "
            "config.json or open_clip_config.json that belongs to it beside it, or say with --activation: quick_gelu "
            "of OpenAI's, MetaCLIP's and DFN's and what was tuned from them, gelu of LAION's and DataComp's")
    if not image or not text:
        raise UserError(
            f"{path}: nothing says how wide the heads of its towers are ({sizes.vision_width} and "
            f"{sizes.transformer_width} wide); say with --head-width (OpenAI's are 64), or put the config.json or "
            "open_clip_config.json that belongs to it beside it")
    conventions = OPENAI.given(activation, image)
    return replace(conventions, text=replace(conventions.text, head_width=text))
