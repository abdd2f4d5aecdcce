"""Encoders: images or sentences in, feature rows out.

In: pixels as bytes, tokens or token embeddings. Out: NumPy rows, not normalised, at a chosen depth. May import
clip, backend, storage and data.decode's digests; no heads, no paths of images.
"""

from jclip_fewshot.encoders.base import ROWS, UNPROJECTED, Depth, Encoder, Options
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.encoders.registry import open_encoder

__all__ = ["ROWS", "UNPROJECTED", "ClipEncoder", "Depth", "Encoder", "Options", "open_encoder"]
