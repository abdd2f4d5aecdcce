"""Images as notebooks hold them: paths, Pillow's images, pixels or finished rows, one or many."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jclip_fewshot.clip.preprocess import eight_bits
from jclip_fewshot.errors import UserError, shown

Picture = str | Path | Image.Image | np.ndarray
# one or many: paths, Pillow's images, uint8 pixels (H, W), (H, W, 3) or (N, H, W, 3); or (N, D) rows of numbers
Images = Picture | Sequence[Picture] | np.ndarray

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def pictures_or_rows(images: Images) -> list[Picture] | np.ndarray:
    """Return a list of pictures, or rows (N, D) as they are; raise TypeError or ValueError if they are neither."""
    for item in images if isinstance(images, (list, tuple)) else [images]:
        if isinstance(item, (bytes, bytearray)) or hasattr(item, "read") and not isinstance(item, os.PathLike):
            raise TypeError("an image's bytes or an open file are not taken: give Image.open(...) of them, or a path")
        if isinstance(item, str) and item.startswith(("http://", "https://")):
            raise TypeError(f"{item}: nothing is fetched from the network; download the image and give its path")
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if hasattr(images, "tocsr"):
        raise TypeError("sparse rows are not taken: give a dense array, images.toarray()")
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim in (3, 4):
        return [images] if images.ndim == 3 else list(images)
    array = np.asarray(images) if hasattr(images, "__array__") else None
    items = list(images) if array is None else array.tolist() if array.ndim == 1 and array.dtype.kind in "OU" else []
    if items and all(isinstance(item, (str, os.PathLike, Image.Image)) or isinstance(item, np.ndarray)
                     and item.dtype == np.uint8 and item.ndim in (2, 3) for item in items):
        return items
    array = np.asarray(items) if array is None else array
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported: rows are real numbers")
    if array.dtype.kind in "fiub":
        return array
    try:  # numbers that stand in an array of objects
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"argument must be a path as a string, a Pillow image, pixels, or numbers (N, D); not "
                        f"{type(images).__name__} of {array.dtype}") from None


@contextlib.contextmanager
def as_files(pictures: Sequence[Picture]) -> Iterator[list[str]]:
    """Paths of the pictures; those that are none are written without loss, and deleted at the end."""
    folder, paths = "", list[str]()
    with contextlib.ExitStack() as stack:
        for number, picture in enumerate(pictures):
            if isinstance(picture, (str, os.PathLike)):
                paths.append(os.fspath(picture))
                continue
            folder = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="jclip-pictures-"))
            paths.append(os.path.join(folder, f"{number}.png"))
            try:
                _write(picture, paths[-1])
            except (OSError, SyntaxError) as error:  # Pillow reads an opened file here at last
                named = getattr(picture, "filename", "") or f"picture {number}"
                raise UserError(f"{shown(str(named))} cannot be read ({error}); fetch it again, or give its path: of a "
                                "file that was cut off, what is there is decoded") from None
        yield paths


def _write(picture: Image.Image | np.ndarray, path: str) -> None:
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        try:
            picture = Image.fromarray(picture)
        except TypeError:
            raise ValueError(f"pixels must be of shape (H, W), (H, W, 3) or (H, W, 4), not {shape}") from None
    exif = picture.getexif()
    if picture.mode in ("I", "F"):  # a 16-bit picture as older Pillows open it; PNG knows no floats
        picture = eight_bits(picture)
    if picture.mode not in _PNG_MODES:
        picture = picture.convert("RGB")  # as CLIP's preprocessing does, there after resizing
    picture.save(path, "PNG", compress_level=0, exif=exif)
