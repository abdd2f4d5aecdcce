"""Encoders: pixels or tokens in, NumPy rows out, not normalised. They know no methods and no paths of images."""

from jclip_fewshot.encoders.base import ROWS, UNPROJECTED, Depth, Encoder, Options
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.encoders.registry import open_encoder

__all__ = ["ROWS", "UNPROJECTED", "ClipEncoder", "Depth", "Encoder", "Options", "open_encoder"]
