"""CLIP in Jittor: the vision transformer, the text tower, and both as one model (the ResNet: modified_resnet.py).

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(arXiv:2103.00020). Names and layout of the parameters are those of OpenAI's clip/model.py.

B images or sentences · L tokens · W width of a tower · H heads · D feature width

Where the code departs from OpenAI's, for speed and without changing the result:
- matrices are kept (inputs, outputs), the transpose of OpenAI's: oneDNN multiplies a few rows by them
  several times faster; `build_model` and `numpy_state_dict` transpose on the way in and out;
- the patch embedding is a matrix product, so that a ViT needs no convolution;
- of the last block only what the feature is read from is computed: its keys and values need every
  token, the rest one (the class token, the end-of-text token);
- sentences are cut after the longest one in the batch: causal attention never looks further;
- frozen on the CPU, a tower's blocks run as one operator (see cpu.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.attention import attend
from jclip_fewshot.clip.checkpoint import Architecture, check_state_dict, layout
from jclip_fewshot.clip.layers import LayerNorm, Linear, normal, quick_gelu
from jclip_fewshot.clip.modified_resnet import ModifiedResNet
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError

nn = jt.nn


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value.

    lora: (x, first, last) -> what a low-rank update adds to `_project`'s answer, while one trains
    (methods/towers/lora.py).
    """

    lora: Callable | None = None
    _cut: tuple = (None, {})  # in_proj_weight, frozen, and what `_columns` cut out of it

    def __init__(self, width: int, heads: int, std: float, out_std: float):
        self.heads = heads
        self.in_proj_weight = normal((width, 3 * width), std)
        self.in_proj_bias = jt.zeros((3 * width,))
        self.out_proj = Linear(width, width, out_std)

    def execute(self, x, causal: bool = False, at: jt.Var | None = None):
        """x (B, L, W) -> (B, L, W); with `at` (B,) only the outputs at those tokens: (B, 1, W)."""
        batch, length, _ = x.shape
        q, kv = self._project(x if at is None else _take(x, at), 0, 1), self._project(x, 1, 3)
        seen = None
        if causal:
            seen = (at + 1).reshape((batch, 1)) if at is not None else (jt.index((batch, length), 1) + 1)
        return self.out_proj(attend(q, kv, self.heads, seen))

    def _project(self, x, first: int, last: int):
        """Of query, key and value (0, 1, 2) those from `first` to before `last`, side by side."""
        weight, bias = self._columns(first, last)
        y = jt.matmul(x, weight) + bias
        return y if self.lora is None else y + self.lora(x, first, last)

    def _columns(self, first: int, last: int):
        """Weight and bias of query, key and value (0, 1, 2) from `first` to before `last`."""
        width = self.in_proj_weight.shape[0]
        columns = slice(first * width, last * width)
        if self.lora is None:
            return self.in_proj_weight[:, columns], self.in_proj_bias[columns]
        if self._cut[0] is not self.in_proj_weight:  # frozen below a low-rank update: cut once, not in every step
            self._cut = (self.in_proj_weight, {})
        known = self._cut[1]
        if columns.start not in known:
            known[columns.start] = self.in_proj_weight[:, columns].detach(), self.in_proj_bias[columns].detach()
        return known[columns.start]


def _take(x, at):
    """Row at[b] of each x[b]: (B, L, W) -> (B, 1, W)."""
    return x[jt.arange(x.shape[0]), at].unsqueeze(1)


class MLP(nn.Module):
    def __init__(self, width: int, fc_std: float, proj_std: float):
        self.c_fc = Linear(width, 4 * width, fc_std)
        self.c_proj = Linear(4 * width, width, proj_std)

    def execute(self, x):
        return self.c_proj(quick_gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, layers: int):
        # OpenAI's initialize_parameters: the deeper the tower, the less each block adds
        proj_std = width ** -0.5 * (2 * layers) ** -0.5
        self.attn = Attention(width, heads, width ** -0.5, proj_std)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, (2 * width) ** -0.5, proj_std)
        self.ln_2 = LayerNorm(width)

    def execute(self, x, causal: bool = False, at: jt.Var | None = None):
        residual = x if at is None else _take(x, at)
        x = residual + self.attn(self.ln_1(x), causal, at)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Residual attention blocks, read out at one token of each sequence."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool):
        self.width, self.heads, self.causal = width, heads, causal
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads, layers) for _ in range(layers)])

    def execute(self, x, at, first: int = 0):
        """x (B, L, W), at (B,) int32 -> (B, W): the last block's output at token at[b].

        first: the block that x goes into; those before it are taken as done.
        """
        x = self.part(x, first, len(self.resblocks) - 1)
        return self.resblocks[len(self.resblocks) - 1](x, self.causal, at)[:, 0]

    def part(self, x, first: int, last: int):
        """x (B, L, W), the input of block `first` -> (B, L, W), the input of block `last`."""
        for number in range(first, last):
            x = self.resblocks[number](x, self.causal)
        return x


