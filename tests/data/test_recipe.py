"""Pixel recipes: CLIP's own are unchanged, and no pixel changes without a new PREPROCESSING."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.clip.preprocess import normalize, resize_and_crop
from jclip_fewshot.data.recipe import COVER, FIT, PREPROCESSING, SHORT, SQUASH, PixelRecipe, as_seen

SIZES = [(61, 40), (40, 61), (24, 24), (24, 90), (13, 9), (700, 8)]
MODES = ["RGB", "L", "RGBA", "P", "1", "CMYK"]

# What the pixels below come to, by PREPROCESSING. Where this fails the pixels have changed: raise PREPROCESSING, or
# rows of the old pixels come back out of everyone's cache; then add its digest here.
DIGESTS = {"clip-3": "942e03f43df0e827a7c93bd721b66e9e"}


def drawn(mode, size):
    rng = np.random.default_rng(len(mode) + size[0])
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image.convert("RGBA" if mode == "RGBA" else mode)


def every_pixel():
    digest = hashlib.blake2b(digest_size=16)
    plain = PixelRecipe((24, 24))
    recipes = [plain, replace(plain, rgb_first=True, odd_margin="down"), replace(plain, resize=SQUASH, scale=(30, 26)),
               PixelRecipe((24, 32), (27, 36), COVER, 2), replace(plain, resize=FIT, fill=(9, 8, 7), rgb_first=True),
               replace(plain, resize=SQUASH, interpolation=1), replace(plain, resize=SQUASH, floats=True)]
    for mode in MODES:
        for size in SIZES:
            for recipe in recipes:
                pixels = recipe.pixels(drawn(mode, size))
                digest.update(np.round(pixels, 2).astype("<f4").tobytes())
            digest.update(np.asarray(as_seen(drawn(mode, size)).convert("RGB")).tobytes())
    for values in (np.linspace(0, 1, 600, dtype=np.float32), np.linspace(0, 65535, 600).astype(np.uint16)):
        digest.update(plain.pixels(Image.fromarray(values.reshape(20, 30))).tobytes())
    return digest.hexdigest()


def test_pixels_and_their_name_change_together():
    assert DIGESTS.get(PREPROCESSING) == every_pixel(), "see DIGESTS"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_clips_own_recipe_is_clips_own_code(mode, size):
    image = drawn(mode, size)
    pixels = PixelRecipe((24, 24)).pixels(image)
    assert np.array_equal(pixels, np.asarray(resize_and_crop(image, 24)))
    assert np.array_equal(PixelRecipe((24, 24)).normalized(pixels), normalize(pixels))
    if mode == "RGB" and max(size) < 64 * min(size):  # the general code comes to the same
        assert np.array_equal(replace(PixelRecipe((24, 24)), rgb_first=True).pixels(image), pixels)


@pytest.mark.parametrize("resize", [SHORT, COVER, FIT, SQUASH])
@pytest.mark.parametrize("size", [*SIZES, (1, 5000), (5000, 1), (1, 1)])
def test_every_shape_gives_the_size(size, resize):
    for recipe in (PixelRecipe((20, 28), (23, 30), resize, rgb_first=True),
                   replace(PixelRecipe((20, 20)), resize=resize, floats=True)):
        pixels = recipe.pixels(drawn("RGB", size))
        assert pixels.shape == (*recipe.size, 3) and pixels.dtype == recipe.dtype
        assert recipe.normalized(pixels).shape == (3, *recipe.size)


def test_a_constant_picture_stays_constant_and_borders_have_the_fill():
    image = Image.new("RGB", (90, 30), (200, 100, 50))
    for resize in (SHORT, COVER, SQUASH):
        assert (replace(PixelRecipe((24, 24)), resize=resize).pixels(image) == (200, 100, 50)).all()
    pixels = replace(PixelRecipe((24, 24)), resize=FIT, fill=(1, 2, 3), rgb_first=True).pixels(image)
    assert (pixels[8:16] == (200, 100, 50)).all()
    assert (pixels[:8] == (1, 2, 3)).all() and (pixels[16:] == (1, 2, 3)).all()


def test_bytes_and_floats_are_normalised_alike():
    recipe = replace(PixelRecipe((8, 8)), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found = recipe.normalized(pixels)
    np.testing.assert_allclose(recipe.normalized(pixels.astype(np.float32)), found, atol=1e-6)
    expected = (pixels / 255 - recipe.mean) / recipe.std
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-6)
