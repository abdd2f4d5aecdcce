"""A CLIP as an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jclip_fewshot import clip
from jclip_fewshot.backend import jt
from jclip_fewshot.backend.runtime import on_cuda, start
from jclip_fewshot.clip.preprocess import MEAN, STD, normalize
from jclip_fewshot.encoders.base import ROWS, UNPROJECTED, Depth, Encoder
from jclip_fewshot.encoders.precision import bfloat16_holds
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import DIGEST_BYTES
from jclip_fewshot.storage.row_store import as_keys

CPU_BATCH, CUDA_BATCH = 16, 256
COLLECT_EVERY = 16  # batches; Jittor's memory grows otherwise


class ClipEncoder(Encoder):
    """A loaded CLIP (`model`); `weights_digest` stands for its weights.

    tokenize: another tokenizer than CLIP's, for a CLIP with a vocabulary of its own.
    """

    def __init__(self, model, name: str, weights_digest: str, batch_size: int | None = None,
                 tokenize: Callable[[Sequence[str]], np.ndarray] | None = None) -> None:
        cuda = on_cuda()
        super().__init__(
            name, weights_digest, precision=model.precision, image_size=model.visual.input_resolution,
            width=model.embed_dim, scale=float(np.exp(np.float64(model.logit_scale.numpy()[0]))),
            batch_size=batch_size or (CUDA_BATCH if cuda else CPU_BATCH), device="cuda" if cuda else "cpu",
            parameters=sum(int(np.prod(parameter.shape)) for parameter in model.parameters()))
        self.model = model
        self._tokenize = tokenize or (lambda sentences: clip.token_array(sentences, model.context_length))
        self._calls = 0

    def shape_at(self, depth: Depth = ROWS) -> tuple:
        if depth == ROWS:
            return (self.width,)
        return self.model.visual.shape_at(None if depth == UNPROJECTED else depth)

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        images = self.prepared(pixels)
        if depth == ROWS:
            return self._numpy(self.model.encode_image(images))
        return self._numpy(self.model.visual.activations(images, None if depth == UNPROJECTED else depth))

    def prepared(self, pixels: np.ndarray) -> jt.Var:
        """(B, R, R, 3) uint8 RGB -> (B, 3, R, R), as the model takes them."""
        return normalize_on_device(pixels) if self.device == "cuda" else jt.array(normalize(pixels))

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        return self._numpy(self.model.encode_text(tokens))

    def tokens(self, sentences: Sequence[str]) -> np.ndarray:
        return self._tokenize(sentences)

    def _numpy(self, features) -> np.ndarray:
        result = features.numpy()
        self._calls += 1
        if self._calls % COLLECT_EVERY == 0:
            jt.sync_all()
            jt.gc()
        return result


def open_encoder(name_or_path: str | Path, *, device: str | None = None,
                 download_root: str | Path | None = None, dtype: str = "float32",
                 batch_size: int | None = None, cache: FeatureCache | None = None,
                 tokenize: Callable[[Sequence[str]], np.ndarray] | None = None) -> ClipEncoder:
    """Loads a CLIP by name or checkpoint file.

    dtype: "float32", "float16" (CUDA), "bfloat16" (CPUs with AVX512_BF16), or "auto": float16 on CUDA; on the
        CPU bfloat16 where the processor is faster by it and this checkpoint's features stay the same (precision.py),
        float32 elsewhere. Each precision's rows are kept apart in the cache.
    batch_size: None takes 16 on the CPU, 256 on CUDA.
    cache: saves reading the checkpoint twice for its fingerprint.
    Raises:
        UserError: see `clip.load`.
    """
    path = clip.find_checkpoint(name_or_path, download_root)
    start(device)
    auto = dtype == "auto"
    if auto:
        dtype = "float16" if on_cuda() else "float32"
    model, _ = clip.load(path, device=device, download_root=download_root, dtype=dtype)
    digest = file_digest(path, cache)
    encoder = ClipEncoder(model, str(name_or_path), digest, batch_size, tokenize)
    if auto and not on_cuda() and bfloat16_holds(encoder, cache.folder if cache is not None else None):
        model.set_precision("bfloat16")
        encoder.precision = model.precision
    return encoder


def normalize_on_device(pixels: np.ndarray) -> jt.Var:
    """clip.preprocess.normalize, computed by Jittor: a quarter of the bytes go over the bus."""
    return ((jt.array(pixels).float32() / 255 - jt.array(MEAN)) / jt.array(STD)).transpose(0, 3, 1, 2)


def file_digest(path: Path, cache: FeatureCache | None = None) -> str:
    """BLAKE2b of a large file, remembered while the file stays as it is."""
    if cache is not None:
        digests, known, marks = cache.known_files([path])
        if known[0]:
            return digests.tobytes().hex()
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    if cache is not None:
        cache.remember_files(marks, as_keys([digest.digest()]))
    return digest.hexdigest()
