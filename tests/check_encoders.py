"""A folder of reference encoders against this program's: a line a case, the largest difference against its tolerance.

    python tests/check_encoders.py ../shared/reference/encoders

The folder's index.json names the cases and tolerances; each case has the files that people download and an expected.npz
of the authors' library. Exit status 0 if all that could be run hold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jclip_fewshot.backend import jt  # noqa: E402
from jclip_fewshot.backend.numerics import unit_rows  # noqa: E402
from jclip_fewshot.backend.runtime import start  # noqa: E402
from jclip_fewshot.clip import cpu  # noqa: E402
from jclip_fewshot.encoders import open_encoder  # noqa: E402
from jclip_fewshot.encoders.base import Encoder  # noqa: E402
from jclip_fewshot.encoders.preprocessing import recipe_of, said_in  # noqa: E402
from jclip_fewshot.errors import UserError  # noqa: E402


class Check(NamedTuple):
    """What was compared, how far it is off, and how far it may be."""

    what: str
    off: float
    limit: float


def photos(root: Path) -> list[Image.Image]:
    """The photographs as Pillow decodes them, out of photos.npz: arrays photo0, photo1, …"""
    with np.load(root / "photos.npz") as file:
        return [Image.fromarray(file[f"photo{number}"]) for number in range(len(file["files"]))]


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - expected).max(initial=0)) \
        if np.shape(found) == expected.shape else float("inf")


def pixel_checks(encoder: Encoder, expected: Any, pictures: list[Image.Image], limits: dict) -> Iterator[Check]:
    """Photographs -> pixels."""
    pixels = np.stack([encoder.recipe.pixels(picture) for picture in pictures])
    if "photo_uint8" in expected:
        yield Check("pixels", distance(pixels, expected["photo_uint8"]), 0)
    yield Check("normalised", distance(encoder.recipe.normalized(pixels), expected["photo_pixels"]),
                limits["photo_pixels"])


def native_checks(folder: Path, pictures: list[Image.Image], limits: dict) -> Iterator[Check]:
    """One CLIP in Jittor: its pixels, rows of both towers, fused and by plain operators, and logits."""
    encoder, expected = open_encoder(folder), dict(np.load(folder / "expected.npz"))
    model = encoder.model
    yield from pixel_checks(encoder, expected, pictures, limits)
    fused_available = cpu.available
    for kind in ("fused", "plain") if fused_available() else ("plain",):
        cpu.available = fused_available if kind == "fused" else lambda: False
        try:
            for what in ("image", "photo"):
                given = expected["images" if what == "image" else "photo_pixels"]
                yield Check(f"{what} {kind}", distance(model.encode_image(given).numpy(), expected[f"{what}_features"]),
                            limits["features"])
            for what in ("tokens", "tokens_eos_padded"):
                if what in expected:
                    wanted = expected[what.replace("tokens", "text_features")]
                    yield Check(f"{what} {kind}", distance(model.encode_text(expected[what]).numpy(), wanted),
                                limits["features"])
        finally:
            cpu.available = fused_available
    if "texts" in expected:
        tokens = encoder.tokens([text for text in expected["texts"].tolist() if fits(encoder, text)])
        kept = [row for row, text in zip(expected["tokens"], expected["texts"].tolist()) if fits(encoder, text)]
        yield Check("ids", distance(tokens, np.array(kept)), 0)
    by_image, _ = model(jt.array(expected["images"]), expected["tokens"])
    yield Check("logits", distance(by_image.numpy() + expected.get("logit_bias", 0), expected["logits_per_image"]),
                limits["logits"])
    if not cpu.lacks_bfloat16():
        model.set_precision("bfloat16")
        rows = unit_rows(np.concatenate([model.encode_image(expected["images"]).numpy(),
                                         model.encode_text(expected["tokens"]).numpy()]))
        wanted = unit_rows(np.concatenate([expected["image_features"], expected["text_features"]]))
        yield Check("bfloat16, 1 - cosine", 1 - float((rows * wanted).sum(axis=1).min()),
                    1 - limits["quantized_cosine"])


def fits(encoder: Encoder, text: str) -> bool:
    try:
        encoder.tokens([text])
    except UserError:
        return False
    return True


def onnx_checks(folder: Path, pictures: list[Image.Image], limits: dict) -> Iterator[Check]:
    """One folder of ONNX files: photograph -> pixels -> row, text -> ids -> row."""
    expected = dict(np.load(folder / "expected.npz"))
    encoder = open_encoder(folder, output="logits") if folder.name.endswith("_classifier") else open_encoder(folder)
    yield from pixel_checks(encoder, expected, pictures, limits)
    pixels = np.stack([encoder.recipe.pixels(picture) for picture in pictures])
    rows = encoder.images(pixels)
    yield Check("photo", distance(rows, expected["photo_features"]), limits["features"])
    yield Check("image", distance(encoder.features(expected["images"]), expected["image_features"]), limits["features"])
    if encoder.has_text != ("texts" in expected):
        yield Check("has a text tower", 1, 0)
    elif encoder.has_text:
        ids = encoder.tokens(expected["texts"].tolist())
        texts = encoder.texts(ids)
        yield Check("text", distance(texts, expected["text_features"]), limits["features"])
        logits, wanted = encoder.scale * unit_rows(rows) @ unit_rows(texts).T, expected["logits_per_image"]
        bias = np.mean(wanted - logits)  # SigLIP's; a softmax does not see it
        yield Check("logits", distance(logits + bias, wanted), limits["logits"])
        if "input_ids" in expected and expected["input_ids"].shape == ids.shape:
            yield Check("ids", distance(ids, expected["input_ids"]), 0)


def preprocessing_checks(folder: Path, pictures: list[Image.Image], limits: dict) -> Iterator[Check]:
    """A preprocessing rule without a model: every so many of its pixels."""
    expected = np.load(folder / "expected.npz")
    recipe = recipe_of(folder, said_in(folder / "config.json"))
    pixels = recipe.normalized(np.stack([recipe.pixels(picture) for picture in pictures]))
    step = int(expected["step"])
    yield Check("normalised", distance(pixels[:, :, ::step, ::step], expected["photo_pixels"]), limits["photo_pixels"])


def cases(root: Path) -> Iterator[tuple[str, Path, Any]]:
    """(name, folder, checks) of every case of the index."""
    index = json.loads((root / "index.json").read_text(encoding="utf-8"))
    for kind, checks in (("open_clip", native_checks), ("hf_clip", native_checks), ("onnx", onnx_checks),
                         ("preprocess", preprocessing_checks)):
        for name, case in index.get(kind, {}).items():
            yield f"{kind}/{name}", root / case["folder"], checks


def missing_libraries() -> str:
    """What ONNX encoders need and is not installed."""
    return ", ".join(name for name in ("onnx", "onnxruntime", "tokenizers") if find_spec(name) is None)


def report(root: Path) -> int:
    """Print a line a case; 0 if none differs by more than it may."""
    limits = json.loads((root / "index.json").read_text(encoding="utf-8"))["limits"]
    pictures, wrong = photos(root), 0
    for name, folder, checks in cases(root):
        if checks is onnx_checks and missing_libraries():
            print(f"–  {name:36} skipped: no {missing_libraries()}")
            continue
        try:
            found = list(checks(folder, pictures, limits))
        except UserError as error:
            print(f"✗  {name:36} refused: {error}")
            wrong += 1
            continue
        worst = max(found, key=lambda check: check.off / (check.limit or 1e-9))
        ok = all(check.off <= check.limit for check in found)
        wrong += not ok
        print(f"{'✓' if ok else '✗'}  {name:36} {len(found):2} comparisons; nearest to its tolerance: {worst.what}, "
              f"{worst.off:.1e} of {worst.limit:.0e}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "index.json").is_file():
        sys.exit("usage: python tests/check_encoders.py FOLDER, with an index.json in it")
    start("cpu")
    sys.exit(report(Path(sys.argv[1])))
