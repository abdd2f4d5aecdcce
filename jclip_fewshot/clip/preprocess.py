"""Photographs to CLIP's input with Pillow alone; no Jittor here, so that decode workers stay light.

OpenAI's pipeline (clip/clip.py `_transform`) in its own order: resize the short side (bicubic, in the image's own
mode), centre crop, RGB, to [0, 1], mean and standard deviation. EXIF rotation is not applied.
"""

import math
from functools import cache

import numpy as np
from PIL import Image

MEAN = 0.48145466, 0.4578275, 0.40821073
STD = 0.26862954, 0.26130258, 0.27577711
_BICUBIC = Image.Resampling.BICUBIC
_LONG = 1 << 24  # pixels of a resized image; of a longer one only what is kept is resized


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel or of floats (PNG, TIFF) as grey of 8; Pillow would turn nearly all white or black.

    Floats are taken to lie between 0 and 1, 255 or 65,535, whichever holds them; raise ValueError for any beyond.
    """
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        top = next((top for top in (1, 255, 65535) if 0 <= low <= high <= top), None)
        if top is None:
            raise ValueError(f"float pixels from {low:g} to {high:g}; save it with 8 bits a channel")
        return Image.fromarray((values * np.float32(255 / top) + np.float32(0.5)).astype(np.uint8))
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.max(initial=0) < 256:
        return image.convert("L")
    return Image.fromarray(((np.clip(values, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The short side to `size`, then the middle `size` x `size` pixels, in RGB, with torchvision's rounding."""
    image = eight_bits(image)
    width, height = image.size
    if min(width, height) != size:
        if width <= height:
            width, height = size, int(size * height / width)
        else:
            width, height = int(size * width / height), size
        if width * height > _LONG:
            return _middle(image, (width, height), size).convert("RGB")
        image = image.resize((width, height), _BICUBIC)
    left, top = int(round((width - size) / 2.0)), int(round((height - size) / 2.0))
    return image.crop((left, top, left + size, top + size)).convert("RGB")


def _middle(image: Image.Image, resized: tuple[int, int], size: int) -> Image.Image:
    """The middle `size` x `size` pixels of what is `resized`, without the rest: 1 x 40,000 pixels would become
    224 x 8,960,000 of them. The same pixels: what is cut off lies beyond the reach of the filter."""
    cut, source = [], []
    for axis in (0, 1):
        scale = image.size[axis] / resized[axis]
        first = round((resized[axis] - size) / 2) * scale
        last = first + size * scale
        reach = 2 * max(scale, 1.0) + 1  # of the bicubic filter
        low, high = max(0, int(first - reach)), min(image.size[axis], math.ceil(last + reach))
        cut.append((low, high))
        source.append((first - low, min(last, high) - low))
    (left, right), (top, bottom) = cut
    image = image.crop((left, top, right, bottom))
    if image.mode in ("LA", "RGBA"):  # colours are weighed by their opacity, as Pillow does
        image = image.convert({"LA": "La", "RGBA": "RGBa"}[image.mode])
    for axis, (begin, end) in enumerate(source):  # one after the other, as Pillow does where no box is given
        to = (size, image.height) if axis == 0 else (size, size)
        image = image.resize(to, _BICUBIC, (begin, 0, end, image.height) if axis == 0 else (0, begin, size, end))
    return image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))


@cache
def _values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(3, 256): a table of the values of each channel, the same bits as computing pixel by pixel, and faster."""
    values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    return ((values - np.array(mean, np.float32)) / np.array(std, np.float32)).T.copy()


def normalize(pixels: np.ndarray, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> np.ndarray:
    """(..., H, W, 3) pixels from 0 to 255 to (..., 3, H, W) float32 with mean and deviation taken out."""
    if pixels.dtype == np.uint8:
        channels = [np.take(table, pixels[..., c], mode="clip") for c, table in enumerate(_values(mean, std))]
    else:
        channels = [(pixels[..., c] / np.float32(255) - np.float32(mean[c])) / np.float32(std[c]) for c in range(3)]
    return np.stack(channels, axis=-3)


def image_array(image: Image.Image, size: int) -> np.ndarray:
    """One image as CLIP sees it: (3, size, size) float32."""
    return normalize(np.asarray(resize_and_crop(image, size)))
