"""What a CLIP's tensors do not tell: width of the heads, activation, pooling; and how configurations say it.

Files of GELU and of QuickGELU models have the same tensors, and so have those of 16 heads and of 20. A wrong guess
crashes nothing and moves every feature, so nothing is guessed: see origin.py.

Configurations: open_clip's open_clip_config.json (src/open_clip/model.py, CLIPVisionCfg and CLIPTextCfg) and Hugging
Face's config.json (CLIPConfig). Defaults are those of the two libraries. What is not computed here is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import msgspec

from jclip_fewshot.errors import UserError

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")  # x sigmoid(1.702 x); x Φ(x); its approximation by tanh
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


class Tower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a transformer is computed; the defaults are OpenAI's."""

    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    head_width: Annotated[int, msgspec.Meta(gt=0, lt=1 << 16)] = 64
    # added to the variance in its norms; gt=0 lets 0 pass once Jittor's compiler flags have rounded tiny numbers to 0
    eps: Annotated[float, msgspec.Meta(ge=1e-30, lt=1)] = 1e-5


class Conventions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a CLIP is computed; the defaults are OpenAI's.

    pool: what an image's row is read from, the "class" token or the mean of the "patches", in front of the last norm.
    text_pool: the token that a text's row is read from, that of the "highest" id, the first whose id is `end` ("end")
    or the "last" one. causal: text tokens see those before them alone. tokenizer: empty for CLIP's own.
    """

    image: Tower
    text: Tower
    pool: Literal["class", "patches"] = "class"
    text_pool: Literal["highest", "end", "last"] = "highest"
    end: int = 0
    causal: bool = True
    tokenizer: str = ""


OPENAI = Conventions(Tower(), Tower())


def openais(activation: str = "", head_width: int = 0, text_head_width: int = 0) -> Conventions:
    """OpenAI's conventions, with what the user says (--activation, --head-width) in the place of their own."""
    activation = activation or OPENAI.image.activation
    return Conventions(Tower(activation, head_width or 64), Tower(activation, text_head_width or 64))  # type: ignore


def to_metadata(conventions: Conventions) -> dict[str, str]:
    """For the header of a .safetensors file; msgspec reads it back."""
    return {"format": "pt", "conventions": json.dumps(msgspec.to_builtins(conventions))}


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
