"""A CLIP's sizes, read off its tensors; and the tensors that a CLIP of these sizes has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from jclip_fewshot.clip.checkpoint.names import StateDict
from jclip_fewshot.errors import UserError

MOST_LISTED = 40  # names of a kind in a message


class NoClip(UserError):
    """Tensors, but not of a CLIP."""


@dataclass(frozen=True)
class Architecture:
    """What OpenAI's CLIP constructor takes, in its order."""

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, int, int, int]  # four numbers: a ModifiedResNet
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int


def architecture(state_dict: StateDict) -> Architecture:
    """Reads a CLIP's sizes off its tensors' shapes.

    Raises:
        NoClip: tensors that no CLIP lacks are missing.
    """
    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state_dict:
            raise NoClip(f"this is no CLIP checkpoint: it has no tensor {name}")
        if state_dict[name].ndim != ndim or 0 in state_dict[name].shape:
            raise NoClip(f"this is no CLIP checkpoint: {name} has shape {state_dict[name].shape}")
        return state_dict[name].shape

    def count(pattern: str) -> int:
        return len({match.group(1) for match in (re.match(pattern, name) for name in state_dict) if match})

    def grid(tokens: int, name: str) -> int:
        side = math.isqrt(tokens - 1) if tokens else 0
        if side * side + 1 != tokens:
            raise NoClip(
                f"this is no CLIP checkpoint: {name} has {tokens} positions, not a square and one")
        return side

    context_length, width = shape("positional_embedding", 2)
    if "visual.proj" in state_dict:
        vision_width, _, _, patch = shape("visual.conv1.weight", 4)
        layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
        name = "visual.positional_embedding"
        resolution = patch * grid(shape(name, 2)[0], name)
    else:
        patch = None
        vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
        layers = tuple(count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        name = "visual.attnpool.positional_embedding"
        resolution = 32 * grid(shape(name, 2)[0], name)
    depth = count(r"transformer\.resblocks\.(\d+)\.")
    if not depth or not (all(layers) if isinstance(layers, tuple) else layers):
        raise NoClip("this is no CLIP checkpoint: a tower of it has no blocks")
    if width % 64 or (patch and vision_width % 64):
        raise UserError(f"CLIP's heads are 64 wide, but its towers are {vision_width} and {width} wide")
    return Architecture(
        embed_dim=shape("text_projection", 2)[1], image_resolution=resolution, vision_layers=layers,
        vision_width=vision_width, vision_patch_size=patch, context_length=context_length,
        vocab_size=shape("token_embedding.weight", 2)[0], transformer_width=width,
        transformer_heads=width // 64, transformer_layers=depth)


def layout(sizes: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a CLIP of these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[name + ".weight"], shapes[name + ".bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[name + ".weight"] = shapes[name + ".bias"] = (width,)

    def batch_norm(name: str, width: int) -> None:
        norm(name, width)
        shapes[name + ".running_mean"] = shapes[name + ".running_var"] = (width,)

    def transformer(prefix: str, width: int, layers: int) -> None:
        for number in range(layers):
            block = f"{prefix}transformer.resblocks.{number}."
            shapes[block + "attn.in_proj_weight"] = (3 * width, width)
            shapes[block + "attn.in_proj_bias"] = (3 * width,)
            linear(block + "attn.out_proj", width, width)
            norm(block + "ln_1", width)
            linear(block + "mlp.c_fc", width, 4 * width)
            linear(block + "mlp.c_proj", 4 * width, width)
            norm(block + "ln_2", width)

    def bottleneck(block: str, inputs: int, planes: int, downsample: bool) -> None:
        for number, (out, into, side) in enumerate(
                [(planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1)], start=1):
            shapes[f"{block}conv{number}.weight"] = (out, into, side, side)
            batch_norm(f"{block}bn{number}", out)
        if downsample:
            shapes[block + "downsample.0.weight"] = (4 * planes, inputs, 1, 1)
            batch_norm(block + "downsample.1", 4 * planes)

    width, vision = sizes.transformer_width, sizes.vision_width
    if isinstance(sizes.vision_layers, int):
        patch = sizes.vision_patch_size
        shapes["visual.conv1.weight"] = (vision, 3, patch, patch)
        shapes["visual.class_embedding"] = (vision,)
        shapes["visual.positional_embedding"] = ((sizes.image_resolution // patch) ** 2 + 1, vision)
        norm("visual.ln_pre", vision)
        transformer("visual.", vision, sizes.vision_layers)
        norm("visual.ln_post", vision)
        shapes["visual.proj"] = (vision, sizes.embed_dim)
    else:
        stem = [(vision // 2, 3), (vision // 2, vision // 2), (vision, vision // 2)]
        for number, (out, into) in enumerate(stem, start=1):
            shapes[f"visual.conv{number}.weight"] = (out, into, 3, 3)
            batch_norm(f"visual.bn{number}", out)
        inputs = vision
        for stage, blocks in enumerate(sizes.vision_layers, start=1):
            planes = vision * 2 ** (stage - 1)
            for number in range(blocks):
                bottleneck(f"visual.layer{stage}.{number}.", inputs, planes, downsample=number == 0)
                inputs = 4 * planes
        shapes["visual.attnpool.positional_embedding"] = ((sizes.image_resolution // 32) ** 2 + 1, inputs)
        for name in ("k_proj", "q_proj", "v_proj"):
            linear(f"visual.attnpool.{name}", inputs, inputs)
        linear("visual.attnpool.c_proj", inputs, sizes.embed_dim)
    transformer("", width, sizes.transformer_layers)
    shapes["token_embedding.weight"] = (sizes.vocab_size, width)
    shapes["positional_embedding"] = (sizes.context_length, width)
    norm("ln_final", width)
    shapes["text_projection"] = (width, sizes.embed_dim)
    shapes["logit_scale"] = ()
    return shapes


def check_state_dict(state_dict: StateDict) -> Architecture:
    """The sizes of a complete CLIP.

    Raises:
        UserError: lists the missing, unexpected and misshapen tensors.
    """
    sizes = architecture(state_dict)
    wanted = layout(sizes)
    problems = []
    missing = [name for name in wanted if name not in state_dict]
    unexpected = [name for name in state_dict if name not in wanted]
    misshapen = [f"{name} {tuple(state_dict[name].shape)} instead of {shape}"
                 for name, shape in wanted.items()
                 if name in state_dict and tuple(state_dict[name].shape) != shape
                 and not (shape == () and state_dict[name].size == 1)]  # Jittor has no 0-d arrays
    for label, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            more = f", and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
            problems.append(f"{label}: {', '.join(names[:MOST_LISTED])}{more}")
    if problems:
        raise UserError("the checkpoint's tensors are not those of a CLIP; " + "; ".join(problems))
    return sizes
