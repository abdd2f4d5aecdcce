"""Pixel recipes out of the JSON files in a model's folder: transformers', timm's and open_clip's.

Defaults of missing keys are those of the class that the file names, as transformers 4.57 and timm 1.0 have them; what
would change a pixel and is not known here is refused by name. Sources: transformers' image_processing_*.py, timm's
transforms_factory.py, open_clip's transform.py.
"""

import math
from pathlib import Path
from typing import Any

from jclip_fewshot.data.recipe import COVER, FIT, SHORT, SQUASH, PixelRecipe
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.json_files import read_json

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CLIP = {"image_mean": PixelRecipe.mean, "image_std": PixelRecipe.std}
NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3  # Pillow's numbers
INTERPOLATIONS = {"nearest": NEAREST, "lanczos": LANCZOS, "bilinear": BILINEAR, "bicubic": BICUBIC, "random": BILINEAR}
_SHORT_224 = {"size": {"shortest_edge": 224}, "resample": BICUBIC, "do_center_crop": True, "crop_size": 224}
# what the classes of transformers do where the file has no such key
_CLASSES: dict[str, dict[str, Any]] = {
    "CLIP": {**_CLIP, **_SHORT_224}, "Bit": {**_CLIP, **_SHORT_224}, "ChineseCLIP": {**_CLIP, **_SHORT_224},
    "Siglip": {**HALF, "size": {"height": 224, "width": 224}, "resample": BICUBIC},
    "ViT": {**HALF, "size": {"height": 224, "width": 224}, "resample": BILINEAR},
    "DeiT": {**HALF, "size": {"height": 256, "width": 256}, "resample": BICUBIC, "do_center_crop": True,
             "crop_size": 224},
    "ConvNext": {**HALF, "size": {"shortest_edge": 384}, "resample": BILINEAR, "crop_pct": 224 / 256},
    "EfficientNet": {**HALF, "size": {"height": 346, "width": 346}, "resample": NEAREST, "crop_size": 289,
                     "include_top": True},
    "DINOv3ViT": {**IMAGENET, "size": {"height": 224, "width": 224}, "resample": BILINEAR},
}
_TELLING = ("pretrained_cfg", "image_processor_type", "feature_extractor_type", "image_mean", "size")
_UNKNOWN = ("size_divisor", "max_num_patches", "do_thumbnail", "do_align_long_axis", "do_pad", "do_pan_and_scan",
            "do_image_splitting")


def said_in(path: Path) -> dict[str, Any]:
    """An object out of a JSON file; empty where there is no such file. Raise UserError if it holds none."""
    return read_json(path, remedy="download it again") if path.exists() else {}


def recipe_of(folder: Path, config: dict[str, Any]) -> PixelRecipe:
    """Return what a model's folder says of its pixels, `config` being its config.json; raise UserError if nothing."""
    if "preprocess_cfg" in config:  # as our own export writes it, beside transformers' form, whose rounding is another
        return recipe_said(config, folder / "config.json")
    for name in ("preprocessor_config.json", "processor_config.json"):
        said = said_in(folder / name)
        said = said.get("image_processor", said)
        if any(key in said for key in _TELLING):
            return recipe_said(said, folder / name)
    if "pretrained_cfg" in config:
        return recipe_said(config, folder / "config.json")
    raise UserError(f"{folder} has neither preprocessor_config.json nor timm's config.json, so nothing says how "
                    "pictures are resized and normalised; download it beside the model")


def recipe_said(said: dict[str, Any], path: Path, size: int = 0) -> PixelRecipe:
    """Return the recipe of a file of open_clip (`size` if it names none), timm or transformers, or raise UserError."""
    try:
        if "preprocess_cfg" in said:
            recipe = _from_open_clip(said["preprocess_cfg"], size)
        elif "pretrained_cfg" in said:
            recipe = _from_timm(said["pretrained_cfg"])
        else:
            recipe = _from_transformers(said)
        sides = [*recipe.size, *(recipe.scale or recipe.size)]
        if not all(1 <= side <= 4096 for side in sides):
            raise UserError(f"{recipe.size[0]} x {recipe.size[1]} pixels are no size for a picture")
        if len(recipe.mean) != 3 or len(recipe.std) != 3 or not all(s > 0 for s in recipe.std):
            raise UserError(f"mean {recipe.mean} and deviation {recipe.std} are not those of three colours")
        if recipe.interpolation not in INTERPOLATIONS.values():
            raise UserError(f"interpolation {recipe.interpolation} is none that Pillow and the libraries share")
        return recipe
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{path} does not say how pictures are prepared ({type(error).__name__}: {error}); download it "
                        "again") from None


