"""What a CLIP's tensors do not tell: width of the heads, activation, pooling; and how configurations say it.

Files of GELU and of QuickGELU models have the same tensors, and so have those of 16 heads and of 20. A wrong guess
crashes nothing and moves every feature, so nothing is guessed: see origin.py.

Configurations: open_clip's open_clip_config.json (src/open_clip/model.py, CLIPVisionCfg and CLIPTextCfg) and Hugging
Face's config.json (CLIPConfig). Defaults are those of the two libraries. What is not computed here is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

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


def _one_of(what: str, value: Any, known: Collection[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{what} {_brief(value)} is not computed here, only {', '.join(known)}")


def _brief(value: Any) -> str:
    """A value of a file in a message: short, on one line, without control characters."""
    return ascii(value)[:60]


@dataclass(frozen=True)
class Tower:
    """How a transformer is computed; the defaults are OpenAI's."""

    activation: str = "quick_gelu"
    head_width: int = 64
    eps: float = 1e-5  # added to the variance in its norms


@dataclass(frozen=True)
class Conventions:
    """How a CLIP is computed; the defaults are OpenAI's.

    pool: what an image's row is read from, the "class" token or the mean of the "patches", in front of the last norm.
    text_pool: the token that a text's row is read from, that of the "highest" id, the first whose id is `end` ("end")
    or the "last" one. causal: text tokens see those before them alone. tokenizer: empty for CLIP's own.
    """

    image: Tower = Tower()
    text: Tower = Tower()
    pool: str = "class"
    text_pool: str = "highest"
    end: int = 0
    causal: bool = True
    tokenizer: str = ""

    def __post_init__(self) -> None:
        for tower in (self.image, self.text):
            _one_of("activation", tower.activation, ACTIVATIONS)
            if type(tower.head_width) is not int or not 0 < tower.head_width < 1 << 16:
                raise UserError(f"heads cannot be {_brief(tower.head_width)} wide")
            if type(tower.eps) not in (int, float) or not 0 < tower.eps < 1:
                raise UserError(f"a norm cannot have eps {_brief(tower.eps)}")
        _one_of("pooling of images", self.pool, _IMAGE_POOLS.values())
        _one_of("pooling of texts", self.text_pool, _TEXT_POOLS.values())
        if type(self.end) is not int or type(self.causal) is not bool or not isinstance(self.tokenizer, str):
            raise UserError("end, causal or tokenizer is of another type")

    def given(self, activation: str = "", head_width: int = 0) -> Conventions:
        """With what the user says (--activation, --head-width) in the place of its own."""
        image = Tower(activation or self.image.activation, head_width or self.image.head_width, self.image.eps)
        return replace(self, image=image, text=replace(self.text, activation=activation or self.text.activation))


OPENAI = Conventions()


def to_metadata(conventions: Conventions) -> dict[str, str]:
    """For the header of a .safetensors file."""
    return {"format": "pt", "conventions": json.dumps(asdict(conventions))}


def from_metadata(text: str) -> Conventions:
    """Return the conventions that `to_metadata` wrote; raise UserError if the text is anything else."""
    try:
        said = json.loads(text)
        return Conventions(Tower(**said.pop("image")), Tower(**said.pop("text")), **said)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError("its header's conventions are not those that this program writes") from None


def sizes_said(config: Mapping[str, Any]) -> tuple | None:
    """D, width and depth of both towers as either library's configuration has them, None where it is of no CLIP.

    They tell one model's configuration from another's.
    """
    model = _section(config, "model_cfg") or config
    if "vision_cfg" in model and "text_cfg" in model:
        vision, text, embed_dim = _section(model, "vision_cfg"), _section(model, "text_cfg"), model.get("embed_dim")
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

    Raise UserError, which names what is not computed here.
    """
    model = _section(config, "model_cfg") or config
    vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    for section, used in ((model, _MODEL), (vision, _VISION), (text, _TEXT)):
        _refuse_others(section, used)
    if vision.get("pool_type") == "avg" and not vision.get("final_ln_after_pool"):
        raise UserError('pool_type "avg" without final_ln_after_pool is not computed here')
    text_pool = _lookup("pool_type of text_cfg", text.get("pool_type", "argmax"), _TEXT_POOLS)
    tokenizer = text.get("hf_tokenizer_name") or ""
    return Conventions(
        image=_open_clip_tower(model, vision, vision.get("head_width", 64)),
        text=_open_clip_tower(model, text, _share(text.get("width", 512), text.get("heads", 8))),
        pool=_lookup("pool_type of vision_cfg", vision.get("pool_type", "tok"), _IMAGE_POOLS), text_pool=text_pool,
        end=text.get("eos_id", 2) if text_pool == "end" else 0, causal=not text.get("no_causal_mask", False),
        tokenizer="" if "clip-vit" in str(tokenizer) else tokenizer)


def _open_clip_tower(model: Mapping, tower: Mapping, head_width: Any) -> Tower:
    activation, how, norm = "gelu", _section(tower, "act_kwargs"), _section(tower, "norm_kwargs")
    if model.get("quick_gelu"):
        activation = "quick_gelu"
    elif how.get("approximate") == "tanh":
        activation, how = "gelu_tanh", {}
    _refuse_others(how)
    _refuse_others(norm, ("eps",))
    return Tower(activation, head_width, norm.get("eps", 1e-5))


def from_hugging_face(config: Mapping[str, Any]) -> Conventions:
    """Return the conventions of the config.json of a CLIPModel.

    Raise UserError, which names what is not computed here.
    """
    _one_of("model_type", config.get("model_type", "clip"), ("clip",))
    vision, text = _hugging_face_sections(config)
    end = text.get("eos_token_id", 49407)
    # transformers' modeling_clip: 2 is what OpenAI's files say, and means the largest id
    return Conventions(_hugging_face_tower(vision, 768, 12), _hugging_face_tower(text, 512, 8),
                       text_pool="highest" if end == 2 else "end", end=0 if end == 2 else end)


def _hugging_face_sections(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**_section(config, f"{name}_config"), **_section(config, f"{name}_config_dict")}  # the older form
            for name in ("vision", "text")]


def _hugging_face_tower(section: Mapping, width: int, heads: int) -> Tower:
    return Tower(_lookup("hidden_act", section.get("hidden_act", "quick_gelu"), _HIDDEN_ACT),
                 _share(section.get("hidden_size", width), section.get("num_attention_heads", heads)),
                 section.get("layer_norm_eps", 1e-5))


def _refuse_others(section: Mapping[str, Any], used: Collection[str] = ()) -> None:
    for key, value in section.items():
        if value and key not in used and value != _ANYWAY.get(key):
            raise UserError(f"{key[:40]!a} with the value {_brief(value)} is not computed here")


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{name} is no object")
    return section


def _share(width: Any, heads: Any) -> int:
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"a width of {_brief(width)} cannot be shared by {_brief(heads)} heads")
    return width // heads


def _lookup(what: str, value: Any, known: Mapping[str, str]) -> str:
    _one_of(what, value, known)
    return known[value]
