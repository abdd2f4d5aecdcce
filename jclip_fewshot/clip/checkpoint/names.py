"""Names and layouts of tensors as files have them, to OpenAI's: Hugging Face's CLIPModel, open_clip's CustomTextCLIP,
what a Jittor model of ours saves; wrappers taken off, buffers that are no weights left out."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from jclip_fewshot.errors import UserError

StateDict = dict[str, np.ndarray]

# A bias of all logits, which SigLIP's training adds, changes no answer among classes.
_IGNORED = re.compile(r"input_resolution|context_length|vocab_size|.*\.num_batches_tracked|(.*\.)?attn_mask"
                      r"|.*\.position_ids|logit_bias|conventions")
_ANCHORS = ("text_model.embeddings.token_embedding.weight", "text.token_embedding.weight", "token_embedding.weight")
_HF_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HF_IN_BLOCK = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_HF_NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # Hugging Face's spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_HF_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}


def openai_names(tensors: StateDict, path: str | Path = "the checkpoint") -> StateDict:
    """Return the tensors under OpenAI's names and in its layout, without wrappers and buffers that are no weights.

    Raise UserError if there are several CLIPs in one file, or Hugging Face's tensors that cannot be joined.
    """
    tensors = unwrapped(tensors, path)
    tensors = {name: array for name, array in tensors.items() if not _IGNORED.fullmatch(name)}
    if is_hugging_face(tensors):
        return _from_hugging_face(tensors, Path(path))
    tensors = {name[len("text."):] if name.startswith("text.") else name: array for name, array in tensors.items()}
    if "text_projection.weight" in tensors:  # of a Linear
        tensors["text_projection"] = np.ascontiguousarray(tensors.pop("text_projection.weight").T)
    if "text_projection.bias" in tensors:
        tensors["text_projection_bias"] = tensors.pop("text_projection.bias")
    return _from_jittor(tensors) if is_jittors(tensors) else tensors


def unwrapped(tensors: StateDict, path: str | Path = "the checkpoint") -> StateDict:
    """Return what lies under the one prefix that a whole CLIP has: `model.`, `module.`, `_orig_mod.` and their like.

    Raise UserError if there are several CLIPs in one file.
    """
    prefixes = {next(name[:-len(anchor)] for anchor in _ANCHORS if name.endswith(anchor))
                for name in tensors if name.endswith(_ANCHORS)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}
    if len(prefixes) > 1:
        raise UserError(f"{path} holds several CLIPs, under {', '.join(map(repr, sorted(prefixes)[:4]))}; save the one "
                        "that is wanted alone")
    prefix = prefixes.pop() if prefixes else ""
    return {name[len(prefix):]: array for name, array in tensors.items() if name.startswith(prefix)}


def is_hugging_face(tensors: StateDict) -> bool:
    """Whether the names are those of CLIPModel."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in tensors)


def is_jittors(tensors: StateDict) -> bool:
    """Whether the layout is that in which clip/model.py keeps its parameters: convolutions are matrices."""
    return "visual.conv1.weight" in tensors and tensors["visual.conv1.weight"].ndim == 2


MATRIX = re.compile(r".*\.(in_proj_weight|(out_proj|c_fc|c_proj|[qkv]_proj)\.weight)")  # kept (inputs, outputs) there


def _from_jittor(tensors: StateDict) -> StateDict:
    """What `jt.save` or `Module.save` wrote of a model of ours: matrices transposed, convolutions as matrices."""
    result: StateDict = {}
    for name, array in tensors.items():
        if MATRIX.fullmatch(name):
            array = array.T
        elif array.ndim == 2 and re.fullmatch(r"visual\.(.*\.)?(conv\d|downsample\.0)\.weight", name):
            array = _convolution(name, array, "visual.class_embedding" in tensors)
        result[name] = np.ascontiguousarray(array)
    return result


def _convolution(name: str, matrix: np.ndarray, patches: bool) -> np.ndarray:
    """(channels, y, x; outputs) of a patch embedding, else (y, x, channels; outputs) -> (outputs, channels, y, x)."""
    rows, outputs = matrix.shape
    if patches:
        side, channels = math.isqrt(rows // 3), 3
    else:
        side = 3 if name.count(".") == 2 or name.endswith("conv2.weight") else 1
        channels = rows // side ** 2
    if side * side * channels != rows:
        return matrix  # the check of the shapes names it
    if patches:
        return matrix.reshape(channels, side, side, outputs).transpose(3, 0, 1, 2)
    return matrix.reshape(side, side, channels, outputs).transpose(3, 2, 0, 1)


def _from_hugging_face(tensors: StateDict, path: Path) -> StateDict:
    """CLIPModel's names to OpenAI's: q, k, v fused, the two projections transposed.

    A name that is not CLIPModel's stays as it is, so that the check of the names lists it.
    """
    result: StateDict = {}
    split: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        block = _HF_BLOCK.fullmatch(name)
        if name in _HF_NAMES:
            result[_HF_NAMES[name]] = array.reshape(()) if name == "logit_scale" and array.size == 1 else array
        elif name in _HF_TRANSPOSED:
            result[_HF_TRANSPOSED[name]] = np.ascontiguousarray(array.T)
        elif block:
            tower, number, part, kind = block.groups()
            prefix = ("visual." if tower == "vision" else "") + f"transformer.resblocks.{number}."
            if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                split.setdefault(f"{prefix}attn.in_proj_{kind}", {})[part[-6]] = array
            else:
                result[f"{prefix}{_HF_IN_BLOCK.get(part, part)}.{kind}"] = array
        else:
            result[name] = array
    for name, parts in split.items():
        if set(parts) == set("qkv"):  # otherwise it is reported as missing
            shapes, types = {part.shape for part in parts.values()}, {part.dtype for part in parts.values()}
            if len(shapes) != 1 or shapes == {()} or len(types) != 1:
                raise UserError(f"{path}: q, k and v of {name} have different shapes or types, or none")
            result[name] = np.concatenate([parts["q"], parts["k"], parts["v"]])
    return result