def _from_transformers(said: dict[str, Any]) -> PixelRecipe:
    """Of a preprocessor_config.json, in the form of any year."""
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    family = kind.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    for key in _UNKNOWN:
        if said.get(key):
            raise UserError(f"{key} is not computed here; give another encoder")
    said = {**_CLASSES.get(family, {}), **{key: value for key, value in said.items() if value is not None}}
    needed = [key for key in ("size", "resample", "image_mean", "image_std") if key not in said]
    if needed:
        raise UserError(f"{kind or 'the file'} says no {needed[0]}")
    if not said.get("do_resize", True):
        raise UserError("do_resize is off: the encoder takes pictures of any size, which is not computed here")
    square = "height" in _CLASSES.get(family, {"size": ()})["size"]  # a plain number as size means both sides there
    scale, resize = _transformers_size(said["size"], square)
    size, crop = scale, said.get("crop_size", {})
    if family == "ConvNext":
        if scale[0] < 384:
            scale, resize = (int(scale[0] / said["crop_pct"]),) * 2, SHORT
        else:
            resize = SQUASH
    elif said.get("do_center_crop"):
        size = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    elif resize == SHORT:
        raise UserError("pictures keep their shape and are not cropped, which is not computed here")
    mean, std = _transformers_normal(said)
    return PixelRecipe(size, scale, resize, int(said["resample"]), mean, std, odd_margin="down", rgb_first=True,
                       floats=family == "DINOv3ViT")


def _transformers_size(size: Any, square: bool) -> tuple[tuple[int, int], str]:
    if isinstance(size, int):
        return (size, size), SQUASH if square else SHORT
    if set(size) == {"shortest_edge"}:
        return (int(size["shortest_edge"]),) * 2, SHORT
    if {"height", "width"} <= set(size):
        return (int(size["height"]), int(size["width"])), SQUASH
    raise UserError(f"size by {', '.join(map(str, size))} is not computed here; give another encoder")


def _transformers_normal(said: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels over 255, whatever the file's rescaling comes to."""
    mean, std = [0.0] * 3, [1.0] * 3
    if said.get("do_normalize", True):
        mean, std = (list(map(float, said[key])) for key in ("image_mean", "image_std"))
    factor = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    factor = 1.0 if abs(factor - 1) < 1e-6 else factor
    if said.get("include_top"):  # EfficientNet divides a second time
        std = [s * s for s in std]
    return tuple((m + bool(said.get("rescale_offset"))) / factor for m in mean), tuple(s / factor for s in std)


def _from_timm(said: dict[str, Any]) -> PixelRecipe:
    """Of the pretrained_cfg in timm's config.json."""
    height, width = (int(side) for side in said["input_size"][1:])
    share = float(said.get("crop_pct") or 0.875)
    scale = math.floor(height / share), math.floor(width / share)
    modes = {"squash": SQUASH, "border": FIT, "center": SHORT if scale[0] == scale[1] else COVER}
    resize = _known(modes, "crop_mode", said.get("crop_mode") or "center")
    mean, std = (tuple(map(float, said.get(key) or IMAGENET[f"image_{key}"])) for key in ("mean", "std"))
    fill = tuple(round(255 * m) for m in mean) if resize == FIT else (0, 0, 0)
    interpolation = _known(INTERPOLATIONS, "interpolation", said.get("interpolation") or "bicubic")
    return PixelRecipe((height, width), scale, resize, interpolation, mean, std, fill, rgb_first=True)


def _from_open_clip(said: dict[str, Any], size: int) -> PixelRecipe:
    """Of the preprocess_cfg in open_clip_config.json."""
    given, fill = said.get("size") or size, said.get("fill_color") or 0
    height, width = (given, given) if isinstance(given, int) else map(int, given)
    modes = {"squash": SQUASH, "longest": FIT, "shortest": SHORT if height == width else COVER}
    resize = _known(modes, "resize_mode", said.get("resize_mode") or "shortest")
    mean, std = (tuple(map(float, said.get(key) or _CLIP[f"image_{key}"])) for key in ("mean", "std"))
    interpolation = _known(INTERPOLATIONS, "interpolation", said.get("interpolation") or "bicubic")
    return PixelRecipe((height, width), None, resize, interpolation, mean, std,
                       (fill,) * 3 if isinstance(fill, int) else tuple(map(int, fill)))


def _known(table: dict[str, Any], what: str, name: str) -> Any:
    if name not in table:
        raise UserError(f"{what} {name!r} is not computed here, only {', '.join(table)}")
    return table[name]
