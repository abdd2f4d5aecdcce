"""Whether bfloat16 leaves a checkpoint's features what they are."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip import cpu
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.json_files import read_json, write_json

COSINE = 0.9995  # the least of any image or sentence to its float32 features; docs/notes/speed.md
VERDICTS = "precision.json"  # in the cache's folder: {weights digest: the least cosine}
_SENTENCES = ("a photo of a cat.", "a blurry drawing of the large house beside a river.", "text", "3")


def bfloat16_holds(encoder: Any, folder: Path | None = None) -> bool:
    """Return whether a float32 ClipEncoder on the CPU gives the same features in bfloat16, to COSINE, and sooner.

    A few drawn images and sentences are encoded both ways, once for a checkpoint where there is a folder to remember it
    in. The encoder is left as it was.
    """
    if not cpu.bfloat16_is_faster():
        return False
    file, verdicts = Path(folder or "", VERDICTS), dict[str, float]()
    if folder is not None:
        with contextlib.suppress(UserError):  # none yet, or a damaged one
            verdicts = read_json(file, dict[str, float])
    if encoder.weights_digest not in verdicts:
        verdicts[encoder.weights_digest] = least_cosine(encoder)
        if folder is not None:
            with contextlib.suppress(OSError, UserError):  # a cache that cannot be written to is reported with the rows
                write_json(file, verdicts)
    cosine = verdicts[encoder.weights_digest]
    if not cosine >= COSINE:
        warn(f"{encoder.name}: bfloat16 would change its features (cosine {cosine:.5f}); computing in float32")
    return cosine >= COSINE


def least_cosine(encoder: Any) -> float:
    """The least cosine between bfloat16 and float32 rows of a few images and sentences."""
    model, pixels, tokens = encoder.model, drawn_images(encoder.image_size), encoder.tokens(_SENTENCES)
    before, rows = model.matrices.precision, []
    for precision in ("float32", "bfloat16"):
        model.set_precision(precision)
        rows.append(unit_rows(np.concatenate([encoder.images(pixels), encoder.texts(tokens)])))
    model.set_precision(before)
    return float((rows[0] * rows[1]).sum(axis=1).min())


def drawn_images(size: int) -> np.ndarray:
    """(4, R, R, 3) uint8: colour fields of four roughnesses, from large blots to noise."""
    random, images = np.random.default_rng(0), []
    for cells in (3, 12, 48, size):
        field = random.integers(0, 256, (cells, cells, 3))
        places = np.arange(size) * cells // size
        images.append(field[places][:, places])
    return np.stack(images).astype(np.uint8)
