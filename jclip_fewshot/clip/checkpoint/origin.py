"""How a checkpoint is computed, by whatever says it, in the order of certainty.

What this program or TorchScript wrote into the file; marks that OpenAI's and JCLIP's own files have; the configuration
beside it, if it is of a CLIP of these sizes; the digest of a known file. What the user says fills in what none of these
say; without that the file is refused: nothing is guessed. Configurations are open_clip's open_clip_config.json
(src/open_clip/model.py, CLIPVisionCfg and CLIPTextCfg) and Hugging Face's config.json (CLIPConfig), with the defaults
of the two libraries; what is not computed here is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from jclip_fewshot.clip.checkpoint.architecture import Architecture, Conventions, architecture, openais
from jclip_fewshot.clip.checkpoint.files import named, weight_files
from jclip_fewshot.clip.checkpoint.names import StateDict, is_jittors, unwrapped
from jclip_fewshot.clip.download import sha256
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.storage.json_files import read_json

Origin = tuple[Conventions, dict[str, Any]]  # how a CLIP is computed; what its files say of pixels, as in `Checkpoint`

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
_ONE_HEAD = openais(head_width=1, text_head_width=1)  # fits into any tower
_HIDDEN_ACT = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
               "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
_IMAGE_POOLS = {"tok": "class", "avg": "patches"}
_TEXT_POOLS = {"argmax": "highest", "eos": "end", "last": "last"}
# Keys of open_clip's configurations that are used here, that the tensors tell, or that matter in training alone; any
# other must be empty, or say what is done anyway.
_MODEL = {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_bias", "init_logit_scale",
          "cast_dtype", "output_dict"}
_TOWER = {"width", "layers", "mlp_ratio", "pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs"}
_VISION = _TOWER | {"head_width", "patch_size", "image_size", "patch_dropout", "no_ln_pre"}
_TEXT = _TOWER | {"context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "heads",
                  "pad_id", "eos_id", "no_causal_mask", "proj_bias"}
_ANYWAY = {"pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default", "approximate": "none"}


def origin_of(path: Path, tensors: StateDict, weights: StateDict, said: Mapping[str, str], activation: str = "",
              head_width: int = 0, openai: bool = False) -> Origin:
    """Return how the CLIP of a file is computed, and what its files say of pixels.

    tensors, weights: under the file's names and under OpenAI's. said: what the file says beside them.
    activation, head_width: what the user says. openai: OpenAI's conventions, with a warning, where nothing says any.
    Raise UserError if nothing says it, or if it is not computed here.
    """
    tensors, sizes = unwrapped(tensors), architecture(weights, _ONE_HEAD)
    hugging_face = "visual_projection.weight" in tensors
    found = _in_the_file(tensors, said) or _beside(weight_files(path)[0].parent, sizes, hugging_face)
    if found is None and path.is_file() and (known := KNOWN.get(sha256(path)[:8])):
        found = openais(known), {}
    if found is None:
        return _asked(path, sizes, said.get("activation", activation), head_width, openai), {}
    own = found[0].image
    for what, given, has in (("activation", activation, own.activation), ("head_width", head_width, own.head_width)):
        if given and given != has:
            warn(f"{path}: its {what} is {has} by itself or the configuration beside it; {given} is left aside")
    return found


def _in_the_file(tensors: StateDict, said: Mapping[str, str]) -> Origin | None:
    if "conventions" in tensors:  # a Jittor model of ours that is not computed as OpenAI's
        return msgspec.json.decode(tensors["conventions"].astype("uint8").tobytes(), type=Conventions), {}
    if "conventions" in said:
        return (msgspec.json.decode(said["conventions"], type=Conventions),
                msgspec.json.decode(said.get("preprocessing", "{}"), type=dict[str, Any]))
    if tensors.keys() >= _OPENAIS_MARKS or is_jittors(tensors) or any(name.endswith(".attn_mask") for name in tensors):
        return openais(), {}
    return None


def _beside(folder: Path, sizes: Architecture, hugging_face: bool) -> Origin | None:
    """By the configuration beside a file, if it is of a CLIP of these sizes; of two, that whose names the tensors have.
    """
    own = (sizes.embed_dim, sizes.vision_width, sizes.vision_layers, sizes.transformer_width, sizes.transformer_layers)
    for name in sorted(("open_clip_config.json", "config.json"), reverse=not hugging_face):
        config: dict[str, Any] = read_json(folder / name) if (folder / name).is_file() else {}
        with named(folder / name):
            if not config or sizes_said(config) != own:
                continue
            if name != "config.json":
                said = config.get("preprocess_cfg")
                return from_open_clip(config), {"preprocess_cfg": said} if said else {}
            pixels = folder / "preprocessor_config.json"
            return from_hugging_face(config), read_json(pixels) if pixels.is_file() else {}
    return None


def _asked(path: Path, sizes: Architecture, activation: str, head_width: int, openai: bool) -> Conventions:
    """By what the user says; a head's width that all released towers of this width have need not be said."""
    image = head_width or (RELEASED_HEADS.get(sizes.vision_width) if sizes.vision_patch_size else 64)
    text = 64 if sizes.transformer_width in RELEASED_TEXTS else head_width
    if openai and not (activation and image and text):
        warn(f"{path}: nothing says how it is computed; as OpenAI's own clip.load does: {activation or 'quick_gelu'}, "
             f"heads {head_width or 64} wide")
        return openais(activation, head_width)
    where = "put the config.json or open_clip_config.json that belongs to it beside it, or give "
    if not activation:
        raise UserError(
            "nothing says whether its activation is QuickGELU or GELU, and its tensors do not tell; "
            f"{where}{parameter('activation')}: quick_gelu of OpenAI's, MetaCLIP's and DFN's and what was tuned from "
            "them, gelu of LAION's and DataComp's")
    if not image or not text:
        raise UserError(f"nothing says how wide the heads of its towers are ({sizes.vision_width} and "
                        f"{sizes.transformer_width} wide); {where}{parameter('head_width')} (OpenAI's are 64)")
    return openais(activation, image, text)


