"""Checkpoint files: read, checked, written. A path comes in, {OpenAI's name: array} and sizes go out.

`files` finds them, `read` and `pickles` know their bytes, `names` and `architecture` what a CLIP is, `origin` how it
is computed. Nothing in a file is run.
"""

from jclip_fewshot.clip.checkpoint.architecture import Architecture, Conventions, Tower, check_state_dict, layout
from jclip_fewshot.clip.checkpoint.names import StateDict, openai_names
from jclip_fewshot.clip.checkpoint.read import read_clip, read_state_dict, read_tensors
from jclip_fewshot.clip.checkpoint.write import convert, write_safetensors

__all__ = ["Architecture", "Conventions", "StateDict", "Tower", "check_state_dict", "convert", "layout",
           "openai_names", "read_clip", "read_state_dict", "read_tensors", "write_safetensors"]
