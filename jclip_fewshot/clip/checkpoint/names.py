"""Names and layouts of tensors as files have them, to OpenAI's: Hugging Face's CLIPModel, open_clip's CustomTextCLIP,
what a Jittor model of ours saves; wrappers taken off, buffers that are no weights left out."""

import math
import re

import numpy as np

from jclip_fewshot.errors import UserError

StateDict = dict[str, np.ndarray]

# A bias of all logits, which SigLIP's training adds, changes no answer among classes.
_IGNORED = re.compile(r"input_resolution|context_length|vocab_size|.*\.num_batches_tracked|(.*\.)?attn_mask"
                      r"|.*\.position_ids|logit_bias|conventions")
_ANCHOR = re.compile(r"(|.*?\.)(text_model\.embeddings\.|text\.)?token_embedding\.weight")
_CONVOLUTION = re.compile(r"visual\.(.*\.)?(conv\d|downsample\.0)\.weight")
MATRIX = re.compile(r".*\.(in_proj_weight|(out_proj|c_fc|c_proj|[qkv]_proj)\.weight)")  # kept (inputs, outputs) there
# What of the others' names is called otherwise by OpenAI, in this order.
_NAMES = {
    "vision_model.": "visual.", "text_model.": "", "encoder.layers.": "transformer.resblocks.",
    "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token": "token",
    "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final",
    "self_attn.": "attn.", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection",
    "text_projection.bias": "text_projection_bias"}


def openai_names(tensors: StateDict) -> StateDict:
    """Return the tensors under OpenAI's names and in its layout, without wrappers and buffers that are no weights.
    Raise UserError if there are several CLIPs, or if Hugging Face's q, k and v cannot be joined."""
    result: StateDict = {}
    split: dict[str, StateDict] = {}
    for name, array in unwrapped(tensors).items():
        if _IGNORED.fullmatch(name):
            continue
        if name.endswith("_projection.weight"):  # of a Linear
            array = np.ascontiguousarray(array.T)
        if name == "logit_scale" and array.size == 1:  # Jittor has no 0-d arrays
            array = array.reshape(())
        name = name.removeprefix("text.")
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        part = re.fullmatch(r"(.*attn\.)([qkv])_proj\.(weight|bias)", name)
        if part:
            split.setdefault(f"{part[1]}in_proj_{part[3]}", {})[part[2]] = array
        else:
            result[name] = array
    for name, parts in split.items():
        if set(parts) == set("qkv"):  # otherwise it is reported as missing
            if len({(part.shape, part.dtype) for part in parts.values()}) != 1 or not parts["q"].ndim:
                raise UserError(f"q, k and v of {name} have different shapes or types, or none")
            result[name] = np.concatenate([parts[letter] for letter in "qkv"])
    if is_jittors(result):
        return {name: _from_jittor(name, array, "visual.proj" in result) for name, array in result.items()}
    return result


def unwrapped(tensors: StateDict) -> StateDict:
    """Return what lies under the one prefix that a whole CLIP has: `model.`, `module.`, `_orig_mod.` and their like."""
    prefixes = {match[1] for match in map(_ANCHOR.fullmatch, tensors) if match}
    if len(prefixes) > 1:
        raise UserError(f"it holds several CLIPs, under {', '.join(map(repr, sorted(prefixes)[:4]))}; save the "
                        "one that is wanted alone")
    prefix = prefixes.pop() if prefixes else ""
    return {name[len(prefix):]: array for name, array in tensors.items() if name.startswith(prefix)}


def is_jittors(tensors: StateDict) -> bool:
    """Whether the layout is that in which clip/model.py keeps its parameters: convolutions are matrices."""
    return "visual.conv1.weight" in tensors and tensors["visual.conv1.weight"].ndim == 2


def _from_jittor(name: str, array: np.ndarray, vit: bool) -> np.ndarray:
    """A tensor that `jt.save` or `Module.save` wrote of a model of ours: matrices transposed, convolutions as matrices.

    (channels, y, x; outputs) of a patch embedding, else (y, x, channels; outputs) -> (outputs, channels, y, x).
    """
    if MATRIX.fullmatch(name):
        array = array.T
    elif name == "visual.conv1.weight" and vit:
        side = math.isqrt(len(array) // 3)
        array = array.reshape(3, side, side, -1).transpose(3, 0, 1, 2)
    elif _CONVOLUTION.fullmatch(name):
        side = 3 if name.count(".") == 2 or name.endswith("conv2.weight") else 1  # the stem's, and each block's second
        array = array.reshape(side, side, len(array) // side ** 2, -1).transpose(3, 2, 0, 1)
    return np.require(array, None, "C")  # leaves a scalar one
