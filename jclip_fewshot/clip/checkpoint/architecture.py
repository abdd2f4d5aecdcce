"""A CLIP's sizes, read off its tensors; and the tensors that a CLIP of these sizes has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.clip.checkpoint.conventions import OPENAI, Conventions
from jclip_fewshot.clip.checkpoint.names import StateDict
from jclip_fewshot.errors import UserError

MOST_LISTED = 40  # names of a kind in a message


class NoClip(UserError):
    """Tensors, but not of a CLIP."""


@dataclass(frozen=True)
class Architecture:
    """What OpenAI's CLIP constructor takes, in its order; behind that, in what other CLIPs differ.

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
    transformer_heads: int
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
    """Return a CLIP's sizes by its tensors' shapes.

    Raise NoClip if tensors that no CLIP lacks are missing, UserError if heads of this width do not fit.
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
    patch: int | None = None
    if "visual.proj" in state_dict:
        vision_width, _, _, patch = shape("visual.conv1.weight", 4)
        stages = [count(r"visual\.transformer\.resblocks\.(\d+)\.")]
        name = "visual.positional_embedding"
    else:
        vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
        stages = [count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
        name = "visual.attnpool.positional_embedding"
    depth = count(r"transformer\.resblocks\.(\d+)\.")
    if not depth or not all(stages):
        raise NoClip("this is no CLIP checkpoint: a tower of it has no blocks")
    for tower, what in ((vision_width if patch else 32 * vision_width, conventions.image), (width, conventions.text)):
        if tower % what.head_width:
            raise UserError(f"heads {what.head_width} wide do not fit into a tower that is {tower} wide")

    def hidden(tower: str, four_times: int) -> int:
        """0 for the usual one, so that such a CLIP's sizes equal OpenAI's."""
        bias = state_dict.get(f"{tower}transformer.resblocks.0.mlp.c_fc.bias", np.zeros(four_times))
        return 0 if bias.size == four_times else bias.size

    return Architecture(
        embed_dim=shape("text_projection", 2)[1], image_resolution=(patch or 32) * grid(shape(name, 2)[0], name),
        vision_layers=stages[0] if patch else tuple(stages),  # type: ignore[arg-type]  # four
        vision_width=vision_width, vision_patch_size=patch, context_length=context_length,
        vocab_size=shape("token_embedding.weight", 2)[0], transformer_width=width,
        transformer_heads=width // conventions.text.head_width, transformer_layers=depth,
        vision_hidden=hidden("visual.", 4 * vision_width) if patch else 0, transformer_hidden=hidden("", 4 * width),
        norm_before=patch is None or "visual.ln_pre.weight" in state_dict,
        projection_bias="text_projection_bias" in state_dict, conventions=conventions)


class _Shapes(dict[str, tuple[int, ...]]):
    """Name and shape of tensors, layer by layer."""

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self[name + ".weight"], self[name + ".bias"] = (outputs, inputs), (outputs,)

    def norm(self, name: str, width: int) -> None:
        self[name + ".weight"] = self[name + ".bias"] = (width,)

    def conv(self, conv: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        """A convolution without bias, and the batch norm behind it."""
        self[conv + ".weight"] = (outputs, inputs, side, side)
        self.norm(norm, outputs)
        self[norm + ".running_mean"] = self[norm + ".running_var"] = (outputs,)

    def transformer(self, prefix: str, width: int, layers: int, hidden: int) -> None:
        for number in range(layers):
            block = f"{prefix}transformer.resblocks.{number}."
            self[block + "attn.in_proj_weight"] = (3 * width, width)
            self[block + "attn.in_proj_bias"] = (3 * width,)
            self.linear(block + "attn.out_proj", width, width)
            self.norm(block + "ln_1", width)
            self.linear(block + "mlp.c_fc", width, hidden or 4 * width)
            self.linear(block + "mlp.c_proj", hidden or 4 * width, width)
            self.norm(block + "ln_2", width)

    def resnet(self, sizes: Architecture) -> None:
        width = sizes.vision_width
        stem = [(width // 2, 3), (width // 2, width // 2), (width, width // 2)]
        for number, (out, into) in enumerate(stem, start=1):
            self.conv(f"visual.conv{number}", f"visual.bn{number}", out, into, 3)
        inputs = width
        for stage, blocks in enumerate(sizes.stages, start=1):
            planes = width * 2 ** (stage - 1)
            for number in range(blocks):
                block = f"visual.layer{stage}.{number}."
                self.conv(block + "conv1", block + "bn1", planes, inputs, 1)
                self.conv(block + "conv2", block + "bn2", planes, planes, 3)
                self.conv(block + "conv3", block + "bn3", 4 * planes, planes, 1)
                if number == 0:
                    self.conv(block + "downsample.0", block + "downsample.1", 4 * planes, inputs, 1)
                inputs = 4 * planes
        self["visual.attnpool.positional_embedding"] = ((sizes.image_resolution // 32) ** 2 + 1, inputs)
        for name in ("k_proj", "q_proj", "v_proj"):
            self.linear(f"visual.attnpool.{name}", inputs, inputs)
        self.linear("visual.attnpool.c_proj", inputs, sizes.embed_dim)


def layout(sizes: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a CLIP of these sizes."""
    shapes, width, vision, patch = _Shapes(), sizes.transformer_width, sizes.vision_width, sizes.vision_patch_size
    if patch is None:
        shapes.resnet(sizes)
    else:
        shapes["visual.conv1.weight"] = (vision, 3, patch, patch)
        shapes["visual.class_embedding"] = (vision,)
        shapes["visual.positional_embedding"] = ((sizes.image_resolution // patch) ** 2 + 1, vision)
        if sizes.norm_before:
            shapes.norm("visual.ln_pre", vision)
        shapes.transformer("visual.", vision, sizes.stages[0], sizes.vision_hidden)
        shapes.norm("visual.ln_post", vision)
        shapes["visual.proj"] = (vision, sizes.embed_dim)
    shapes.transformer("", width, sizes.transformer_layers, sizes.transformer_hidden)
    shapes["token_embedding.weight"] = (sizes.vocab_size, width)
    shapes["positional_embedding"] = (sizes.context_length, width)
    shapes.norm("ln_final", width)
    shapes["text_projection"] = (width, sizes.embed_dim)
    if sizes.projection_bias:
        shapes["text_projection_bias"] = (sizes.embed_dim,)
    shapes["logit_scale"] = ()
    return dict(shapes)


def check_state_dict(state_dict: StateDict, conventions: Conventions = OPENAI) -> Architecture:
    """Return the sizes of a complete CLIP; raise UserError, which lists missing, unexpected and misshapen tensors."""
    sizes = architecture(state_dict, conventions)
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
