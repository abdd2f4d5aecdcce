"""Images at a depth of the image tower: what a method needs that trains from there upwards.

    activations = Activations(encoder, paths, cache=cache, views=10)
    views = activations.at(UNPROJECTED)     # or ROWS, or b: the input of block b
    views.take(images, numbers)             # (n, W) float32: image i in view v

All below the depth is computed once, whatever trains above it. Numbers lie in half precision, in the cache by
content, and are mapped into memory: an input of a ViT-B/32's block is 77 kB a view. Without a cache they are held.

Letters: S images, V views, L tokens, W width of the image tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jclip_fewshot.data.decode import Decoder, Recipe
from jclip_fewshot.encoders.base import Depth, Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.encode import depth_of_rows, encode_images, encode_views
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.storage.fit_cache import FitCache
from jclip_fewshot.storage.row_store import RowStore

PIXELS_AT_ONCE = 64
CHUNK_BYTES = 256 << 20  # encoded at a time


class Views:
    """S images in V views: a list of arrays (V, *shape), each in half or single precision."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def count(self) -> int:
        """V"""
        return len(self._images[0]) if len(self._images) else 0

    def take(self, images: np.ndarray, views: np.ndarray) -> np.ndarray:
        """images (n,), views (n,) -> (n, *shape) float32."""
        return np.stack([self._images[i][v] for i, v in zip(images, views)]).astype(np.float32)


class Activations:
    """S images of one encoder at any depth, encoded when first asked for.

    encoder: the tower. paths: S readable images. views, seed, workers, as_seen: as for `encode_images`; 0 views is the
    plain image. class_tokens (K, L): a sentence a class, for what trains the text tower. fits: where finished trainings
    are kept.
    """

    def __init__(self, encoder: Encoder, paths: Sequence, *, cache: FeatureCache | None = None, views: int = 0,
                 seed: int = 0, workers: int | None = None, class_tokens: np.ndarray | None = None,
                 as_seen: bool = False, fits: FitCache | None = None) -> None:
        self.encoder, self.paths = encoder, list(paths)
        self._cache, self._views, self._seed, self._workers = cache, views, seed, workers
        self.class_tokens: Any = class_tokens
        self._as_seen, self.fits = as_seen, fits
        self._at: dict[Depth, Views] = {}

    @property
    def model(self) -> Any:
        """The encoder's CLIP."""
        return self.encoder.model  # type: ignore[attr-defined]  # only a CLIP in Jittor is asked for activations

    @classmethod
    def of_arrays(cls, encoder: Encoder, arrays: dict[Depth, np.ndarray]) -> Activations:
        """Activations that are given: {depth: (S, V, *shape)}."""
        activations = cls(encoder, [])
        activations._at = {depth: Views(list(array)) for depth, array in arrays.items()}
        return activations

    def at(self, depth: Depth) -> Views:
        """Every image at that depth.

        Raises:
            UserError: an image that cannot be read.
        """
        if depth not in self._at:
            self._at[depth] = Views(self._encoded(depth))
        return self._at[depth]

    def under(self, make: Callable[[Encoder], Encoder]) -> np.ndarray:
        """Return the plain images' unit rows (S, width) by the encoder that `make` makes of this one.

        Raise UserError if an image cannot be read.
        """
        rows, bad = encode_images(make(self.encoder), self.paths, cache=self._cache, workers=self._workers,
                                  stage="shots", as_seen=self._as_seen)
        self._require_readable(self.paths, bad)
        return rows

    def pixels(self) -> np.ndarray:
        """Return the plain images (S, R, R, 3) as the encoder asks for them.

        Raise UserError if an image cannot be read.
        """
        recipe = self.encoder.recipe
        pixels, bad = np.zeros((len(self.paths), *recipe.size, 3), recipe.dtype), {}
        with Decoder(self.paths, Recipe(recipe, as_seen=self._as_seen), PIXELS_AT_ONCE, 0) as decoder:
            for indices, found, done in decoder.batches(list(range(len(self.paths)))):
                pixels[indices] = found[:, 0]
                bad.update((index, one.reason) for index, one in zip(indices, done) if one.reason)
        self._require_readable(self.paths, bad)
        return pixels

    def waiting(self, depth: Depth) -> int:
        """How many views are not encoded to that depth yet."""
        if depth in self._at:
            return 0
        there = 0
        if self._cache is not None:
            store, digests, known = self._stored(depth)
            there = int((store.holds(digests) & known).sum())
        return (len(self.paths) - there) * max(1, self._views)

    def digest(self, images: np.ndarray) -> str:
        """Names some of the images by their content and the views of them, in order."""
        if not self.paths:
            held = next(iter(self._at.values()))
            chosen = np.asarray(images)
            parts = [held.take(np.repeat(i, held.count), np.arange(held.count)).tobytes() for i in chosen]
        else:
            parts = [_file_digest(self.paths[i]) for i in images]
        said = f"{self._views} {self._seed} " + ("as seen " if self._as_seen else "")
        return content_digest(said.encode() + b"".join(parts)).hex()

    def _encoded(self, depth: Depth) -> list[np.ndarray]:
        shape = (max(1, self._views),) + self.encoder.shape_at(depth)
        step = max(1, CHUNK_BYTES // (4 * int(np.prod(shape))))
        held: list[np.ndarray] = []
        for begin in range(0, len(self.paths), step):
            part = self.paths[begin:begin + step]
            rows, bad = encode_views(self.encoder, part, cache=self._cache, views=self._views, seed=self._seed,
                                     workers=self._workers, stage=f"shots at {_said(depth)}", depth=depth,
                                     as_seen=self._as_seen)
            self._require_readable(part, bad)
            if self._cache is None:
                held.extend(rows)
        return held if self._cache is None else self._mapped(depth)

    @staticmethod
    def _require_readable(paths: Sequence, bad: dict[int, str]) -> None:
        for index, reason in bad.items():
            raise UserError(f"training image {paths[index]} cannot be read ({reason}); give another one")

    def _mapped(self, depth: Depth) -> list[np.ndarray]:
        rows: list[np.ndarray] = []
        store, digests, known = self._stored(depth)
        for index, row in enumerate(store.mapped(digests)):
            if row is None or not known[index]:  # changed since, or a cache that could not be written
                one, _ = encode_views(self.encoder, self.paths[index:index + 1], cache=self._cache,
                                      views=self._views, seed=self._seed, workers=0, depth=depth,
                                      as_seen=self._as_seen)
                rows.append(one[0])
            else:
                rows.append(row)
        return rows

    def _stored(self, depth: Depth) -> tuple[RowStore, np.ndarray, np.ndarray]:
        """The rows of that depth in the cache, the images' keys in it (S, 2), and which of these are known, (S,)."""
        recipe = Recipe(self.encoder.recipe, self._views, self._seed if self._views else 0, as_seen=self._as_seen)
        shape = (max(1, self._views), *self.encoder.shape_at(depth))
        store = self._cache.rows(depth_of_rows(self.encoder, recipe, depth), shape, _kind(depth))
        store.refresh()
        digests, known, _ = self._cache.known_files(self.paths)
        return store, digests, known


def _kind(depth: Depth) -> type:
    return np.float32 if depth == "rows" else np.float16


def _file_digest(path: object) -> bytes:
    with open(str(path), "rb") as file:
        return content_digest(file.read())


def _said(depth: Depth) -> str:
    return f"block {depth}" if isinstance(depth, int) else str(depth)
