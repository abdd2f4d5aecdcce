"""What a CLIP is: its sizes, by its tensors' shapes; the tensors of such a CLIP; and what tensors do not tell.

Files of GELU and of QuickGELU models have the same tensors, and so have those of 16 heads and of 20. A wrong guess
crashes nothing and moves every feature, so nothing is guessed: see origin.py.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from jclip_fewshot.clip.checkpoint.names import StateDict
from jclip_fewshot.errors import UserError

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")  # x sigmoid(1.702 x); x Φ(x); its approximation by tanh
MOST_LISTED = 40  # names of a kind in a message


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
    activation = activation or "quick_gelu"
    if activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    return Conventions(Tower(activation, head_width or 64), Tower(activation, text_head_width or 64))  # type: ignore


def to_metadata(conventions: Conventions) -> dict[str, str]:
    """For the header of a .safetensors file; msgspec reads it back."""
    return {"format": "pt", "conventions": json.dumps(msgspec.to_builtins(conventions))}


@dataclass(frozen=True)
class Architecture:
    """What OpenAI's CLIP constructor takes but heads, in its order; behind that, in what other CLIPs differ.

    vision_hidden, transformer_hidden: width inside the MLPs; 0 for four times the tower's. norm_before: whether a norm
    stands in front of the image tower's blocks. projection_bias: whether the texts' projection adds one.
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, int, int, int]  # four numbers: a ModifiedResNet
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_layers: int
    vision_hidden: int = 0
    transformer_hidden: int = 0
    norm_before: bool = True
    projection_bias: bool = False
    conventions: Conventions = OPENAI

    @property
    def stages(self) -> tuple[int, ...]:
        """How many blocks the image tower has: a ViT in one stage, a ModifiedResNet in four."""
        return (self.vision_layers,) if isinstance(self.vision_layers, int) else self.vision_layers

    @property
    def vision_heads(self) -> int:
        """H of the image tower; of a ModifiedResNet's last pool."""
        width = self.vision_width if self.vision_patch_size else self.vision_width * 32
        return width // self.conventions.image.head_width


def architecture(state_dict: StateDict, conventions: Conventions = OPENAI) -> Architecture:
    """Return a CLIP's sizes by its tensors' shapes. Raise UserError if it is none, or its heads do not fit."""
    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state_dict:
            raise UserError(f"this is no CLIP checkpoint: it has no tensor {name}")
        if state_dict[name].ndim != ndim or 0 in state_dict[name].shape:
            raise UserError(f"this is no CLIP checkpoint: {name} has shape {state_dict[name].shape}")
        return state_dict[name].shape

    def count(pattern: str) -> int:
        return len({match[1] for match in (re.match(pattern, name) for name in state_dict) if match})

    def hidden(tower: str, width: int) -> int:
        """0 for the usual one, so that such a CLIP's sizes equal OpenAI's."""
        bias = state_dict.get(f"{tower}transformer.resblocks.0.mlp.c_fc.bias")
        return 0 if bias is None or bias.size == 4 * width else bias.size

    context_length, width = shape("positional_embedding", 2)
    patch: int | None = None
    if "visual.proj" in state_dict:
        vision_width, _, _, patch = shape("visual.conv1.weight", 4)
        stages = [count(r"visual\.transformer\.resblocks\.(\d+)\.")]
        positions = "visual.positional_embedding"
    else:
        vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
        stages = [count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
        positions = "visual.attnpool.positional_embedding"
    depth = count(r"transformer\.resblocks\.(\d+)\.")
    if not depth or not all(stages):
        raise UserError("this is no CLIP checkpoint: a tower of it has no blocks")
    for tower, how in ((vision_width if patch else 32 * vision_width, conventions.image), (width, conventions.text)):
        if how.head_width < 1 or tower % how.head_width:
            raise UserError(f"heads {how.head_width} wide do not fit into a tower that is {tower} wide")
    return Architecture(
        embed_dim=shape("text_projection", 2)[1],
        image_resolution=(patch or 32) * math.isqrt(shape(positions, 2)[0] - 1),  # but for the class token a square
        vision_layers=stages[0] if patch else tuple(stages),  # type: ignore[arg-type]  # four
        vision_width=vision_width, vision_patch_size=patch, context_length=context_length,
        vocab_size=shape("token_embedding.weight", 2)[0], transformer_width=width, transformer_layers=depth,
        vision_hidden=hidden("visual.", vision_width), transformer_hidden=hidden("", width),
        norm_before=patch is None or "visual.ln_pre.weight" in state_dict,
        projection_bias="text_projection_bias" in state_dict, conventions=conventions)


Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv_shapes(conv: str, norm: str, outputs: int, inputs: int, side: int) -> Shapes:
    """A convolution without bias, and the batch norm behind it."""
    return {f"{conv}.weight": (outputs, inputs, side, side), **_norm(norm, outputs),
            f"{norm}.running_mean": (outputs,), f"{norm}.running_var": (outputs,)}


def _transformer(prefix: str, width: int, layers: int, hidden: int) -> Shapes:
    shapes: Shapes = {}
    for number in range(layers):
        block = f"{prefix}transformer.resblocks.{number}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,),
                   **_linear(f"{block}attn.out_proj", width, width), **_norm(f"{block}ln_1", width),
                   **_linear(f"{block}mlp.c_fc", width, hidden or 4 * width),
                   **_linear(f"{block}mlp.c_proj", hidden or 4 * width, width), **_norm(f"{block}ln_2", width)}
    return shapes


