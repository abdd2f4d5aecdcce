"""Checkpoints are written as .safetensors, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jclip_fewshot.clip.checkpoint.architecture import check_state_dict
from jclip_fewshot.clip.checkpoint.names import StateDict
from jclip_fewshot.clip.checkpoint.read import read_state_dict
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write


def write_safetensors(path: str | Path, state_dict: StateDict,
                      metadata: dict[str, str] | None = None) -> None:
    """Writes tensors to a .safetensors file, whole or not at all."""
    from safetensors.numpy import save
    content = save({name: np.ascontiguousarray(array).reshape(array.shape)
                   for name, array in state_dict.items()}, metadata)
    with atomic_write(path) as file:
        file.write(content)


def convert(source: str | Path, target: str | Path, half: bool = False) -> StateDict:
    """Rewrites any checkpoint that can be read as .safetensors under OpenAI's names.

    half: store floating-point tensors as float16; otherwise each keeps its precision.

    Returns:
        What was written.
    Raises:
        UserError: `target` is no .safetensors name; `source` is unreadable or no complete CLIP.
    """
    if Path(target).suffix != ".safetensors":
        raise UserError(f"{target} does not end in .safetensors, the one format that convert writes")
    state_dict = read_state_dict(source)
    check_state_dict(state_dict)
    state_dict["logit_scale"] = state_dict["logit_scale"].reshape(())
    if half:
        state_dict = {name: array.astype(np.float16) for name, array in state_dict.items()}
    write_safetensors(target, state_dict, {"format": "pt"})
    return state_dict
