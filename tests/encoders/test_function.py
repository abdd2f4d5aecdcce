"""An encoder whose rows are a function of images, and logits that survive being stored with unit length."""

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.encoders.function import FunctionEncoder, homogeneous, logits_of
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
