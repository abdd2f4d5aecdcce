"""What becomes of a picture before an encoder sees it, as CLIP, transformers, timm and open_clip have it.

The decoding workers make pixels by a recipe; the encoder takes its mean and deviation out of them. Which JSON of a
model's folder says what: encoders/preprocessing.py.

Letters: H, W pixels of the result; h, w those of the picture after the resize.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageOps

from jclip_fewshot.clip.preprocess import eight_bits, resize_and_crop

PREPROCESSING = "clip-3"  # in every fingerprint: to be raised when a pixel changes; tests/data/test_recipe.py asks
Pixels = tuple[int, int]  # height, width
SHORT, COVER, FIT, SQUASH = "short", "cover", "fit", "squash"
LONGEST = 64  # times the short side
_UPRIGHT = 1  # EXIF's orientation of a picture that need not be turned
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PixelRecipe:
    """Resize to `scale`, take the middle `size`, subtract `mean`, divide by `std`; the defaults are CLIP's own.

    size: (H, W). scale: what the resize aims at; None for `size`. resize: SHORT brings the short side to scale[0] and
    cuts the other down to a whole pixel (torchvision, transformers), COVER and FIT round it and fill or fit into the
    scale (timm), SQUASH takes the scale whatever the picture's shape. interpolation: Pillow's number. fill: the colour
    around a picture that is smaller than the crop. odd_margin: "even" rounds the crop's corner half to even
    (torchvision), "down" rounds it down (transformers). rgb_first: colours are converted before the resize, not after
    it as in CLIP. floats: resized without rounding to bytes (DINOv3).
    """

    size: Pixels
    scale: Pixels | None = None
    resize: str = SHORT
    interpolation: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, as clip/preprocess.py
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    fill: tuple[int, ...] = (0, 0, 0)
    odd_margin: str = "even"
    rgb_first: bool = False
    floats: bool = False

    @property
    def dtype(self) -> type:
        """Of the pixels: uint8, or float32 from 0 to 255 as well."""
        return np.float32 if self.floats else np.uint8

    @property
    def described(self) -> str:
        """What it does, in a line, for whoever has to do it elsewhere."""
        (height, width), (tall, wide) = self.size, self.scale or self.size
        name = Image.Resampling(self.interpolation).name.lower()
        first = {SHORT: f"resize the short side to {tall}", SQUASH: f"resize to {tall} x {wide} whatever the shape",
                 COVER: f"resize so that {tall} x {wide} are just covered",
                 FIT: f"resize to fit into {tall} x {wide}"}[self.resize]
        middle = "" if self.resize == SQUASH and self.scale in (None, self.size) else \
            f", take the middle {height} x {width}"
        return f"{first} (Pillow, {name}){middle}, RGB / 255, minus mean, over std"

    @property
    def is_clips_own(self) -> bool:
        """Whether this is OpenAI's preprocessing, whatever the size."""
        return self == clip_recipe(self.size[0])

    @cached_property
    def _values(self) -> np.ndarray:
        """(3, 256): a table of the values of each channel, the same bits as computing pixel by pixel, and faster."""
        values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        return ((values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)).T.copy()

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """(..., H, W, 3) pixels -> (..., 3, H, W) float32 with mean and deviation taken out."""
        if pixels.dtype == np.uint8:
            channels = [np.take(table, pixels[..., c], mode="clip") for c, table in enumerate(self._values)]
        else:
            channels = [(pixels[..., c] / np.float32(255) - np.float32(mean)) / np.float32(std)
                        for c, (mean, std) in enumerate(zip(self.mean, self.std))]
        return np.stack(channels, axis=-3)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """One picture as (H, W, 3) of `dtype`."""
        if self._is_simple():
            return np.asarray(resize_and_crop(image, self.size[0]))
        image = eight_bits(image)
        image = image.convert("RGB") if self.rgb_first else image
        if self.resize in (SHORT, COVER):
            image = _middle(image)
        to, corner = self._geometry(image.height, image.width)
        if self.floats:
            bands = [band.convert("F").resize(to[::-1], self.interpolation) for band in image.convert("RGB").split()]
            array = np.stack([np.asarray(band) for band in bands], axis=-1)
        else:
            array = np.asarray(image.resize(to[::-1], self.interpolation).convert("RGB"))
        return self._cropped(array, corner)

    def squashed(self, image: Image.Image) -> np.ndarray:
        """The whole picture squeezed to (H, W), whatever its shape: one of the test-time views."""
        return np.asarray(image.resize(self.size[::-1], self.interpolation)).astype(self.dtype, copy=False)

    def _is_simple(self) -> bool:
        """Whether CLIP's own code makes these pixels, which copes with long pictures and 16 bits."""
        return self.size[0] == self.size[1] and PixelRecipe(self.size) == PixelRecipe(
            self.size, self.scale, self.resize, self.interpolation, fill=self.fill, odd_margin=self.odd_margin,
            rgb_first=self.rgb_first, floats=self.floats)

    def _geometry(self, height: int, width: int) -> tuple[Pixels, Pixels]:
        """Size after the resize, and where the crop's corner lies in it (negative: outside)."""
        scale = self.scale or self.size
        if self.resize == SQUASH:
            to = scale
        elif self.resize == SHORT:
            short = scale[0]
            to = ((int(short * height / width), short) if width <= height else (short, int(short * width / height)))
        else:
            ratios = height / scale[0], width / scale[1]
            ratio = max(ratios) if self.resize == FIT else min(ratios)
            to = round(height / ratio), round(width / ratio)
        to = max(1, to[0]), max(1, to[1])
        return to, (self._corner(to[0], self.size[0]), self._corner(to[1], self.size[1]))

    def _corner(self, have: int, want: int) -> int:
        if self.odd_margin == "down":
            return (have - want) // 2
        return int(round((have - want) / 2)) if have >= want else -((want - have) // 2)

    def _cropped(self, array: np.ndarray, corner: Pixels) -> np.ndarray:
        (top, left), (height, width) = corner, self.size
        result: np.ndarray = np.empty((height, width, 3), self.dtype)
        result[:] = self.fill
        bottom, right = min(array.shape[0], top + height), min(array.shape[1], left + width)
        result[max(0, -top):bottom - top, max(0, -left):right - left] = array[max(0, top):bottom, max(0, left):right]
        return result


def clip_recipe(size: int) -> PixelRecipe:
    """OpenAI's preprocessing for R = `size` pixels a side."""
    return PixelRecipe((size, size))


def _middle(image: Image.Image) -> Image.Image:
    """Of a picture that is many times as long as wide the middle, which holds all that a crop will keep."""
    width, height = image.size
    short = min(width, height)
    w, h = min(width, LONGEST * short), min(height, LONGEST * short)
    left, top = (width - w) // 2, (height - h) // 2
    return image if (w, h) == (width, height) else image.crop((left, top, left + w, top + h))


def as_seen(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned as its EXIF data says, and on white where it is transparent."""
    try:
        turned = image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
    except Exception:  # damaged EXIF data raises nearly anything; the picture is sound
        turned = False
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or (image.mode in ("P", "RGB", "L") and "transparency" in image.info):
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, picture).convert("RGB")
    return image
