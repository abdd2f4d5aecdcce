"""A CLIP as an encoder, and encoders made of it, which share its model. B images · R pixels a side · K classes"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot import clip
from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.backend.runtime import on_cuda, start
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import read_clip, read_state_dict
from jclip_fewshot.clip.checkpoint.architecture import OPENAI
from jclip_fewshot.clip.checkpoint.files import weight_files
from jclip_fewshot.clip.download import said_of
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.console import warn
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder, Options
from jclip_fewshot.encoders.preprocessing import recipe_said
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import DIGEST_BYTES, content_digest, fed_with
from jclip_fewshot.storage.json_files import read_json, write_json
from jclip_fewshot.storage.row_store import as_keys

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

COLLECT_EVERY = 16  # batches; Jittor's memory grows otherwise
COSINE = 0.9995  # the least of bfloat16 features to float32 ones; docs/notes/speed.md
VERDICTS = "precision.json"  # in the cache's folder: {weights digest: the least cosine}
ONE = 100.0  # the last coordinate of `homogeneous`, about as large as the others
_SENTENCES = ("a photo of a cat.", "a blurry drawing of the large house beside a river.", "text", "3")


class ClipEncoder(Encoder):
    """A loaded CLIP, `model`. One that was trained with a tokenizer that is not read here encodes images alone."""

    cuda_batch = 256

    def __init__(self, model: CLIP, name: str, weights_digest: str, batch_size: int = 0,
                 recipe: PixelRecipe | None = None) -> None:
        scale = float(np.exp(np.float64(model.logit_scale.numpy()[0])))
        super().__init__(name, weights_digest, model.precision, model.visual.input_resolution, model.embed_dim, scale,
                         batch_size, start().device,
                         sum(int(np.prod(parameter.shape)) for parameter in model.parameters()), recipe)
        self.model, self.has_text, self._calls = model, not model.architecture.conventions.tokenizer, 0

    def shape_at(self, depth: Depth = ROWS) -> tuple:
        return (self.width,) if depth == ROWS else self.model.visual.shape_at(None if isinstance(depth, str) else depth)

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        images = self.prepared(pixels)
        if depth == ROWS:
            return self._numpy(self.model.encode_image(images))
        return self._numpy(self.model.visual.activations(images, None if isinstance(depth, str) else depth))

    def prepared(self, pixels: np.ndarray) -> jt.Var:
        """(B, R, R, 3) uint8 RGB -> (B, 3, R, R), as the model takes them."""
        if self.device != "cuda":
            return jt.array(self.recipe.normalized(pixels))
        mean, std = (jt.array(np.array(three, np.float32)) for three in (self.recipe.mean, self.recipe.std))
        return ((jt.array(pixels).float32() / 255 - mean) / std).transpose(0, 3, 1, 2)  # a quarter of the bytes travel

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        return self._numpy(self.model.encode_text(tokens))

    def tokens(self, sentences: Sequence[str]) -> np.ndarray:
        if not self.has_text:
            raise UserError(f"{self.name}: its texts need the tokenizer {self.model.architecture.conventions.tokenizer}"
                            ", which is not read here; it encodes images alone")
        return clip.token_array(sentences, self.model.context_length)

    def lengths(self, tokens: np.ndarray) -> np.ndarray:
        return self.model.ends(tokens) + 1

    def _numpy(self, features: jt.Var) -> np.ndarray:
        result = features.numpy()
        self._calls += 1
        if self._calls % COLLECT_EVERY == 0:
            jt.sync_all()
            jt.gc()
        return result


class FunctionEncoder(ClipEncoder):
    """`base` with rows (width,) by `function` of images (B, 3, R, R), which depends on `said` and on weights alone."""

    def __init__(self, base: ClipEncoder, name: str, said: bytes, width: int,
                 function: Callable[[jt.Var], jt.Var]) -> None:
        digest = content_digest(base.weights_digest.encode() + b"\0" + said).hex()
        super().__init__(base.model, f"{base.name} {name}", digest, base.batch_size, base.recipe)
        self.has_text, self.width, self._function = False, width, function

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        if depth != ROWS:
            return super().images(pixels, depth)
        with jt.no_grad():
            return self._numpy(self._function(self.prepared(pixels)).float32())


def tuned_encoder(base: ClipEncoder, tensors: dict[str, np.ndarray], name: str) -> FunctionEncoder:
    """Return `base` with `tensors` in the place of its own, {OpenAI's name: array in the model's layout}."""
    arrays = {key: np.ascontiguousarray(tensors[key], np.float32) for key in sorted(tensors)}
    said = b"\0".join(part for key, array in arrays.items() for part in (key.encode(), array.tobytes()))
    own = {key: jt.array(array).cast(base.model.dtype).stop_grad() for key, array in arrays.items()}

    def rows(images: jt.Var) -> jt.Var:
        with replaced(base.model, own):
            found = base.model.encode_image(images)
            found.sync()
        return found
    return FunctionEncoder(base, name, said, base.width, rows)


def homogeneous(logits: jt.Var) -> jt.Var:
    """Logits (B, K) -> rows (B, K + 1), whose length says nothing: rows are stored with unit length."""
    return jt.concat([logits.float32(), jt.full((logits.shape[0], 1), ONE)], dim=1)


def logits_of(rows: np.ndarray) -> np.ndarray:
    """Return the logits (N, K) that `homogeneous` rows (N, K + 1) of any length stand for."""
    return (ONE * rows[:, :-1] / rows[:, -1:]).astype(np.float32)


def recognises(path: Path) -> bool:
    names = read_state_dict(path, outline=True)
    return "token_embedding.weight" in names and any(name.startswith("visual.") for name in names)


def open_clip(path: Path, name: str, options: Options) -> ClipEncoder:
    """Open a CLIP; raise UserError as `read_clip` does, or if its preprocessing is not computed here.

    options.dtype: "float16" is for CUDA, "bfloat16" for CPUs with AVX512_BF16, "auto" takes float16 on CUDA; on the CPU
    bfloat16 where the processor is faster by it and this checkpoint's features stay the same, float32 elsewhere.
    """
    weights, sizes, preprocessing = read_clip(path, *said_of(name, options.activation, options.head_width))
    side = sizes.image_resolution
    recipe = recipe_said(preprocessing, path, side) if preprocessing else PixelRecipe((side, side))
    if recipe.size != (side, side):
        raise UserError(f"{path}: its preprocessing makes {recipe.size[1]} x {recipe.size[0]} pixels, its image tower "
                        f"takes {side} x {side}")
    start(options.device)
    from jclip_fewshot.clip.model import build_model
    auto = options.dtype == "auto"
    dtype = ("float16" if on_cuda() else "float32") if auto else options.dtype
    model = build_model(weights, dtype, sizes.conventions)
    digests = [file_digest(file, options.cache) for file in weight_files(path)]
    digest = digests[0]
    if len(digests) > 1 or sizes.conventions != OPENAI:  # what it computes depends on more than a file
        digest = content_digest(" ".join([*digests, repr(sizes.conventions)]).encode()).hex()
    encoder = ClipEncoder(model, name, digest, options.batch_size, recipe)
    if auto and not on_cuda() and bfloat16_holds(encoder, options.cache.folder if options.cache else None):
        model.set_precision("bfloat16")
        encoder.precision = model.precision
    return encoder


def bfloat16_holds(encoder: ClipEncoder, folder: Path | None = None) -> bool:
    """Return whether a float32 CLIP on the CPU gives the same features in bfloat16, and sooner; `folder` remembers."""
    if not cpu.bfloat16_is_faster():
        return False
    verdicts: dict[str, float] = {}
    with contextlib.suppress(UserError):  # none yet, or a damaged one
        verdicts = read_json(folder / VERDICTS, dict[str, float]) if folder else {}
    if encoder.weights_digest not in verdicts:
        verdicts[encoder.weights_digest] = least_cosine(encoder)
        if folder:
            with contextlib.suppress(OSError, UserError):  # a cache that cannot be written to is reported with the rows
                write_json(folder / VERDICTS, verdicts)
    cosine = verdicts[encoder.weights_digest]
    if not cosine >= COSINE:
        warn(f"{encoder.name}: bfloat16 would change its features (cosine {cosine:.5f}); computing in float32")
    return cosine >= COSINE


def least_cosine(encoder: ClipEncoder) -> float:
    """Between bfloat16 and float32 rows of a few images and, where it takes them, sentences."""
    model, pixels = encoder.model, drawn_images(encoder.image_size)
    tokens = encoder.tokens(_SENTENCES) if encoder.has_text else None
    before, rows = model.matrices.precision, []
    for precision in ("float32", "bfloat16"):
        model.set_precision(precision)
        texts = [] if tokens is None else [encoder.texts(tokens)]
        rows.append(unit_rows(np.concatenate([encoder.images(pixels), *texts])))
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


def file_digest(path: Path, cache: FeatureCache | None = None) -> str:
    """BLAKE2b of a large file, remembered while the file stays as it is."""
    if cache is not None:
        digests, known, marks = cache.known_files([path])
        if known[0]:
            return digests.tobytes().hex()
    digest = fed_with(path, hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
    if cache is not None:
        cache.remember_files(marks, as_keys([digest]))
    return digest.hex()