def _vit(sizes: Architecture, patch: int) -> Shapes:
    width = sizes.vision_width
    return {"visual.conv1.weight": (width, 3, patch, patch), "visual.class_embedding": (width,),
            "visual.positional_embedding": ((sizes.image_resolution // patch) ** 2 + 1, width),
            **(_norm("visual.ln_pre", width) if sizes.norm_before else {}),
            **_transformer("visual.", width, sizes.stages[0], sizes.vision_hidden), **_norm("visual.ln_post", width),
            "visual.proj": (width, sizes.embed_dim)}


def bottlenecks(prefix: str, inputs: int, stages: Sequence[tuple[int, int]]) -> Shapes:
    """A ResNet behind its stem, which gives `inputs` channels; stages: how many blocks, and their inner channels."""
    shapes: Shapes = {}
    for stage, (blocks, planes) in enumerate(stages, start=1):
        for block in (f"{prefix}layer{stage}.{number}." for number in range(blocks)):
            shapes |= conv_shapes(f"{block}conv1", f"{block}bn1", planes, inputs, 1)
            shapes |= conv_shapes(f"{block}conv2", f"{block}bn2", planes, planes, 3)
            shapes |= conv_shapes(f"{block}conv3", f"{block}bn3", 4 * planes, planes, 1)
            if block.endswith(".0."):
                shapes |= conv_shapes(f"{block}downsample.0", f"{block}downsample.1", 4 * planes, inputs, 1)
            inputs = 4 * planes
    return shapes


def _resnet(sizes: Architecture) -> Shapes:
    shapes: Shapes = {}
    width = sizes.vision_width
    for number, (out, into) in enumerate([(width // 2, 3), (width // 2, width // 2), (width, width // 2)], start=1):
        shapes |= conv_shapes(f"visual.conv{number}", f"visual.bn{number}", out, into, 3)
    shapes |= bottlenecks("visual.", width, [(blocks, width * 2 ** stage) for stage, blocks in enumerate(sizes.stages)])
    inputs = 32 * width
    shapes["visual.attnpool.positional_embedding"] = ((sizes.image_resolution // 32) ** 2 + 1, inputs)
    for name in ("k_proj", "q_proj", "v_proj"):
        shapes |= _linear(f"visual.attnpool.{name}", inputs, inputs)
    return shapes | _linear("visual.attnpool.c_proj", inputs, sizes.embed_dim)


def layout(sizes: Architecture) -> Shapes:
    """Name and shape of every tensor of a CLIP of these sizes."""
    width = sizes.transformer_width
    return {**(_vit(sizes, sizes.vision_patch_size) if sizes.vision_patch_size else _resnet(sizes)),
            **_transformer("", width, sizes.transformer_layers, sizes.transformer_hidden),
            "token_embedding.weight": (sizes.vocab_size, width), "positional_embedding": (sizes.context_length, width),
            **_norm("ln_final", width), "text_projection": (width, sizes.embed_dim),
            **({"text_projection_bias": (sizes.embed_dim,)} if sizes.projection_bias else {}), "logit_scale": ()}


def check_state_dict(state_dict: StateDict, conventions: Conventions = OPENAI) -> Architecture:
    """Return the sizes of a complete CLIP; raise UserError, which lists missing, unexpected and misshapen tensors."""
    sizes = architecture(state_dict, conventions)
    found = {name: tuple(array.shape) for name, array in state_dict.items()}
    if found.get("logit_scale") == (1,):  # Jittor has no 0-d arrays
        found["logit_scale"] = ()
    require_shapes(found, layout(sizes), "the checkpoint's tensors are not those of a CLIP")
    return sizes


def require_shapes(found: Shapes, wanted: Shapes, said: str) -> None:
    """Raise UserError, which begins with `said`, unless the tensors found are those that are wanted."""
    problems = {"missing": [name for name in wanted if name not in found],
                "unexpected": [name for name in found if name not in wanted],
                "misshapen": [f"{name} {found[name]} instead of {shape}" for name, shape in wanted.items()
                              if found.get(name, shape) != shape]}
    listed = [f"{kind}: {', '.join(names[:MOST_LISTED])}{', …' if len(names) > MOST_LISTED else ''}"
              for kind, names in problems.items() if names]
    if listed:
        raise UserError("; ".join([said, *listed]))
