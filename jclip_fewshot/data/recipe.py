"""What becomes of a picture before an encoder sees it, as CLIP, transformers, timm and open_clip have it.

The decoding workers make pixels (H, W, 3) by a recipe; the encoder takes its mean and deviation out of them.
encoders/preprocessing.py reads recipes out of a model's folder.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps

from jclip_fewshot.clip.preprocess import MEAN, STD, eight_bits, normalize, resize_and_crop

PREPROCESSING = "clip-3"  # in every fingerprint: to be raised when a pixel changes; tests/data/test_recipe.py asks
Pixels = tuple[int, int]  # height, width
SHORT, COVER, FIT, SQUASH = "short", "cover", "fit", "squash"
LONGEST = 64  # times the short side


@dataclass(frozen=True)
class PixelRecipe:
    """Resize to `scale`, take the middle `size`, subtract `mean`, divide by `std`; the defaults are CLIP's own.

    resize: SHORT brings the short side to scale[0], the other down to a whole pixel (torchvision, transformers); COVER
    and FIT round it and fill or fit into the scale (timm); SQUASH takes the scale whatever the picture's shape.
    odd_margin: "even" rounds the crop's corner half to even (torchvision), "down" rounds it down (transformers).
    """

    size: Pixels
    scale: Pixels | None = None  # what the resize aims at; None for `size`
    resize: str = SHORT
    interpolation: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    fill: tuple[int, ...] = (0, 0, 0)  # the colour around a picture that is smaller than the crop
    odd_margin: str = "even"
    rgb_first: bool = False  # colours are converted before the resize, not after it as in CLIP
    floats: bool = False  # resized without rounding to bytes (DINOv3)

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
        return self == PixelRecipe((self.size[0], self.size[0]))

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """(..., H, W, 3) pixels -> (..., 3, H, W) float32 with mean and deviation taken out."""
        return normalize(pixels, self.mean, self.std)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """One picture as (H, W, 3) of `dtype`."""
        if replace(self, mean=MEAN, std=STD).is_clips_own:
            # CLIP's own code makes these pixels, which copes with long pictures and 16 bits
            return np.asarray(resize_and_crop(image, self.size[0]))
        image = eight_bits(image)
        image = image.convert("RGB") if self.rgb_first else image
        if self.resize in (SHORT, COVER):
            image = _middle(image)
        to = self._resized(image.height, image.width)
        top, left = (self._corner(have, want) for have, want in zip(to, self.size))  # negative: outside

        def cropped(picture: Image.Image, fill: tuple[int, ...] | float) -> np.ndarray:
            canvas = Image.new(picture.mode, self.size[::-1], fill)
            canvas.paste(picture, (-left, -top))
            return np.asarray(canvas)

        if not self.floats:
            return cropped(image.resize(to[::-1], self.interpolation).convert("RGB"), self.fill)
        bands = [band.convert("F").resize(to[::-1], self.interpolation) for band in image.convert("RGB").split()]
        return np.stack([cropped(band, fill) for band, fill in zip(bands, self.fill)], axis=-1)

    def _resized(self, height: int, width: int) -> Pixels:
        scale = self.scale or self.size
        if self.resize == SQUASH:
            return scale
        if self.resize == SHORT:
            short = scale[0]
            return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
        ratios = height / scale[0], width / scale[1]
        ratio = max(ratios) if self.resize == FIT else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _corner(self, have: int, want: int) -> int:
        if self.odd_margin == "down":
            return (have - want) // 2
        return int(round((have - want) / 2)) if have >= want else -((want - have) // 2)


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is many times as long as wide; it holds all that a crop will keep."""
    width, height = image.size
    short = min(width, height)
    w, h = min(width, LONGEST * short), min(height, LONGEST * short)
    left, top = (width - w) // 2, (height - h) // 2
    return image if (w, h) == (width, height) else image.crop((left, top, left + w, top + h))


def as_seen(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned as its EXIF data says, and on white where it is transparent."""
    try:
        turned = image.getexif().get(0x0112, 1) != 1  # EXIF's orientation; 1 is upright
    except Exception:  # damaged EXIF data raises nearly anything; the picture is sound
        turned = False
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or (image.mode in ("P", "RGB", "L") and "transparency" in image.info):
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, picture).convert("RGB")
    return image
