"""Drawn images in every Pillow mode, and how tests/data/preprocess_reference.npz was made.

The stored pixels are those of OpenAI's transform in torchvision. To make them again, with an
interpreter that has torchvision:

    python tests/clip/preprocess_reference.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

EXPECTED = Path(__file__).parents[1] / "data" / "preprocess_reference.npz"
SIZE = 28
# (mode, width, height): both orientations, odd remainders, enlarging, nothing to do
CASES = [("RGB", 101, 67), ("RGB", 67, 101), ("RGB", 20, 33), ("RGB", 28, 28), ("RGB", 29, 28),
         ("RGB", 28, 41), ("L", 90, 61), ("RGBA", 75, 50), ("LA", 50, 75), ("P", 64, 48),
         ("1", 64, 48), ("CMYK", 64, 49)]


def draw(mode: str, width: int, height: int) -> Image.Image:
    """Waves and noise from a seed."""
    random = np.random.RandomState(width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 80 * np.sin(x / (3 + c) + c) * np.cos(y / (4 + c)) for c in range(4)]
    pixels = np.clip(np.stack(waves, -1) + random.randint(-30, 30,
                     (height, width, 4)), 0, 255).astype(np.uint8)
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(pixels, mode)
    if mode == "LA":
        return Image.fromarray(pixels[..., :2].copy(), mode)
    if mode == "P":
        image = Image.fromarray(pixels[..., 0] // 16, mode)
        image.putpalette([int(v) for v in random.randint(0, 256, 48)] + [0] * 720)
        return image
    image = Image.fromarray(pixels[..., :3].copy(), "RGB")
    return image if mode == "RGB" else image.convert(mode)


def make() -> None:
    from torchvision import transforms
    transform = transforms.Compose([
        transforms.Resize(
    SIZE, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIZE),
        lambda image: image.convert("RGB")])
    pixels = np.stack([np.asarray(transform(draw(*case))) for case in CASES])
    finish = transforms.Compose([
        transforms.ToTensor(),
        transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))])
    np.savez_compressed(EXPECTED, pixels=pixels, first=finish(Image.fromarray(pixels[0])).numpy())


if __name__ == "__main__":
    make()
