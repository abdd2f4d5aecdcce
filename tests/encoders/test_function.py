"""An encoder whose rows are a function of images, and logits that survive being stored with unit length."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.encoders.clip_encoder import FunctionEncoder, homogeneous, logits_of, tuned_encoder
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import encode_images
from jclip_fewshot.methods.towers.token_gda import TokenGDA
from tests.cases import small_clip


def test_logits_are_found_again_whatever_the_length_of_their_rows():
    logits = np.float32([[0, 0, 0], [31.4, -120, 7], [1e-3, 2e-3, -1e-3], [500, 499, 0]])
    rows = homogeneous(jt.array(logits)).numpy()
    assert rows.shape == (4, 4)
    for one in (rows, unit_rows(rows), 0.01 * rows):
        np.testing.assert_allclose(logits_of(one), logits, rtol=1e-4, atol=1e-4)


def test_its_rows_are_the_functions_and_its_fingerprint_says_which():
    base = small_clip()
    pixels = np.random.default_rng(0).integers(0, 255, (3, base.image_size, base.image_size, 3), np.uint8)
    twice = FunctionEncoder(base, "twice", b"2", base.width, lambda images: 2 * base.model.encode_image(images))
    np.testing.assert_allclose(twice.images(pixels), 2 * base.images(pixels), rtol=1e-5)
    np.testing.assert_array_equal(twice.images(pixels, 0), base.images(pixels, 0))
    other = FunctionEncoder(base, "twice", b"3", base.width, lambda images: images)
    assert len({base.fingerprint, twice.fingerprint, other.fingerprint}) == 3


def test_encoders_made_of_another_take_the_pixels_that_it_takes():
    base = small_clip()
    base.recipe = replace(base.recipe, mean=(0.5, 0.5, 0.5))
    for made in (FunctionEncoder(base, "same", b"", base.width, base.model.encode_image), TokenGDA().encoder(base),
                 tuned_encoder(base, {}, "tuned")):
        assert made.recipe == base.recipe


@pytest.mark.parametrize("as_seen", [False, True])
def test_shots_are_seen_by_it_and_as_pixels_as_they_are_encoded(as_seen, tmp_path):
    """A picture with transparency, which is laid on white where pictures are taken as people see them."""
    base, path = small_clip(), str(tmp_path / "glass.png")
    clear = np.random.default_rng(0).integers(0, 255, (70, 80, 4), np.uint8)
    Image.fromarray(clear, "RGBA").save(path)
    expected, _ = encode_images(base, [path], workers=0, as_seen=as_seen)
    shots = Activations(base, [path], workers=0, as_seen=as_seen)
    np.testing.assert_allclose(shots.under(lambda encoder: encoder), expected, atol=1e-6)
    np.testing.assert_allclose(unit_rows(base.images(shots.pixels())), expected, atol=1e-5)
    assert np.array_equal(shots.pixels(), Activations(base, [path], as_seen=not as_seen).pixels()) is False
