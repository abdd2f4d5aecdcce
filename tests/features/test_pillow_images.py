"""Pictures that Python holds open are read as their files are."""

import io

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.errors import UserError
from jclip_fewshot.features.pictures import as_files


def jpeg(**options):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(buffer, "JPEG",
                                                                                               **options)
    return buffer.getvalue()


def test_a_truncated_pillow_image_is_one_line(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:-500])
    for picture in (Image.open(tmp_path / "cut.jpg"), Image.open(io.BytesIO(jpeg()[:-500]))):
        with pytest.raises(UserError, match="(cut.jpg|picture 0).* cannot be read .*truncated"), as_files([picture]):
            pass


def test_what_exif_says_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    with as_files([Image.open(io.BytesIO(jpeg(exif=exif)))]) as files, Image.open(files[0]) as written:
        assert written.getexif()[0x0112] == 6 and written.size == (90, 60)


def test_floats_are_written_as_bytes():
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    with as_files([Image.fromarray(grey)]) as files, Image.open(files[0]) as written:
        assert np.abs(np.asarray(written) / 255 - grey).max() < 0.003
