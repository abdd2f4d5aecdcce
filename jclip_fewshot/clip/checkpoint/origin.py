"""How a checkpoint is computed, by whatever says it, in the order of certainty.

What this program or TorchScript wrote into the file; marks that OpenAI's and JCLIP's own files have; the configuration
beside it, if it is of a CLIP of these sizes; the digest of a known file; the user. Otherwise the file is refused:
nothing is guessed. Configurations are open_clip's open_clip_config.json (src/open_clip/model.py, CLIPVisionCfg and
CLIPTextCfg) and Hugging Face's config.json (CLIPConfig), with their defaults.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from jclip_fewshot.clip.checkpoint.architecture import Architecture, Conventions, architecture, openais
from jclip_fewshot.clip.checkpoint.files import weight_files
from jclip_fewshot.clip.checkpoint.names import StateDict, is_jittors, unwrapped
from jclip_fewshot.clip.download import RELEASED, sha256
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.storage.files import named
from jclip_fewshot.storage.json_files import read_json

Origin = tuple[Conventions, dict[str, Any]]  # how a CLIP is computed; what its files say of pixels, as in `Checkpoint`

# First digits of the SHA-256 of known files with heads 64 wide: OpenAI's; those of open_clip's release v0.2-weights,
# whose names end in them; the two of the built-in contest.
KNOWN = {
    **{one.sha256[:8]: "quick_gelu" for one in RELEASED.values()},
    **dict.fromkeys(("455df137", "f000538c", "3e04b30e", "d867053b", "46683a32", "baae9bc2", "fa39351b"), "quick_gelu"),
    **dict.fromkeys(("af8dbd0c", "00efa78f", "55e67d44", "8fb26589", "699c4b84", "69988bb6", "3d133497"), "gelu"),
}
# Widths of released image towers and of their heads (open_clip's model_configs), and of text towers with heads 64 wide.
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
_USED = {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_bias", "init_logit_scale",
         "cast_dtype", "output_dict", "width", "heads", "layers", "mlp_ratio", "hidden_act", "pool_type", "head_width",
         "final_ln_after_pool", "act_kwargs", "norm_kwargs", "patch_size", "image_size", "patch_dropout", "no_ln_pre",
         "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "eos_id",
         "no_causal_mask", "proj_bias"}
_ANYWAY = {"model_type": "clip", "pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default",
           "approximate": "none"}


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
    """By a configuration beside the file, of a CLIP of these sizes; of two, that whose names the tensors have."""
    own = (sizes.embed_dim, sizes.vision_width, sizes.vision_layers, sizes.transformer_width, sizes.transformer_layers)
    for name in sorted(("open_clip_config.json", "config.json"), reverse=not hugging_face):
        config: dict[str, Any] = read_json(folder / name) if (folder / name).is_file() else {}
        with named(folder / name):
            model = open_clips_form(config)
            if not model or _sizes(model) != own:
                continue
            pixels = {"preprocess_cfg": config["preprocess_cfg"]} if config.get("preprocess_cfg") else {}
            beside = folder / "preprocessor_config.json"
            if name == "config.json":
                pixels = read_json(beside) if beside.is_file() else {}
            return conventions_said(model), pixels
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


def open_clips_form(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the model_cfg of an open_clip_config.json, or a CLIPModel's config.json in that form; empty if neither."""
    model = config.get("model_cfg") or config
    if "vision_cfg" in model and "text_cfg" in model:
        return {**model, "vision_cfg": {"width": 768, "layers": 12, **model["vision_cfg"]},
                "text_cfg": {"width": 512, "heads": 8, "layers": 12, **model["text_cfg"]}}
    vision, text = ({**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}  # older
                    for name in ("vision", "text"))
    if not vision and not text and config.get("model_type") != "clip":
        return {}

    def tower(section: Mapping, width: int, heads: int) -> dict[str, Any]:
        return {"width": section.get("hidden_size", width), "heads": section.get("num_attention_heads", heads),
                "layers": section.get("num_hidden_layers", 12), "hidden_act": section.get("hidden_act", "quick_gelu"),
                "norm_kwargs": {"eps": section.get("layer_norm_eps", 1e-5)}}

    end = text.get("eos_token_id", 49407)
    pool = "argmax" if end == 2 else "eos"  # transformers' modeling_clip: 2 is in OpenAI's files, and means the largest
    return {"model_type": config.get("model_type", "clip"), "embed_dim": config.get("projection_dim", 512),
            "vision_cfg": tower(vision, 768, 12), "text_cfg": {**tower(text, 512, 8), "pool_type": pool, "eos_id": end}}


def _sizes(model: Mapping[str, Any]) -> tuple:
    """D, width and depth of both towers, which tell one model's configuration from another's."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    layers = tuple(vision["layers"]) if isinstance(vision["layers"], list) else vision["layers"]
    return model.get("embed_dim"), vision["width"], layers, text["width"], text["layers"]


def conventions_said(model: Mapping[str, Any]) -> Conventions:
    """Return the conventions of `open_clips_form`. Raise UserError if they are not computed here, or anything."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    for section in (model, vision, text):
        _refuse_others(section, _USED)
    if vision.get("pool_type") == "avg" and not vision.get("final_ln_after_pool"):
        raise UserError('pool_type "avg" without final_ln_after_pool is not computed here')
    text_pool = _lookup("pool_type of text_cfg", text.get("pool_type", "argmax"), _TEXT_POOLS)
    tokenizer = text.get("hf_tokenizer_name") or ""
    return msgspec.convert({
        "image": _tower(model, vision), "text": _tower(model, text),
        "pool": _lookup("pool_type of vision_cfg", vision.get("pool_type", "tok"), _IMAGE_POOLS),
        "text_pool": text_pool, "end": text.get("eos_id", 2) if text_pool == "end" else 0,
        "causal": not text.get("no_causal_mask", False),
        "tokenizer": "" if "clip-vit" in tokenizer else tokenizer}, Conventions)


def _tower(model: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    activation, how, norm = "gelu", tower.get("act_kwargs") or {}, tower.get("norm_kwargs") or {}
    if "hidden_act" in tower:
        activation = _lookup("hidden_act", tower["hidden_act"], _HIDDEN_ACT)
    elif model.get("quick_gelu"):
        activation = "quick_gelu"
    elif how.get("approximate") == "tanh":
        activation, how = "gelu_tanh", {}
    _refuse_others(how)
    _refuse_others(norm, ("eps",))
    head_width = tower.get("head_width", 64)
    if "heads" in tower:
        width, heads = tower["width"], tower["heads"]
        if heads < 1 or width % heads:
            raise UserError(f"a width of {width} cannot be shared by {heads} heads")
        head_width = width // heads
    return {"activation": activation, "head_width": head_width, "eps": norm.get("eps", 1e-5)}


def _refuse_others(section: Mapping[str, Any], used: Collection[str] = ()) -> None:
    for key, value in section.items():
        if value and key not in used and value != _ANYWAY.get(key):
            raise UserError(f"{key[:40]!a} with the value {ascii(value)[:60]} is not computed here")


def _lookup(what: str, value: Any, known: Mapping[str, str]) -> str:
    if str(value) not in known:
        raise UserError(f"{what} {ascii(value)[:60]} is not computed here, only {', '.join(known)}")
    return known[str(value)]
