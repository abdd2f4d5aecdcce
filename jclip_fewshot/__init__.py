"""Few-shot image classification on CLIP, in Jittor."""

__version__ = "0.1.0"
