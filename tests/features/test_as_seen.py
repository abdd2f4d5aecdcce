"""Whether pictures are turned as EXIF says: decided by the data set's layout, kept in the run's record."""

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.encoders.base import ROWS, Encoder
from jclip_fewshot.features.sources import EncoderSource
from jclip_fewshot.storage.feature_cache import FeatureCache


class Mean(Encoder):
    """The mean colour of each quarter."""

    def __init__(self):
        super().__init__("mean", "0" * 32, "float32", 16, 12, 100.0, 4)

    def images(self, pixels, _depth=ROWS):
        quarters = [pixels[:, y:y + 8, x:x + 8].mean(axis=(1, 2)) for y in (0, 8) for x in (0, 8)]
        return np.concatenate(quarters, axis=1).astype(np.float32) + 1


@pytest.fixture
def folder(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16], pixels[16:, :16] = (250, 30, 30), (20, 220, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.png")
    return tmp_path


def rows_of(folder, source):
    return source.images(folder, ["turned.png", "upright.png"])[0]


def test_a_plain_tree_is_seen_as_a_viewer_shows_it(folder):
    source = EncoderSource(Mean(), FeatureCache(folder / "cache"), None, {"model": "mean"})
    turned, upright = rows_of(folder, source)
    assert np.array_equal(turned, upright) and source.record() == {"model": "mean", "as_seen": True}
    again, _ = rows_of(folder, source)  # from the cache
    assert np.array_equal(again, turned)


def test_the_contests_pictures_are_clips_own_wherever_the_run_meets_them(folder):
    (folder / "classes.txt").write_text("A 0\n")
    source = EncoderSource(Mean(), FeatureCache(folder / "cache"), None, {"model": "mean"})
    turned, upright = rows_of(folder, source)
    assert not np.allclose(turned, upright, atol=0.1) and source.record()["as_seen"] is False
    (folder / "classes.txt").unlink()  # as `predict` finds them, in no contest's folder
    assert np.array_equal(rows_of(folder, source)[0], turned)
    reopened = EncoderSource(Mean(), FeatureCache(folder / "cache"), None, {"model": "mean"}, as_seen=False)
    assert np.array_equal(rows_of(folder, reopened)[0], turned)