def sizes_said(config: Mapping[str, Any]) -> tuple | None:
    """D, width and depth of both towers as either library's configuration has them, None where it is of no CLIP.

    They tell one model's configuration from another's.
    """
    model = config.get("model_cfg") or config
    if "vision_cfg" in model and "text_cfg" in model:
        vision, text, embed_dim = model["vision_cfg"], model["text_cfg"], model.get("embed_dim")
        width, depth = "width", "layers"
    else:
        vision, text, embed_dim = *_hugging_face_sections(config), config.get("projection_dim", 512)
        width, depth = "hidden_size", "num_hidden_layers"
        if not vision and not text and config.get("model_type") != "clip":
            return None
    layers = vision.get(depth, 12)
    return (embed_dim, vision.get(width, 768), tuple(layers) if isinstance(layers, list) else layers,
            text.get(width, 512), text.get(depth, 12))


def from_open_clip(config: Mapping[str, Any]) -> Conventions:
    """Return the conventions of an open_clip_config.json, or of one of open_clip's model_configs.

    Raise UserError, which names what is not computed here, or anything if it is of another form.
    """
    model = config.get("model_cfg") or config
    vision, text = model["vision_cfg"], model["text_cfg"]
    for section, used in ((model, _MODEL), (vision, _VISION), (text, _TEXT)):
        _refuse_others(section, used)
    if vision.get("pool_type") == "avg" and not vision.get("final_ln_after_pool"):
        raise UserError('pool_type "avg" without final_ln_after_pool is not computed here')
    text_pool = _lookup("pool_type of text_cfg", text.get("pool_type", "argmax"), _TEXT_POOLS)
    tokenizer = text.get("hf_tokenizer_name") or ""
    return msgspec.convert({
        "image": _open_clip_tower(model, vision, vision.get("head_width", 64)),
        "text": _open_clip_tower(model, text, _share(text.get("width", 512), text.get("heads", 8))),
        "pool": _lookup("pool_type of vision_cfg", vision.get("pool_type", "tok"), _IMAGE_POOLS),
        "text_pool": text_pool, "end": text.get("eos_id", 2) if text_pool == "end" else 0,
        "causal": not text.get("no_causal_mask", False),
        "tokenizer": "" if "clip-vit" in tokenizer else tokenizer}, Conventions)


def _open_clip_tower(model: Mapping, tower: Mapping, head_width: Any) -> dict[str, Any]:
    activation, how, norm = "gelu", tower.get("act_kwargs") or {}, tower.get("norm_kwargs") or {}
    if model.get("quick_gelu"):
        activation = "quick_gelu"
    elif how.get("approximate") == "tanh":
        activation, how = "gelu_tanh", {}
    _refuse_others(how)
    _refuse_others(norm, ("eps",))
    return {"activation": activation, "head_width": head_width, "eps": norm.get("eps", 1e-5)}


def from_hugging_face(config: Mapping[str, Any]) -> Conventions:
    """Return the conventions of the config.json of a CLIPModel; raise as `from_open_clip` does."""
    _lookup("model_type", config.get("model_type", "clip"), {"clip": "clip"})
    vision, text = _hugging_face_sections(config)
    end = text.get("eos_token_id", 49407)
    # transformers' modeling_clip: 2 is what OpenAI's files say, and means the largest id
    pool = {"text_pool": "highest"} if end == 2 else {"text_pool": "end", "end": end}
    return msgspec.convert({"image": _hugging_face_tower(vision, 768, 12), "text": _hugging_face_tower(text, 512, 8),
                            **pool}, Conventions)


def _hugging_face_sections(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}  # the older form
            for name in ("vision", "text")]


def _hugging_face_tower(section: Mapping, width: int, heads: int) -> dict[str, Any]:
    return {"activation": _lookup("hidden_act", section.get("hidden_act", "quick_gelu"), _HIDDEN_ACT),
            "head_width": _share(section.get("hidden_size", width), section.get("num_attention_heads", heads)),
            "eps": section.get("layer_norm_eps", 1e-5)}


def _refuse_others(section: Mapping[str, Any], used: Collection[str] = ()) -> None:
    for key, value in section.items():
        if value and key not in used and value != _ANYWAY.get(key):
            raise UserError(f"{key[:40]!a} with the value {ascii(value)[:60]} is not computed here")


def _lookup(what: str, value: Any, known: Mapping[str, str]) -> str:
    if str(value) not in known:
        raise UserError(f"{what} {ascii(value)[:60]} is not computed here, only {', '.join(known)}")
    return known[str(value)]


def _share(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise UserError(f"a width of {width} cannot be shared by {heads} heads")
    return width // heads
