"""CLIP in Jittor: the vision transformer, the text tower, and both as one model (the ResNet: modified_resnet.py).

Paper: Radford et al. 2021 (arXiv:2103.00020). Names and layout of the parameters are those of OpenAI's clip/model.py.

B images or sentences · L tokens · W width of a tower · H heads · D feature width

Where the code departs from OpenAI's, for speed and without changing the result:
- matrices are kept (inputs, outputs), the transpose of OpenAI's, by which oneDNN multiplies a few rows several times
  faster, and the patch embedding is one; `build_model` and `numpy_state_dict` transpose on the way in and out;
- of the last block only what the feature is read from is computed: its keys and values need every token, the rest one;
- sentences are cut after the longest one in the batch: causal attention never looks further;
- frozen on the CPU, a tower's blocks run as one operator (see cpu.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture, Conventions, Tower, check_state_dict, openai_names
from jclip_fewshot.clip.checkpoint.architecture import OPENAI, to_metadata
from jclip_fewshot.clip.checkpoint.names import MATRIX
from jclip_fewshot.clip.layers import LayerNorm, Linear, activate, attend, normal
from jclip_fewshot.clip.modified_resnet import ModifiedResNet
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError


class Attention(jt.nn.Module):
    """Multi-head self-attention with fused query, key and value.
    lora: (x, first, last) -> what a low-rank update adds to `_project`'s answer (methods/towers/towers.py)."""

    lora: Callable | None = None
    _cut: tuple = (None, {})  # in_proj_weight, frozen, and what was cut out of it

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
        width = self.in_proj_weight.shape[0]
        columns = slice(first * width, last * width)
        if self.lora is None:
            return jt.matmul(x, self.in_proj_weight[:, columns]) + self.in_proj_bias[columns]
        if self._cut[0] is not self.in_proj_weight:  # frozen below a low-rank update: cut once, not in every step
            self._cut = (self.in_proj_weight, {})
        known = self._cut[1]
        if first not in known:
            known[first] = self.in_proj_weight[:, columns].detach(), self.in_proj_bias[columns].detach()
        weight, bias = known[first]
        return jt.matmul(x, weight) + bias + self.lora(x, first, last)


def _take(x, at):
    """Row at[b] of each x[b]: (B, L, W) -> (B, 1, W)."""
    return x[jt.arange(x.shape[0]), at].unsqueeze(1)


