"""Activations: what they hold is what the tower computes, in half precision, once."""

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.data import demo
from jclip_fewshot.encoders import open_encoder
from jclip_fewshot.encoders.base import ROWS, UNPROJECTED, Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import encode_views
from jclip_fewshot.storage import feature_cache
from jclip_fewshot.storage.feature_cache import FeatureCache

VIEWS = 3


@pytest.fixture(scope="module")
def encoder():
    return open_encoder(str(demo.CHECKPOINT))


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "RACY_SECONDS", -1)  # files of this second are trusted to be whole
    rng = np.random.default_rng(0)
    names = [tmp_path / f"{number}.jpg" for number in range(4)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (70, 80, 3), np.uint8)).save(name)
    return names


class Idle(Encoder):
    """Stands for another encoder, and computes nothing."""

    def __init__(self, other):
        self.__dict__.update(vars(other))
        self.shape_at = other.shape_at

    def images(self, pixels, depth=ROWS):
        pytest.fail("encoded a second time")


@pytest.mark.parametrize("depth", [1, UNPROJECTED, ROWS])
def test_encoded_once_and_found_again(encoder, paths, tmp_path, depth):
    cache = FeatureCache(tmp_path / "cache")
    activations = Activations(encoder, paths, cache=cache, views=VIEWS, seed=1)
    expected, _ = encode_views(encoder, paths, views=VIEWS, seed=1, workers=0, depth=depth)
    views = activations.at(depth)
    assert len(views._images) == len(paths) and views.count == VIEWS
    images, numbers = np.array([3, 0]), np.array([0, 2])
    taken = views.take(images, numbers)
    assert taken.dtype == np.float32 and taken.shape == (2, *encoder.shape_at(depth))
    np.testing.assert_allclose(taken, np.stack([expected[3][0], expected[0][2]]), rtol=2e-3, atol=2e-3)
    again = Activations(Idle(encoder), paths[::-1], cache=FeatureCache(tmp_path / "cache"), views=VIEWS, seed=1)
    np.testing.assert_array_equal(again.at(depth).take(np.array([0, 3]), numbers), taken)
    held = Activations(encoder, paths, views=VIEWS, seed=1).at(depth)  # without a cache
    np.testing.assert_allclose(held.take(images, numbers), taken, rtol=2e-3, atol=2e-3)


def test_another_picture_of_the_same_name_is_encoded_again(encoder, paths, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    before = Activations(encoder, paths, cache=cache, views=1)
    first = before.at(1).take(np.array([0]), np.array([0]))
    Image.fromarray(np.zeros((90, 60, 3), np.uint8)).save(paths[0])
    after = Activations(encoder, paths, cache=cache, views=1)
    assert np.abs(after.at(1).take(np.array([0]), np.array([0])) - first).max() > 1e-2
    everyone = np.arange(len(paths))
    assert before.digest(everyone[1:]) == after.digest(everyone[1:])


def test_an_image_that_cannot_be_read_is_named(encoder, paths, tmp_path):
    paths[1].write_bytes(b"no image")
    with pytest.raises(UserError, match="1.jpg cannot be read"):
        Activations(encoder, paths, cache=FeatureCache(tmp_path / "cache"), views=2).at(1)
