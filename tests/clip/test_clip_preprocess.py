"""The preprocessing against torchvision's own output."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.clip import preprocess
from jclip_fewshot.clip.preprocess import MEAN, STD, image_array, normalize, resize_and_crop

from .preprocess_reference import CASES, EXPECTED, SIZE, draw


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_pixels_are_torchvisions(number):
    expected = np.load(EXPECTED)["pixels"][number].astype(int)
    pixels = np.asarray(resize_and_crop(draw(*CASES[number]), SIZE)).astype(int)
    assert np.abs(pixels - expected).max() <= 1  # 0 with the Pillow that made them


def test_numbers_are_torchvisions():
    stored = np.load(EXPECTED)
    assert np.abs(normalize(stored["pixels"][0]) - stored["first"]).max() < 1e-6


def test_shape_type_and_untouched_input():
    image = draw("RGB", 101, 67)
    before = image.tobytes()
    array = image_array(image, 224)
    assert array.shape == (3, 224, 224) and array.dtype == np.float32 and array.flags.c_contiguous
    assert image.tobytes() == before
    lowest, highest = (0 - np.array(MEAN)) / STD, (1 - np.array(MEAN)) / STD
    assert (array.min(axis=(1, 2)) >= lowest - 1e-5).all()
    assert (array.max(axis=(1, 2)) <= highest + 1e-5).all()


def test_no_exif_rotation():
    image = draw("RGB", 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = draw("RGB", 60, 40)
    turned.info["exif"] = exif.tobytes()
    assert np.array_equal(image_array(image, 32), image_array(turned, 32))


@pytest.mark.parametrize("width, height",
                         [(101, 67), (67, 101), (20, 330), (900, 7), (3, 5000), (41, 28), (640, 480)])
def test_cropping_before_resizing_gives_the_same_pixels(width, height, monkeypatch):
    for mode in ("RGB", "L", "RGBA", "P"):
        image = draw(mode, width, height)
        whole = np.asarray(resize_and_crop(image, 60)).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(preprocess, "_LONG", 0)
            part = np.asarray(resize_and_crop(image, 60)).astype(int)
        assert np.abs(part - whole).max() <= 1 and (part != whole).mean() < 2e-3


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    expected = np.asarray(resize_and_crop(Image.fromarray((ramp // 257).astype(np.uint8)), 32)).astype(int)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        assert image.mode.startswith("I")
        assert np.abs(np.asarray(resize_and_crop(image, 32)).astype(int) - expected).max() <= 1
    dark = Image.fromarray((ramp // 257).astype(np.int32))  # 32 bits that hold no more than 8
    assert np.abs(np.asarray(resize_and_crop(dark, 32)).astype(int) - expected).max() <= 1


def test_without_jittor():
    code = ("import sys; from jclip_fewshot.clip import image_array, token_array, read_state_dict; "
            "token_array('a dog'); sys.exit('jittor' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