class MLP(jt.nn.Module):
    def __init__(self, width: int, hidden: int, activation: str, fc_std: float, proj_std: float):
        self.activation = activation
        self.c_fc = Linear(width, hidden, fc_std)
        self.c_proj = Linear(hidden, width, proj_std)

    def execute(self, x):
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualAttentionBlock(jt.nn.Module):
    def __init__(self, width: int, hidden: int, layers: int, how: Tower):
        # OpenAI's initialize_parameters: the deeper the tower, the less each block adds
        proj_std = width ** -0.5 * (2 * layers) ** -0.5
        self.attn = Attention(width, width // how.head_width, width ** -0.5, proj_std)
        self.ln_1 = LayerNorm(width, how.eps)
        self.mlp = MLP(width, hidden, how.activation, (2 * width) ** -0.5, proj_std)
        self.ln_2 = LayerNorm(width, how.eps)

    def execute(self, x, causal: bool = False, at: jt.Var | None = None):
        residual = x if at is None else _take(x, at)
        x = residual + self.attn(self.ln_1(x), causal, at)
        return x + self.mlp(self.ln_2(x))


class Transformer(jt.nn.Module):
    """Residual attention blocks, read out at one token of each sequence. hidden: width inside the MLPs; 0 for 4 W."""

    def __init__(self, width: int, hidden: int, layers: int, how: Tower, causal: bool):
        self.width, self.heads, self.how, self.causal = width, width // how.head_width, how, causal
        self.resblocks = jt.nn.Sequential(*[ResidualAttentionBlock(width, hidden or 4 * width, layers, how)
                                         for _ in range(layers)])

    def fused(self) -> bool:
        """Whether tower.cpp can run it: frozen, on the CPU, and heads of an even width, which bfloat16 pairs."""
        return not self.is_training() and cpu.available() and not self.how.head_width % 2

    def execute(self, x, at, first: int = 0):
        """x (B, L, W), the input of block `first`, at (B,) int32 -> (B, W): the last block's output at token at[b]."""
        x = self.part(x, first, len(self.resblocks) - 1)
        return self.resblocks[len(self.resblocks) - 1](x, self.causal, at)[:, 0]

    def part(self, x, first: int, last: int):
        """x (B, L, W), the input of block `first` -> (B, L, W), the input of block `last`."""
        for number in range(first, last):
            x = self.resblocks[number](x, self.causal)
        return x


class Embedding(jt.nn.Module):
    """A table of rows, by number; or the weight (3·patch², W) of a patch embedding."""

    def __init__(self, rows: int, width: int, std: float = 0.02):
        self.weight = normal((rows, width), std)

    def execute(self, ids):
        return self.weight[ids]


class VisionTransformer(jt.nn.Module):
    """The image tower. Its row is read from the class token, or from the mean of the patches (`pool`)."""

    def __init__(self, sizes: Architecture):
        width, patch, how = sizes.vision_width, sizes.vision_patch_size or 0, sizes.conventions.image
        self.input_resolution, self.patch_size, self.output_dim = sizes.image_resolution, patch, sizes.embed_dim
        self.pool = sizes.conventions.pool
        scale = width ** -0.5
        self.conv1 = Embedding(3 * patch * patch, width, (3 * patch * patch) ** -0.5)
        self.class_embedding = normal((width,), scale)
        self.positional_embedding = normal(((sizes.image_resolution // patch) ** 2 + 1, width), scale)
        self.ln_pre = LayerNorm(width, how.eps) if sizes.norm_before else None
        self.transformer = Transformer(width, sizes.vision_hidden, sizes.stages[0], how, causal=False)
        self.ln_post = LayerNorm(width, how.eps)
        self.proj = normal((width, sizes.embed_dim), scale)
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
        x = jt.concat([first.cast(x.dtype), x], dim=1) + self.positional_embedding
        return x if self.ln_pre is None else self.ln_pre(x)

    def unprojected(self, x, block: int = 0):
        """(B, L, W), the input of a block -> (B, W): what a row is read from, after the last norm, not projected."""
        if self.pool == "patches":
            return self.ln_post(self.transformer.part(x, block, len(self.transformer.resblocks))[:, 1:].mean(1))
        at = jt.zeros((x.shape[0],), "int32")
        return self.ln_post(self.transformer(x, at, block))

    def activations(self, images, block: int | None = None):
        """(B, 3, R, R) -> (B, *shape_at(block)), float32."""
        if not self.transformer.fused():
            x = self.embed(images.cast(str(self.proj.dtype)))
            return (self.unprojected(x) if block is None else self.transformer.part(x, 0, block)).float32()
        if block is None and self.pool == "patches":
            return self.ln_post(self._run(images, len(self.transformer.resblocks))[:, 1:].mean(1))
        self.shape_at(block)  # refuses a block that there is not
        return self._run(images, cpu.UNPROJECTED if block is None else block)

    def execute(self, images):
        """(B, 3, R, R) -> (B, D)"""
        if not self.transformer.fused():
            return jt.matmul(self.unprojected(self.embed(images)), self.proj)
        return self._run(images) if self.pool == "class" else jt.matmul(self.activations(images), self.proj)

    def _run(self, images, stop: int = cpu.FEATURES):
        embedding = [self.conv1.weight, self.positional_embedding, self.class_embedding]
        if self.ln_pre is not None:
            embedding += [self.ln_pre.weight, self.ln_pre.bias]
        return cpu.run(images, jt.zeros((images.shape[0],), "int32"), embedding, self.transformer,
                       [self.ln_post.weight, self.ln_post.bias, self.proj], self.matrices, self.patch_size, stop)


class CLIP(jt.nn.Module):
    """Both towers and the scale of their cosine, with OpenAI's initialisation; `eval()` freezes it."""

    def __init__(self, sizes: Architecture):
        self.architecture, width = sizes, sizes.transformer_width
        self.embed_dim, self.context_length, self.vocab_size = sizes.embed_dim, sizes.context_length, sizes.vocab_size
        self.visual = (VisionTransformer if sizes.vision_patch_size else ModifiedResNet)(sizes)
        how = sizes.conventions
        self.transformer = Transformer(width, sizes.transformer_hidden, sizes.transformer_layers, how.text, how.causal)
        self.token_embedding = Embedding(sizes.vocab_size, width)
        self.positional_embedding = normal((sizes.context_length, width), 0.01)
        self.ln_final = LayerNorm(width, how.text.eps)
        self.text_projection = normal((width, sizes.embed_dim), width ** -0.5)
        if sizes.projection_bias:
            self.text_projection_bias = jt.zeros((sizes.embed_dim,))
        self.logit_scale = jt.array(np.array([math.log(1 / 0.07)], dtype=np.float32))
        self.matrices = self.visual.matrices

    @property
    def dtype(self) -> str:
        return str(self.visual.conv1.weight.dtype)

    @property
    def precision(self) -> str:
        """Of the frozen towers' products: the parameters' type, or "bfloat16" (on the CPU, with float32 parameters)."""
        return self.dtype if self.matrices.precision == "float32" else self.matrices.precision

    def set_precision(self, precision: str) -> None:
        """What the frozen towers multiply in on the CPU: "float32" or "bfloat16". Training stays in float32."""
        self.matrices = self.visual.matrices = cpu.Matrices(precision)

    def encode_image(self, images):
        """(B, 3, R, R), as `preprocess` makes them, R visual.input_resolution -> (B, D) float32, not normalised."""
        images = jt.array(images) if isinstance(images, np.ndarray) else images
        side = self.visual.input_resolution
        if tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(f"images of shape {tuple(images.shape)}; this model takes (B, 3, {side}, {side})")
        return self.visual(images.cast(self.dtype)).float32()

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """(B, L) ids -> (B,) int32: the token that a text's row is read from."""
        how = self.architecture.conventions
        if how.text_pool == "last":
            return np.full(len(ids), ids.shape[1] - 1, np.int32)
        return (ids if how.text_pool == "highest" else ids == how.end).argmax(axis=1).astype(np.int32)

    def cut(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, L) ids -> those up to the longest text's end, int32, and where each ends."""
        ends = self.ends(ids)
        length = int(ends.max(initial=0)) + 1 if self.transformer.causal else ids.shape[1]
        return np.ascontiguousarray(ids[:, :length], np.int32), ends

    def encode_text(self, tokens):
        """(B, L) integers, L at most the context length -> (B, D) float32, not normalised, read at `ends`."""
        ids = tokens if isinstance(tokens, np.ndarray) else tokens.numpy()
        if ids.ndim != 2 or ids.shape[1] > self.context_length:
            raise ValueError(f"tokens of shape {ids.shape}; this model takes (B, L), L at most {self.context_length}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"token ids from {ids.min()} to {ids.max()}; this model knows {self.vocab_size}")
        ids, ends = self.cut(ids)
        ids, ends = jt.array(ids), jt.array(ends)
        if not self.transformer.fused():
            return self.encode_embeddings(self.token_embedding(ids), ends)
        embedding = [self.token_embedding.weight, self.positional_embedding]
        readout = [self.ln_final.weight, self.ln_final.bias, self.text_projection]
        return self._biased(cpu.run(ids, ends, embedding, self.transformer, readout, self.matrices))

    def encode_embeddings(self, embeddings, ends):
        """Token embeddings (B, L, W), positions not yet added, ends (B,) int32, where they are read out -> (B, D)."""
        x = self.transformer(embeddings + self.positional_embedding[:embeddings.shape[1]], ends)
        return self._biased(jt.matmul(self.ln_final(x), self.text_projection)).float32()

    def _biased(self, rows):
        return rows + self.text_projection_bias if self.architecture.projection_bias else rows

    def state_dict(self, *arguments, **options):
        """Jittor's, and how a model that is not computed as OpenAI's is, so that a file of it can be read again."""
        found, how = super().state_dict(*arguments, **options), self.architecture.conventions
        if how != OPENAI:
            said = np.frombuffer(to_metadata(how)["conventions"].encode(), np.uint8)
            found["conventions"] = jt.array(said.astype(np.int32))
        return found

    def load_parameters(self, params: dict[str, np.ndarray], dtype: str = "float32") -> None:
        """Take over a whole state dict with OpenAI's names and shapes; `load_state_dict` calls this too.
        Raise UserError if tensors are missing, unexpected, misshapen, or those of another model."""
        if check_state_dict(params, self.architecture.conventions) != self.architecture:
            raise UserError("the checkpoint is that of a CLIP of other sizes")
        for name, parameter in super().state_dict().items():
            array = params[name]
            if MATRIX.fullmatch(name):
                array = array.T  # (inputs, outputs)
            elif array.ndim == 4:  # (channel, y, x; outputs) of a patch embedding, else (y, x, channel; outputs)
                array = array.transpose((1, 2, 3, 0) if "visual.proj" in params else (2, 3, 1, 0))
            array = np.ascontiguousarray(array, dtype=np.float32).reshape(tuple(parameter.shape))
            parameter.assign(jt.array(array).cast(dtype))

    def execute(self, image, text):
        """(B, 3, R, R) and (T, L) -> logits_per_image (B, T) and logits_per_text (T, B)."""
        image_features = unit_var(self.encode_image(image))
        text_features = unit_var(self.encode_text(text))
        scale = self.logit_scale.float32().exp()
        logits_per_image = scale * jt.nn.matmul_transpose(image_features, text_features)
        return logits_per_image, logits_per_image.transpose(1, 0)


def numpy_state_dict(model: CLIP) -> dict[str, np.ndarray]:
    """The model's tensors under OpenAI's names and in their shapes, ready for `write_safetensors`."""
    return openai_names({name: value.numpy() for name, value in model.state_dict().items()})


def build_model(state_dict: dict[str, np.ndarray], dtype: str = "float32", conventions: Conventions = OPENAI) -> CLIP:
    """Return a frozen CLIP (`train()` thaws it) with the sizes and the weights of a state dict.

    dtype: "float32"; "float16" for CUDA; "bfloat16" for CPUs with AVX512_BF16; where a machine cannot, float32, with a
    warning. conventions: how it is computed, which its tensors do not tell.
    Raise UserError if tensors are missing, unexpected or misshapen, or the dtype is unknown.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is none of float32, float16, bfloat16")
    lacking = ""
    if dtype == "float16" and cpu.available():
        lacking = "no gain on the CPU"
    elif dtype == "bfloat16":
        lacking = cpu.lacks_bfloat16() if cpu.available() else "for the CPU alone (on CUDA float16 is the fast one)"
    if lacking:
        warn(f"{dtype}: {lacking}; computing in float32")
        dtype = "float32"
    model = CLIP(check_state_dict(state_dict, conventions))
    model.load_parameters(state_dict, "float16" if dtype == "float16" else "float32")
    model.eval()
    if dtype == "bfloat16":
        model.set_precision(dtype)
    return model
