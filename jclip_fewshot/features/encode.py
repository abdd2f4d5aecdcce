"""Images and sentences -> unit feature rows.

What has once been computed is found again by content (feature_cache.py). Every batch is filled up to one size: the row
of an image is then the same, bit for bit, whatever else is encoded, and Jittor need not compile again.

N images · V views an image · K classes · D feature width · H, W pixels · B batch · L tokens
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.backend.runtime import cores
from jclip_fewshot.console import progress, tell, warn
from jclip_fewshot.data.decode import Decoder, Recipe, digest_of
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.storage.row_store import RowStore, as_keys, sound

TEXT_BATCH = 64
TEXT_STEP = 8  # the last texts are filled up to a multiple of this
IMAGES_A_WORKER = 64  # fewer are decoded sooner than a worker starts
FILES_A_WORKER = 512  # the same for reading alone

Bad = dict[int, str]


def encode_images(encoder: Encoder, paths: Sequence, **how: Any) -> tuple[np.ndarray, Bad]:
    """Return unit feature rows (N, D) of N image files, of several random views the mean; else as `encode_views`."""
    rows, bad = encode_views(encoder, paths, **how)
    return (rows[:, 0] if rows.shape[1] == 1 else unit_rows(rows.mean(axis=1))), bad


def encode_views(encoder: Encoder, paths: Sequence, *, cache: FeatureCache | None = None, workers: int | None = None,
                 stage: str = "images", on_start: Callable[[int], Any] | None = None, depth: Depth = ROWS, **how: Any
                 ) -> tuple[np.ndarray, Bad]:
    """Return unit rows (N, V, D) of the views of N image files, and {index: reason} of those that cannot be decoded.

    workers: decoding processes; None fits them to the machine, 0 decodes here. on_start: told how many images will be
    encoded. depth: another one than ROWS gives (N, V, *shape) in half precision, as it is. how: of decode.Recipe.
    Raise UserError if a worker died, or the encoder gives rows that are no numbers.
    """
    recipe = recipe_of(encoder, **how)
    views, n, store = max(1, recipe.views), len(paths), None
    found, marks = np.zeros(n, bool), np.zeros((n, 2), np.uint64)
    rows: np.ndarray = np.zeros((n, views, *encoder.shape_at(depth)), np.float32 if depth == ROWS else np.float16)
    if cache is not None and n:
        store = stored_rows(cache, encoder, recipe, depth)
        digests, known, marks = cache.known_files(paths)
        if len(store):
            _read_unknown(paths, digests, known, marks, workers, cache)
            rows, found = store.get(digests)
            found &= known
    batch = max(1, round(encoder.batch_size / views))  # images whose views come nearest to the encoder's batch
    wanted = np.flatnonzero(~found).tolist()
    cached, bad = int(found.sum()), dict[int, str]()
    finished, total = cached, cached + len(wanted)
    if wanted and on_start is not None:
        on_start(len(wanted))
    if wanted and cached:
        tell(f"{stage}: {cached:,} of {total:,} cached")
    stage += "" if views == 1 else f" x {views} views"  # the rate is of images, not of views
    workers = _workers(workers, len(wanted), len(wanted) * views // IMAGES_A_WORKER)
    with Decoder(paths, recipe, batch, workers) as decoder, \
            progress(stage=stage, unit="images", total=total, initial=cached) as bar:
        try:
            for indices, pixels, done in decoder.batches(wanted):
                features = _encode_batch(encoder, pixels, batch, depth)
                good = np.array([not one.reason for one in done])
                for i, one in zip(indices, done):
                    if one.reason:
                        bad[i] = one.reason
                    elif one.note:
                        warn(f"{paths[i]}: {one.note}")
                _require_sound(encoder, features[good], f"{paths[indices[0]]} or near it")
                rows[np.asarray(indices)[good]] = features[good]
                whole = {i: one.digest for i, one in zip(indices, done) if not one.reason and not one.note}
                if store is not None and cache is not None and whole:  # a note is to be said again the next time
                    placed, keys = list(whole), as_keys(list(whole.values()))
                    store.put(keys, rows[placed])
                    cache.remember_files(marks[placed], keys)
                finished += len(indices)
                bar.update(len(indices))
        except KeyboardInterrupt:
            kept = " and kept; the same command goes on from there" if store is not None and finished else ""
            raise KeyboardInterrupt(f"{stage}: {finished:,} of {total:,} are encoded{kept}") from None
        finally:
            if cache is not None:
                cache.flush()
    return rows, bad


def recipe_of(encoder: Encoder, views: int = 0, seed: int = 0, view: int = 0, as_seen: bool = False) -> Recipe:
    """What becomes of the images of an encoder; without random views the seed says nothing."""
    return Recipe(encoder.recipe, views, seed if views else 0, view, as_seen)


def stored_rows(cache: FeatureCache, encoder: Encoder, recipe: Recipe, depth: Depth = ROWS) -> RowStore:
    about = {**recipe.about(), "what": "images", "encoder": encoder.fingerprint}
    about |= {} if depth == ROWS else {"depth": depth}
    shape = (max(1, recipe.views), *encoder.shape_at(depth))
    store = cache.rows(about, shape, np.float32 if depth == ROWS else np.float16)
    store.refresh()
    return store


def _workers(asked: int | None, files: int, worth: int) -> int:
    return min(files, worth, cores()) if asked is None else min(files, asked)


def _read_unknown(paths: Sequence, digests: np.ndarray, known: np.ndarray, marks: np.ndarray, workers: int | None,
                  cache: FeatureCache) -> None:
    """Read the files that the cache has not seen at this place; fill in their `digests` and `known`."""
    unknown = np.flatnonzero(~known).tolist()
    # hashing lets other threads run
    pool = ThreadPoolExecutor(_workers(workers, len(unknown), len(unknown) // FILES_A_WORKER) or 1)
    try:
        read = pool.map(digest_of, [paths[index] for index in unknown])
        for digest, index in zip(progress(read, stage="reading", unit="files", total=len(unknown)), unknown):
            if digest is not None:
                digests[index] = as_keys([digest])[0]
                known[index] = True
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for no file that is not being read
    now_known = [i for i in unknown if known[i]]
    cache.remember_files(marks[now_known], digests[now_known])


def _encode_batch(encoder: Encoder, pixels: np.ndarray, batch: int, depth: Depth) -> np.ndarray:
    """pixels (n, V, H, W, 3) -> unit rows (n, V, D), or half-precision numbers at another depth."""
    n, views, *shape = pixels.shape
    filled = pixels.reshape(n * views, *shape)
    if n < batch:
        filled = np.concatenate([filled, np.zeros(((batch - n) * views, *shape), pixels.dtype)])
    found = encoder.images(filled, depth)[:n * views]
    found = unit_rows(found) if depth == ROWS else found.astype(np.float16)
    return found.reshape(n, views, *encoder.shape_at(depth))


def _require_sound(encoder: Encoder, features: np.ndarray, what: str) -> None:
    """Raise UserError unless (n, V, ...) features are finite and no view's are all zero."""
    if not sound(features).all():
        raise UserError(f"the encoder {encoder.name} gives rows that are zero or no numbers, of {what}: is the "
                        "checkpoint damaged? (float16 may overflow)")


