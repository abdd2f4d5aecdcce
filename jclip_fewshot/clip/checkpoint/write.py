"""Checkpoints are written as .safetensors, whole or not at all."""

import json
from pathlib import Path

import numpy as np

from jclip_fewshot.clip.checkpoint.architecture import OPENAI, to_metadata
from jclip_fewshot.clip.checkpoint.names import StateDict
from jclip_fewshot.clip.checkpoint.read import read_clip
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write


def write_safetensors(path: str | Path, state_dict: StateDict, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a .safetensors file; without `metadata` its header says that they are computed as OpenAI's."""
    from safetensors.numpy import save
    content = save({name: np.require(array, None, "C") for name, array in state_dict.items()},
                   metadata or to_metadata(OPENAI))
    with atomic_write(path) as file:
        file.write(content)


def convert(source: str | Path, target: str | Path, half: bool = False, activation: str = "",
            head_width: int = 0) -> StateDict:
    """Rewrite any CLIP as .safetensors under OpenAI's names, how it is computed in the header. Return what was written.

    half: as float16; otherwise each tensor keeps its precision. activation, head_width: as for `read_clip`.
    Raise UserError if `target` is no .safetensors name, or `source` is unreadable or no complete CLIP.
    """
    if Path(target).suffix != ".safetensors":
        raise UserError(f"{target} does not end in .safetensors, the one format that convert writes")
    weights, sizes, preprocessing = read_clip(source, activation, head_width)
    if half:
        weights = {name: array.astype(np.float16) for name, array in weights.items()}
    write_safetensors(target, weights, {**to_metadata(sizes.conventions), "preprocessing": json.dumps(preprocessing)})
    return weights