class PatchEmbedding(nn.Module):
    """The patch embedding's weight (3·patch², W), under the name that it has in OpenAI's checkpoints."""

    def __init__(self, width: int, patch: int):
        self.weight = normal((3 * patch * patch, width), (3 * patch * patch) ** -0.5)


class VisionTransformer(nn.Module):
    def __init__(self, input_resolution: int, patch_size: int,
                 width: int, layers: int, heads: int, output_dim: int):
        self.input_resolution, self.patch_size, self.output_dim = input_resolution, patch_size, output_dim
        scale = width ** -0.5
        self.conv1 = PatchEmbedding(width, patch_size)
        self.class_embedding = normal((width,), scale)
        self.positional_embedding = normal(((input_resolution // patch_size) ** 2 + 1, width), scale)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, causal=False)
        self.ln_post = LayerNorm(width)
        self.proj = normal((width, output_dim), scale)
        self.matrices = cpu.Matrices()

    def shape_at(self, block: int | None = None) -> tuple:
        """Shape of an image's numbers before the projection (None) or in front of a block: (W,) or (L, W)."""
        if block is None:
            return (self.proj.shape[0],)
        if not 0 <= block < len(self.transformer.resblocks):
            raise ValueError(f"no block {block}; this tower has {len(self.transformer.resblocks)}")
        return tuple(self.positional_embedding.shape)

    def embed(self, images):
        """(B, 3, R, R) -> (B, L, W), the input of block 0."""
        batch, side, patch = images.shape[0], self.input_resolution // self.patch_size, self.patch_size
        x = images.reshape((batch, 3, side, patch, side, patch)).transpose(0, 2, 4, 1, 3, 5)
        x = x.reshape((batch * side * side, 3 * patch * patch))
        x = jt.matmul(x, self.conv1.weight).reshape((batch, side * side, -1))
        first = self.class_embedding.reshape((1, 1, -1)).broadcast((batch, 1, x.shape[-1]))
        return self.ln_pre(jt.concat([first.cast(x.dtype), x], dim=1) + self.positional_embedding)

    def unprojected(self, x, block: int = 0):
        """(B, L, W), the input of a block -> (B, W): the class token after the last norm, not projected."""
        at = jt.zeros((x.shape[0],), "int32")
        return self.ln_post(self.transformer(x, at, block))

    def activations(self, images, block: int | None = None):
        """(B, 3, R, R) -> (B, *shape_at(block)), float32."""
        shape = self.shape_at(block)
        if self._fused():
            return self._run(images, projected=False, block=block).reshape((images.shape[0],) + shape)
        x = self.embed(images.cast(str(self.proj.dtype)))
        return (self.unprojected(x) if block is None else self.transformer.part(x, 0, block)).float32()

    def execute(self, images):
        """(B, 3, R, R) -> (B, D)"""
        if self._fused():
            return self._run(images)
        return jt.matmul(self.unprojected(self.embed(images)), self.proj)

    def _fused(self) -> bool:
        return not self.is_training() and cpu.available()

    def _run(self, images, projected: bool = True, block: int | None = None):
        embedding = [self.conv1.weight, self.positional_embedding, self.class_embedding,
                     self.ln_pre.weight, self.ln_pre.bias]
        return cpu.run(images, jt.zeros((images.shape[0],), "int32"), embedding, self.transformer,
                       [self.ln_post.weight, self.ln_post.bias, self.proj], self.matrices,
                       self.positional_embedding.shape[0], self.input_resolution, self.patch_size, projected, block)


class Embedding(nn.Module):
    def __init__(self, rows: int, width: int):
        self.weight = normal((rows, width), 0.02)

    def execute(self, ids):
        return self.weight[ids]


class CLIP(nn.Module):
    """Both towers and the scale of their cosine; the arguments are OpenAI's.

    vision_layers: a number of ViT blocks, or four numbers for a ModifiedResNet.
    Freshly made, it has OpenAI's initialisation and can be trained; `eval()` freezes it.
    """

    def __init__(self, embed_dim: int, image_resolution: int,
                 vision_layers: int | tuple[int, int, int, int], vision_width: int,
                 vision_patch_size: int | None, context_length: int, vocab_size: int,
                 transformer_width: int, transformer_heads: int, transformer_layers: int):
        self.architecture = Architecture(
            embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, context_length,
            vocab_size, transformer_width, transformer_heads, transformer_layers)
        self.embed_dim, self.context_length, self.vocab_size = embed_dim, context_length, vocab_size
        if isinstance(vision_layers, int):
            self.visual = VisionTransformer(image_resolution, vision_patch_size, vision_width, vision_layers,
                                            vision_width // 64, embed_dim)
        else:
            self.visual = ModifiedResNet(vision_layers, embed_dim, vision_width * 32 // 64, image_resolution,
                                         vision_width)
        self.transformer = Transformer(transformer_width, transformer_layers, transformer_heads, causal=True)
        self.token_embedding = Embedding(vocab_size, transformer_width)
        self.positional_embedding = normal((context_length, transformer_width), 0.01)
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = normal((transformer_width, embed_dim), transformer_width ** -0.5)
        self.logit_scale = jt.array(np.array([math.log(1 / 0.07)], dtype=np.float32))
        self.matrices = self.visual.matrices

    @property
    def dtype(self) -> str:
        """Of the parameters."""
        return str(self.visual.conv1.weight.dtype)

    @property
    def precision(self) -> str:
        """Of the frozen towers' products: the parameters' type, or "bfloat16" (on the CPU, with float32 parameters)."""
        return self.dtype if self.matrices.precision == "float32" else self.matrices.precision

    def set_precision(self, precision: str) -> None:
        """What the frozen towers multiply in on the CPU: "float32" or "bfloat16". Training stays in float32."""
        self.matrices = self.visual.matrices = cpu.Matrices(precision)

    def encode_image(self, images):
        """Image features, not normalised.

        images: (B, 3, R, R), as `preprocess` makes them; R is visual.input_resolution.
        Returns:
            (B, D) float32.
        """
        images = jt.array(images) if isinstance(images, np.ndarray) else images
        side = self.visual.input_resolution
        if tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(
                f"images of shape {tuple(images.shape)}; this model takes (B, 3, {side}, {side})")
        return self.visual(images.cast(self.dtype)).float32()

    def encode_text(self, tokens):
        """Text features at the end-of-text token (the highest id of a row), not normalised.

        tokens: (B, L) integers, L at most the context length; a NumPy array saves a copy.
        Returns:
            (B, D) float32.
        """
        ids = tokens if isinstance(tokens, np.ndarray) else tokens.numpy()
        if ids.ndim != 2 or ids.shape[1] > self.context_length:
            raise ValueError(
                f"tokens of shape {ids.shape}; this model takes (B, L), L at most {self.context_length}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"token ids from {ids.min()} to {ids.max()}; this model knows {self.vocab_size}")
        ends = ids.argmax(axis=1)
        length = int(ends.max()) + 1 if len(ids) else 1
        ids = jt.array(np.ascontiguousarray(ids[:, :length], dtype=np.int32))
        ends = jt.array(ends.astype(np.int32))
        if not self.is_training() and cpu.available():
            return cpu.run(ids, ends, [self.token_embedding.weight, self.positional_embedding],
                           self.transformer,
                           [self.ln_final.weight, self.ln_final.bias, self.text_projection], self.matrices, length)
        return self.encode_embeddings(self.token_embedding(ids), ends)

    def encode_embeddings(self, embeddings, ends):
        """Text features of sentences given as token embeddings: what prompt learning trains.

        embeddings: (B, L, W), positions not yet added. ends: (B,) int32, the token that is read out.
        Returns:
            (B, D) float32, not normalised.
        """
        x = self.transformer(embeddings + self.positional_embedding[:embeddings.shape[1]], ends)
        return jt.matmul(self.ln_final(x), self.text_projection).float32()

    def load_parameters(self, params: dict[str, np.ndarray], dtype: str = "float32") -> None:
        """Takes over a whole state dict with OpenAI's names and shapes; `load_state_dict` calls this too.

        Raises:
            UserError: missing, unexpected or misshapen tensors, or the sizes of another model.
        """
        if check_state_dict(params) != self.architecture:
            raise UserError("the checkpoint is that of a CLIP of other sizes")
        for name, parameter in self.state_dict().items():
            axes = _axes(name, params[name].shape, self.architecture)
            parameter.assign(jt.array(_from_openai(params[name], axes, tuple(parameter.shape))).cast(dtype))

    def execute(self, image, text):
        """(B, 3, R, R) and (T, L) -> logits_per_image (B, T) and logits_per_text (T, B)."""
        image_features = unit_var(self.encode_image(image))
        text_features = unit_var(self.encode_text(text))
        scale = self.logit_scale.float32().exp()
        logits_per_image = scale * nn.matmul_transpose(image_features, text_features)
        return logits_per_image, logits_per_image.transpose(1, 0)


_MATRIX = re.compile(r".*\.(in_proj_weight|(out_proj|c_fc|c_proj|[qkv]_proj)\.weight)")


def _axes(name: str, shape: tuple[int, ...], sizes: Architecture) -> tuple[int, ...] | None:
    """The order in which OpenAI's axes of a tensor are kept here; None where nothing changes."""
    if _MATRIX.fullmatch(name):
        return 1, 0  # (inputs, outputs)
    if len(shape) == 4:
        patches = name == "visual.conv1.weight" and sizes.vision_patch_size is not None
        return (1, 2, 3, 0) if patches else (2, 3, 1, 0)  # (channel, y, x; outputs), (y, x, channel; outputs)
    return None


def _from_openai(array: np.ndarray, axes: tuple[int, ...] | None, shape: tuple[int, ...]) -> np.ndarray:
    array = array if axes is None else array.transpose(axes)
    return np.ascontiguousarray(array, dtype=np.float32).reshape(shape)


def _to_openai(array: np.ndarray, axes: tuple[int, ...] | None, shape: tuple[int, ...]) -> np.ndarray:
    if axes is not None:
        array = array.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
    return np.ascontiguousarray(array).reshape(shape)


def numpy_state_dict(model: CLIP) -> dict[str, np.ndarray]:
    """The model's tensors under OpenAI's names and in their shapes, ready for `write_safetensors`."""
    shapes = layout(model.architecture)
    return {name: _to_openai(value.numpy(), _axes(name, shapes[name], model.architecture), shapes[name])
            for name, value in model.state_dict().items()}


PRECISIONS = ("float32", "float16", "bfloat16")


def build_model(state_dict: dict[str, np.ndarray], dtype: str = "float32") -> CLIP:
    """A frozen CLIP (`train()` thaws it) with the sizes and the weights of a state dict.

    dtype: "float32"; "float16" takes half the memory on CUDA; "bfloat16" multiplies about twice as fast on
        CPUs with AVX512_BF16. Where a machine cannot, a warning says so and it is float32.
    Raises:
        UserError: missing, unexpected or misshapen tensors; an unknown dtype.
    """
    if dtype not in PRECISIONS:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(PRECISIONS)}")
    lacking = _lacks(dtype)
    if lacking:
        warn(f"{dtype}: {lacking}; computing in float32")
        dtype = "float32"
    model = CLIP(**asdict(check_state_dict(state_dict)))
    model.load_parameters(state_dict, "float16" if dtype == "float16" else "float32")
    model.eval()
    if dtype == "bfloat16":
        model.set_precision(dtype)
    return model


def _lacks(precision: str) -> str:
    """Why this machine does not compute in a precision; empty where it does."""
    cuda = bool(jt.flags.use_cuda)
    if precision == "float16" and not cuda:
        return "no gain on the CPU"
    if precision == "bfloat16":
        return "for the CPU alone (on CUDA float16 is the fast one)" if cuda else cpu.lacks_bfloat16()
    return ""
