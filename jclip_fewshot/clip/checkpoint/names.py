"""Names of tensors: Hugging Face's CLIPModel to OpenAI's, buffers that are no weights left out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.json_files import read_json

StateDict = dict[str, np.ndarray]

_IGNORED = re.compile(r"input_resolution|context_length|vocab_size|.*\.num_batches_tracked|(.*\.)?attn_mask"
                      r"|.*\.position_ids")
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


def is_tensor_name(name: str) -> bool:
    """Whether a text can stand in a message as a tensor's name."""
    return 0 < len(name) <= 300 and name.isprintable()


def openai_names(tensors: StateDict, path: str | Path = "the checkpoint") -> StateDict:
    """The tensors under OpenAI's names, buffers that are no weights left out.

    Raises:
        UserError: Hugging Face's tensors that cannot be joined, or another activation than OpenAI's.
    """
    tensors = {name: array for name, array in tensors.items() if not _IGNORED.fullmatch(name)}
    if any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        _refuse_other_activation(Path(path))
        tensors = _from_hugging_face(tensors, Path(path))
    return tensors


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
        elif name == "text_projection.weight":
            result["text_projection"] = np.ascontiguousarray(array.T)
        elif name == "visual_projection.weight":
            result["visual.proj"] = np.ascontiguousarray(array.T)
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


def _refuse_other_activation(path: Path) -> None:
    """Hugging Face's name the activation next to the weights; OpenAI's models use QuickGELU alone."""
    try:
        config = read_json(path.parent / "config.json")
    except UserError:
        return
    for tower in (config.get("text_config"), config.get("vision_config")):
        activation = tower.get("hidden_act", "quick_gelu") if isinstance(tower, dict) else "quick_gelu"
        if activation != "quick_gelu":
            raise UserError(f"{path} uses the activation {str(activation)[:40]} (config.json); "
                            "only OpenAI's quick_gelu is computed here")
