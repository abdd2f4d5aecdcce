"""Images at a depth of the image tower (encoders.base.Depth): what a method needs that trains from there upwards.

All below the depth is computed once, whatever trains above it. Numbers lie in half precision in the cache, mapped into
memory: an input of a ViT-B/32's block is 77 kB a view. Whatever asks for an image that cannot be read is a UserError.

S images · V views · L tokens · W width of the image tower
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.data.decode import Decoder
from jclip_fewshot.encoders.base import Depth, Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.encode import encode_images, encode_views, recipe_of, stored_rows
from jclip_fewshot.storage.feature_cache import FeatureCache, FitCache
from jclip_fewshot.storage.files import content_digest

PIXELS_AT_ONCE = 64
CHUNK_BYTES = 256 << 20  # encoded at a time


class Views:
    """S images in V views: a list of arrays (V, *shape), each in half or single precision."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images, self.count = images, len(images[0]) if len(images) else 0  # V

    def take(self, images: np.ndarray, views: np.ndarray) -> np.ndarray:
        """images (n,), views (n,) -> (n, *shape) float32."""
        return np.stack([self._images[i][v] for i, v in zip(images, views)]).astype(np.float32)


class Activations:
    """S images of one encoder at any depth, encoded when first asked for; cache, workers, how: as for `encode_views`.

    class_tokens (K, L): a sentence a class, for what trains the text tower. fits: where finished trainings are kept.
    """

    def __init__(self, encoder: Encoder, paths: Sequence, *, cache: FeatureCache | None = None,
                 workers: int | None = None, class_tokens: Any = None, fits: FitCache | None = None, **how: Any
                 ) -> None:
        self.encoder, self.paths, self.fits, self.class_tokens = encoder, list(paths), fits, class_tokens
        self._cache, self._workers, self._how = cache, workers, how
        self._recipe = recipe_of(encoder, **how)
        self._at: dict[Depth, Views] = {}

    @property
    def model(self) -> Any:
        return self.encoder.model  # type: ignore[attr-defined]  # only a CLIP in Jittor is asked for activations

    def at(self, depth: Depth) -> Views:
        if depth not in self._at:
            each = max(1, self._recipe.views) * int(np.prod(self.encoder.shape_at(depth)))
            step, held = max(1, CHUNK_BYTES // (4 * each)), list[np.ndarray]()
            for begin in range(0, len(self.paths), step):
                rows = self._encoded(self.paths[begin:begin + step], depth, self._workers)
                if self._cache is None:
                    held.extend(rows)
            if self._cache is not None:  # one may be missing there: its image has just changed, or no disk was left
                digests, known, _ = self._cache.known_files(self.paths)
                mapped = stored_rows(self._cache, self.encoder, self._recipe, depth).mapped(digests)
                held = [row if row is not None and known[index] else self._encoded([self.paths[index]], depth, 0)[0]
                        for index, row in enumerate(mapped)]
            self._at[depth] = Views(held)
        return self._at[depth]

    def _encoded(self, paths: Sequence, depth: Depth, workers: int | None) -> np.ndarray:
        said = f"block {depth}" if isinstance(depth, int) else depth
        rows, bad = encode_views(self.encoder, paths, cache=self._cache, workers=workers, depth=depth,
                                 stage=f"shots at {said}", **self._how)
        _require_readable(paths, bad)
        return rows

    def under(self, make: Callable[[Encoder], Encoder]) -> np.ndarray:
        """Return the plain images' unit rows (S, width) by the encoder that `make` makes of this one."""
        rows, bad = encode_images(make(self.encoder), self.paths, cache=self._cache, workers=self._workers,
                                  stage="shots", as_seen=self._recipe.as_seen)
        _require_readable(self.paths, bad)
        return rows

    def pixels(self) -> np.ndarray:
        """Return the plain images (S, R, R, 3) as the encoder asks for them."""
        recipe = recipe_of(self.encoder, as_seen=self._recipe.as_seen)
        pixels: np.ndarray = np.zeros((len(self.paths), *recipe.pixels.size, 3), recipe.pixels.dtype)
        with Decoder(self.paths, recipe, PIXELS_AT_ONCE, 0) as decoder:
            for indices, found, done in decoder.batches(list(range(len(self.paths)))):
                pixels[indices] = found[:, 0]
                _require_readable(self.paths, {i: one.reason for i, one in zip(indices, done) if one.reason})
        return pixels

    def digest(self, images: np.ndarray) -> str:
        """Names some of the images by their content and the views of them, in order."""
        parts, recipe = [content_digest(Path(self.paths[i]).read_bytes()) for i in images], self._recipe
        said = f"{recipe.views} {self._how.get('seed', 0)} " + ("as seen " if recipe.as_seen else "")
        return content_digest(said.encode() + b"".join(parts)).hex()


def _require_readable(paths: Sequence, bad: dict[int, str]) -> None:
    for index, reason in bad.items():
        raise UserError(f"training image {paths[index]} cannot be read ({reason}); give another one")
