"""Weak and strong views of unlabelled images, for methods that ask a tower about both.

weak    the pixels that the encoder asks for (features/activations.py)
strong  of the weak view: crop (0.2 to 1 of its area), flip, colour jitter (0.4, 0.4, 0.4; 80 % of them), grey (20 %),
        Gaussian blur: LaFTer's, but cut out of the square that CLIP sees, and without a change of hue
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
JITTER, JITTERED, GREY = 0.4, 0.8, 0.2
BLUR = (0.1, 2.0)  # standard deviation at 224 pixels


def strong_view(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One strong view of a weak one, (R, R, 3) uint8; an encoder's pixels with fractions are rounded."""
    size = len(pixels)
    image = Image.fromarray(np.rint(pixels).astype(np.uint8))
    area, ratio = size ** 2 * rng.uniform(*AREA), np.exp(rng.uniform(*np.log(RATIO)))
    w, h = (int(np.clip(round(side), 1, size)) for side in (np.sqrt(area * ratio), np.sqrt(area / ratio)))
    left, top = rng.integers(size - w + 1), rng.integers(size - h + 1)
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < JITTERED:
        for change in rng.permutation(3):
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            image = kind(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    if rng.random() < GREY:
        image = ImageOps.grayscale(image).convert("RGB")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * size / 224)))


def strong_views(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A strong view of each of the weak ones (B, R, R, 3) uint8."""
    return np.stack([strong_view(one, rng) for one in pixels])
