"""Views of a test image."""

import io

import numpy as np
from PIL import Image

from jclip_fewshot.clip.preprocess import resize_and_crop
from jclip_fewshot.data.decode import Recipe, view_images
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.storage.files import content_digest


def picture():
    """120 x 60 pixels, red to the right and green downwards."""
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, 120), np.linspace(0, 255, 60)[:, None]
    return Image.fromarray(pixels)


def views_of(view):
    file = io.BytesIO()
    picture().save(file, "PNG")
    data = file.getvalue()
    recipe = Recipe(PixelRecipe((30, 30)), view=view)
    return [np.asarray(one) for one in view_images(picture(), content_digest(data), recipe)]


def test_the_fixed_views():
    plain, whole, mirrored, mirrored_whole = (views_of(view)[0] for view in range(4))
    np.testing.assert_array_equal(plain, np.asarray(resize_and_crop(picture(), 30)))
    assert whole[:, :, 0].min() < 10 and whole[:, :, 0].max() > 245  # the whole width
    assert plain[:, :, 0].min() > 50
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    np.testing.assert_array_equal(mirrored_whole, whole[:, ::-1])


def test_crops_hang_on_content_and_number_alone():
    np.testing.assert_array_equal(views_of(4), views_of(4))
    assert (views_of(4)[0] != views_of(5)[0]).any()
    assert views_of(4)[0].shape == (30, 30, 3)


def test_the_cache_finds_plain_rows_of_earlier_versions():
    assert Recipe(PixelRecipe((30, 30))).about() == {"size": 30, "views": 0, "seed": 0, "draft": False}
    assert Recipe(PixelRecipe((30, 30)), view=2).about()["view"] == 2
