"""Photographs to CLIP's input with Pillow alone; no Jittor here, so that decode workers stay light.

OpenAI's pipeline (clip/clip.py `_transform`) in its own order: resize the short side (bicubic, in the
image's own mode), centre crop, RGB, to [0, 1], mean and standard deviation. EXIF rotation is not applied.
"""

from __future__ import annotations

from typing import Optional, Tuple

import numpy as np
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
# A table of the 256 values of each channel: the same bits as computing pixel by pixel, several times as fast.
_VALUES = ((np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - MEAN) / STD).T.copy()  # (3, 256)
_BICUBIC = getattr(Image, "Resampling", Image).BICUBIC


def resize_and_crop(image: Image.Image, size: int,
                    true_size: Optional[Tuple[int, int]] = None) -> Image.Image:
    """The short side to `size`, then the middle `size` x `size` pixels, in RGB.

    The rounding is torchvision's: the long side is cut down to a whole pixel, the crop's corner is
    rounded half to even. `true_size` is the picture's (width, height) before its decoder shrank it by
    2, 4 or 8: `image` may then reach a part of a pixel beyond the picture.
    """
    width, height = true_size or image.size
    shrunk = round(width / image.width)
    box = (0, 0, width / shrunk, height / shrunk)
    if min(width, height) != size:
        if width <= height:
            width, height = size, int(size * height / width)
        else:
            width, height = int(size * width / height), size
        image = image.resize((width, height), _BICUBIC, box)
    left, top = int(round((width - size) / 2.0)), int(round((height - size) / 2.0))
    return image.crop((left, top, left + size, top + size)).convert("RGB")


def normalize(pixels: np.ndarray) -> np.ndarray:
    """(..., size, size, 3) uint8 to (..., 3, size, size) float32 with CLIP's mean and deviation taken out."""
    channels = [np.take(table, pixels[..., channel], mode="clip") for channel, table in enumerate(_VALUES)]
    return np.stack(channels, axis=-3)


def image_array(image: Image.Image, size: int, true_size: Optional[Tuple[int, int]] = None) -> np.ndarray:
    """One image as CLIP sees it: (3, size, size) float32."""
    return normalize(np.asarray(resize_and_crop(image, size, true_size)))
