"""Encoders: pixels or tokens in, NumPy rows out, not normalised. They know no methods and no paths of images."""

from jclip_fewshot.encoders.registry import open_encoder

__all__ = ["open_encoder"]