def encode_texts(encoder: Encoder, sentences_by_class: Sequence[Sequence[str]], class_names: Sequence[str] = (), *,
                 cache: FeatureCache | None = None) -> np.ndarray:
    """Return text rows (K, D): the normalised mean of the normalised rows of each class's sentences.

    Raise UserError, which names the class, if it has no sentence or one that is too long.
    """
    tokens = []
    for name, sentences in zip(class_names or range(len(sentences_by_class)), sentences_by_class):
        if not len(sentences):
            raise UserError(f"class {name} has no sentence: give it at least one prompt")
        try:
            tokens.append(encoder.tokens(sentences))
        except UserError as error:
            raise UserError(f"class {name}: {str(error).rpartition(';')[0]}; shorten the class's name, its template or "
                            "its description") from None
    if not tokens:
        return np.zeros((0, encoder.width), np.float32)
    rows = _encode_tokens(encoder, np.concatenate(tokens), cache)
    return unit_rows(np.stack([one.mean(axis=0) for one in np.split(rows, np.cumsum([len(t) for t in tokens[:-1]]))]))


def _encode_tokens(encoder: Encoder, tokens: np.ndarray, cache: FeatureCache | None) -> np.ndarray:
    """(P, L) -> unit rows (P, D); the same tokens are computed once."""
    tokens, back = np.unique(tokens, axis=0, return_inverse=True)
    tokens = np.ascontiguousarray(tokens, np.int32)
    keys, store = as_keys([content_digest(row.tobytes()) for row in tokens]), None
    rows, found = np.zeros((len(tokens), 1, encoder.width), np.float32), np.zeros(len(tokens), bool)
    if cache is not None:
        store = cache.rows({"what": "texts", "encoder": encoder.fingerprint}, (1, encoder.width))
        store.refresh()
        rows, found = store.get(keys)
    wanted = np.flatnonzero(~found)
    wanted = wanted[np.argsort(encoder.lengths(tokens[wanted]), kind="stable")]
    try:
        with progress(stage="sentences", unit="sentences", total=len(wanted)) as bar:
            for begin in range(0, len(wanted), TEXT_BATCH):
                part = wanted[begin:begin + TEXT_BATCH]
                filled = np.resize(part, -(-len(part) // TEXT_STEP) * TEXT_STEP)
                features = unit_rows(encoder.texts(tokens[filled])[:len(part)])[:, None]
                _require_sound(encoder, features, "texts")
                rows[part] = features
                if store is not None:
                    store.put(keys[part], features)
                bar.update(len(part))
    finally:
        if cache is not None:
            cache.flush()
    return rows[np.asarray(back).reshape(-1), 0]
