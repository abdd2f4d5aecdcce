"""Files as phones, scanners and downloads leave them: large, cut off, turned, transparent, in floats."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, features

from jclip_fewshot.clip.preprocess import resize_and_crop
from jclip_fewshot.data import decode
from jclip_fewshot.data.listing import IMAGE_SUFFIXES
from jclip_fewshot.data.recipe import PixelRecipe, as_seen

RECIPE = decode.Recipe(PixelRecipe((32, 32)))


def picture(width=120, height=80):
    """Red grows to the right, green downwards."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(folder, data, recipe=RECIPE, name="picture.jpg"):
    """Pixels and what became of a file of these bytes."""
    (folder / name).write_bytes(data)
    out = np.empty((1, 32, 32, 3), np.uint8)
    done = decode.decode(str(folder / name), recipe, out)
    return out[0], done


def difference(found, image):
    return np.abs(found.astype(int) - np.asarray(resize_and_crop(image, 32))).mean()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_under_any_name(form, tmp_path):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    found, done = decoded(tmp_path, saved(picture(), form))
    assert done.reason == done.note == "" and difference(found, picture()) < 6


def test_a_jpeg_without_its_last_bytes_is_decoded_and_said(tmp_path):
    data = saved(picture(400, 300), "JPEG", quality=90)
    whole, _ = decoded(tmp_path, data)
    for missing in (1, 2, 10):
        found, done = decoded(tmp_path, data[:-missing])
        assert done.reason == "" and "cut off" in done.note
        assert np.abs(found.astype(int) - whole).max() <= (0 if missing <= 2 else 60)
    half, done = decoded(tmp_path, data[:len(data) * 6 // 10])
    assert "cut off" in done.note and np.abs(half[:12].astype(int) - whole[:12]).max() == 0


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_other_formats_cut_off(form, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    data = saved(noise, form)
    whole, _ = decoded(tmp_path, data)
    found, done = decoded(tmp_path, data[:len(data) * 9 // 10])
    if done.reason:  # of some formats Pillow reads nothing without the end
        assert not found.any()
    else:
        assert "cut off" in done.note and np.abs(found[:16].astype(int) - whole[:16]).mean() < 60


def test_nothing_but_a_header_is_no_picture(tmp_path):
    data = saved(picture(400, 300), "JPEG")
    start = data.index(b"\xff\xda") + 14
    _, done = decoded(tmp_path, data[:start])
    assert "truncated" in done.reason


def test_a_bmp_begins_with_its_last_row(tmp_path):
    data = saved(picture(400, 300), "BMP")
    _, done = decoded(tmp_path, data[:len(data) // 20])
    assert "truncated" in done.reason
    _, done = decoded(tmp_path, data[:len(data) // 2])
    assert "cut off" in done.note


def test_a_tiff_whose_strips_are_a_part_of_it_is_not_taken_for_black(tmp_path):
    data = bytearray(saved(picture(40, 30), "TIFF"))
    at = data.index(struct.pack("<HHI", 257, 4, 1)) + 8  # ImageLength
    data[at:at + 4] = struct.pack("<I", 3000)
    _, done = decoded(tmp_path, bytes(data))
    assert "strips hold a part" in done.reason


def test_large_jpegs_are_read(tmp_path, monkeypatch):
    """9,000 x 12,000 pixels, and more than Pillow opens; the limits are lowered so that the test is quick."""
    data = saved(picture(1200, 900), "JPEG", quality=95)
    exact, _ = decoded(tmp_path, data)
    monkeypatch.setattr(decode, "SHRUNK_PIXELS", 100_000)
    shrunk, done = decoded(tmp_path, data)
    assert done == (done.digest, "", "") and np.abs(shrunk.astype(int) - exact).max() <= 6
    assert decode.open_image(data)[0].size == (300, 225)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    assert np.array_equal(decoded(tmp_path, data)[0], shrunk)
    progressive = saved(picture(1200, 900), "JPEG", progressive=True)
    assert "too many pixels" in decoded(tmp_path, progressive)[1].reason  # all of it would lie in memory
    monkeypatch.setattr(decode, "JPEG_PIXELS", 1_000_000)
    assert "too many pixels" in decoded(tmp_path, data)[1].reason
    assert "too many pixels" in decoded(tmp_path, saved(picture(1200, 900), "PNG"))[1].reason


def test_pillow_refuses_more_than_179_million_pixels():
    """What the message says of other formats."""
    assert 178e6 < 2 * Image.MAX_IMAGE_PIXELS < 179.5e6
    assert issubclass(JpegImagePlugin.JpegImageFile, Image.Image)


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_floats_are_no_black_picture(top, tmp_path):
    grey = np.asarray(picture().convert("L"))
    data = saved(Image.fromarray((grey / np.float32(255) * np.float32(top)).astype(np.float32)), "TIFF")
    found, done = decoded(tmp_path, data)
    assert done.reason == "" and difference(found, Image.fromarray(grey)) < 1
    wild = saved(Image.fromarray((grey - 100.0).astype(np.float32)), "TIFF")
    assert "float pixels from -" in decoded(tmp_path, wild)[1].reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_users_pictures_and_not_the_contests(orientation, tmp_path):
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Pillow's transpositions that undo the viewer's
    stored = picture()
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, "PNG", exif=exif)
    upright, _ = decoded(tmp_path, data, RECIPE._replace(as_seen=True))
    as_stored, _ = decoded(tmp_path, data)
    assert difference(upright, picture()) == 0
    assert difference(as_stored, stored) == 0
    assert orientation == 1 or difference(as_stored, picture()) > 5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_cut_outs_lie_on_white(mode, tmp_path):
    alpha = Image.new("L", (60, 60))
    alpha.paste(255, (20, 20, 40, 40))
    image = Image.new("RGB", (60, 60))
    image.paste((200, 30, 30), (20, 20, 40, 40))
    image.putalpha(alpha)
    expected = Image.new("RGB", (60, 60), (255, 255, 255))
    expected.paste(image.convert("LA").convert("RGB") if mode == "LA" else image.convert("RGB"), mask=alpha)
    data = saved(image.convert(mode) if mode != "P" else image.quantize(4), "PNG")
    seen, _ = decoded(tmp_path, data, RECIPE._replace(as_seen=True))
    assert difference(seen, expected) < 2
    assert decoded(tmp_path, data)[0][0, 0].max() == 0  # CLIP's own: the colour that lies below


def test_damaged_exif_data_harm_nobody():
    image = picture()
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0\xff"
    assert np.array_equal(np.asarray(as_seen(image)), np.asarray(picture()))


def test_pillows_own_warnings_are_not_shown(tmp_path):
    image = picture().convert("P")
    image.info["transparency"] = bytes(range(256))
    data = saved(image, "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seen in (False, True):
            assert decoded(tmp_path, data, RECIPE._replace(as_seen=seen))[1].reason == ""


def test_avif_is_read_by_its_own_ending_or_said(tmp_path, monkeypatch):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = saved(picture(), "AVIF")
    assert ".avif" in IMAGE_SUFFIXES and decoded(tmp_path, data, name="picture.avif")[1].reason == ""
    monkeypatch.setattr(decode, "FORMATS", tuple(form for form in decode.FORMATS if form != "AVIF"))
    assert "AVIF, which this Pillow cannot read" in decoded(tmp_path, data, name="picture.avif")[1].reason
