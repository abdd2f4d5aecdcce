"""Images and sentences -> unit feature rows.

    encoder = open_encoder("ViT-B/32")
    cache = FeatureCache(".cache")
    rows, bad = encode_images(encoder, paths, cache=cache)             # (N, D), {index: reason}
    text = encode_texts(encoder, sentences_by_class, cache=cache)      # (K, D)

Images are decoded ahead of the encoder (decode.py) and what has once been computed is found again by content
(feature_cache.py). Every batch is filled up to one size: the row of an image is then the same, bit for bit,
whatever else is encoded and wherever an earlier run stopped, and Jittor, which compiles a batch of 1
again, need not.

Letters: N images, V views an image, K classes, D feature width, H, W pixels, B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.backend.runtime import cores
from jclip_fewshot.console import progress, tell, warn
from jclip_fewshot.data.decode import Decoder, Recipe
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.storage.row_store import as_keys

TEXT_BATCH = 64
TEXT_STEP = 8  # the last texts are filled up to a multiple of this
IMAGES_A_WORKER = 64  # fewer are decoded sooner than a worker starts
FILES_A_WORKER = 512  # the same for reading alone

Bad = dict[int, str]
OnStart = Callable[[int], None]


def encode_images(encoder: Encoder, paths: Sequence, *, cache: FeatureCache | None = None, views: int = 0,
                  seed: int = 0, workers: int | None = None, as_seen: bool = False,
                  shard: tuple[int, int] = (0, 1), stage: str = "images", view: int = 0,
                  on_start: OnStart = lambda images: None) -> tuple[np.ndarray, Bad]:
    """Feature rows of image files.

    paths: N files. cache: where rows are looked for and kept; None computes them all.
    views: 0 is the encoder's own preprocessing; more is the mean of that many random views, seeded by `seed`
        and the image's content (Tip-Adapter's: crops of half the area and more, flips), normalised again.
    workers: decoding processes; None fits them to the machine, 0 decodes in this process.
    as_seen: turns pictures as their EXIF data says and lays transparent ones on white, which CLIP's own
        preprocessing does not.
    shard: (rank, size): computes only this rank's part; rows of the other parts stay zero where the cache
        does not have them. Afterwards every rank calls again without it and finds all rows in the common
        cache.
    view: with views = 0, another of the test-time views than the first (decode.view_of_test).
    on_start: told before the first batch how many images this process will encode.

    Returns:
        rows (N, D) float32, unit length, and bad {index: reason}: images that could not be decoded; rows of
        zeros.
    Raises:
        UserError: a worker died; the encoder gave rows that are no numbers.
        KeyboardInterrupt: Ctrl-C; says how many are encoded and whether they are in the cache. Workers are stopped.
    """
    rows, bad = encode_views(encoder, paths, cache=cache, views=views, seed=seed, workers=workers,
                             as_seen=as_seen, shard=shard, stage=stage, on_start=on_start, view=view)
    return (rows[:, 0] if rows.shape[1] == 1 else unit_rows(rows.mean(axis=1))), bad


def encode_views(encoder: Encoder, paths: Sequence, *, cache: FeatureCache | None = None, views: int = 0,
                 seed: int = 0, workers: int | None = None, as_seen: bool = False,
                 shard: tuple[int, int] = (0, 1), stage: str = "images", view: int = 0,
                 on_start: OnStart = lambda images: None, depth: Depth = ROWS) -> tuple[np.ndarray, Bad]:
    """As `encode_images`, but the rows of the single views: (N, V, D), each of unit length.

    depth: another one than ROWS gives what the encoder has there, (N, V, *shape), in half precision, as it is.
    """
    recipe = Recipe(encoder.recipe, views, seed if views else 0, view, as_seen)
    views = max(1, views)
    n, kind = len(paths), np.float32 if depth == ROWS else np.float16
    rows = np.zeros((n, views) + encoder.shape_at(depth), kind)
    found = np.zeros(n, bool)
    marks, store = np.zeros((n, 2), np.uint64), None
    if cache is not None and n:
        about = depth_of_rows(encoder, recipe, depth)
        store = cache.rows(about, rows.shape[1:], kind)
        store.refresh()
        digests, known, marks = cache.known_files(paths)
        if len(store):
            _read_unknown(paths, digests, known, marks, recipe, workers, cache)
            rows, found = store.get(digests)
            found &= known

    batch_images = _images_a_batch(encoder, views)
    rank, ranks = shard
    wanted = [i for i in np.flatnonzero(~found).tolist() if i // batch_images % ranks == rank]
    if workers is None:
        workers = min(cores(), len(wanted) * views // IMAGES_A_WORKER)
    workers = min(workers, len(wanted))
    if wanted:
        on_start(len(wanted))
    bad: Bad = {}
    cached = int(found.sum())
    finished, total = cached, cached + len(wanted)
    if cached and wanted:
        tell(f"{stage}: {cached:,} of {total:,} cached")
    named = stage if views == 1 else f"{stage} x {views} views"  # the rate is of images, not of views
    decoder = Decoder(paths, recipe, batch_images, workers)
    with decoder, progress(stage=named, unit="images", total=total, initial=cached) as bar:
        try:
            for indices, pixels, done in decoder.batches(wanted):
                bad.update((i, result.reason) for i, result in zip(indices, done) if result.reason)
                features = _encode_batch(encoder, pixels, depth)
                good = [place for place, result in enumerate(done) if not result.reason]
                noted = [place for place in good if done[place].note]
                for place in noted:
                    warn(f"{paths[indices[place]]}: {done[place].note}")
                if not _sound(features[good]):
                    raise UserError(f"the encoder {encoder.name} gives rows that are zero or no numbers, near "
                                    f"{paths[indices[0]]}: is the checkpoint damaged? (float16 may overflow)")
                placed = [indices[place] for place in good]
                rows[placed] = features[good]
                kept = [place for place in good if place not in noted]  # so that it is said again the next time
                if store is not None and kept:
                    placed = [indices[place] for place in kept]
                    keys = as_keys([done[place].digest for place in kept])
                    store.put(keys, rows[placed])
                    cache.remember_files(marks[placed], keys)
                finished += len(indices)
                bar.update(len(indices))
        except KeyboardInterrupt:
            kept = " and kept; the same command goes on from there" if store is not None and finished else ""
            raise KeyboardInterrupt(f"{stage}: {finished:,} of {total:,} are encoded{kept}")
        finally:
            if cache is not None:
                cache.flush()
    return rows, bad


def depth_of_rows(encoder: Encoder, recipe: Recipe, depth: Depth = ROWS) -> dict:
    """What the cache calls the rows of an encoder at a depth."""
    about = dict(recipe.about(), what="images", encoder=encoder.fingerprint)
    return about if depth == ROWS else dict(about, depth=depth)


def _read_unknown(paths, digests, known, marks, recipe, workers, cache) -> None:
    """Reads the files that the cache has not seen at this place; fills in their `digests` and `known`."""
    unknown = np.flatnonzero(~known).tolist()
    if workers is None:
        workers = min(cores(), len(unknown) // FILES_A_WORKER)
    with Decoder(paths, recipe, 1, min(workers, len(unknown))) as decoder:
        read = decoder.digests(unknown)
        for index, done in progress(read, stage="reading", unit="files", total=len(unknown)):
            if not done.reason:
                digests[index] = as_keys([done.digest])[0]
                known[index] = True
    now_known = [i for i in unknown if known[i]]
    cache.remember_files(marks[now_known], digests[now_known])


def _images_a_batch(encoder: Encoder, views: int) -> int:
    """Images whose views come nearest to the encoder's batch."""
    return max(1, round(encoder.batch_size / views))


def _encode_batch(encoder: Encoder, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
    """pixels (n, V, H, W, 3) -> unit rows (n, V, D), or half-precision numbers at another depth."""
    n, views = pixels.shape[:2]
    batch = pixels.reshape((n * views,) + pixels.shape[2:])
    missing = _images_a_batch(encoder, views) * views - len(batch)
    if missing:
        batch = np.concatenate([batch, np.zeros((missing,) + batch.shape[1:], batch.dtype)])
    if depth != ROWS:
        return encoder.images(batch, depth)[:n * views].reshape((n, views) + encoder.shape_at(depth)).astype(np.float16)
    return unit_rows(encoder.images(batch)[:n * views]).reshape(n, views, -1)


def _sound(features: np.ndarray) -> bool:
    """Whether (n, V, ...) features are finite and no view's are all zero."""
    return bool(np.isfinite(features).all() and features.any(axis=tuple(range(2, features.ndim))).all())


def encode_texts(encoder: Encoder, sentences_by_class: Sequence[Sequence[str]], *,
                 cache: FeatureCache | None = None) -> np.ndarray:
    """Text rows of classes: the normalised mean of the normalised rows of each class's sentences.

    sentences_by_class: K lists of at least one sentence.

    Returns:
        (K, D) float32 rows.
    Raises:
        UserError: a class without sentences; a sentence that is too long.
    """
    for k, sentences in enumerate(sentences_by_class):
        if not len(sentences):
            raise UserError(f"class {k} has no sentence: give it at least one prompt")
    different = dict.fromkeys(s for sentences in sentences_by_class for s in sentences)
    number = {sentence: i for i, sentence in enumerate(different)}
    rows = _encode_sentences(encoder, list(number), cache)
    means = [rows[[number[s] for s in sentences]].mean(axis=0) for sentences in sentences_by_class]
    return unit_rows(np.stack(means)) if means else np.zeros((0, encoder.width), np.float32)


def _encode_sentences(encoder, sentences, cache) -> np.ndarray:
    """Different sentences -> unit rows (P, D); those with the same tokens are computed once."""
    tokens = encoder.tokens(sentences) if sentences else np.zeros((0, 1), np.int32)
    tokens, back = np.unique(tokens, axis=0, return_inverse=True)
    tokens = np.ascontiguousarray(tokens, np.int32)
    rows = np.zeros((len(tokens), encoder.width), np.float32)
    found = np.zeros(len(tokens), bool)
    keys, store = None, None
    if cache is not None and len(tokens):
        store = cache.rows({"what": "texts", "encoder": encoder.fingerprint}, (1, encoder.width))
        store.refresh()
        keys = as_keys([content_digest(row.tobytes()) for row in tokens])
        rows, found = store.get(keys)
        rows = rows[:, 0]
    wanted = np.flatnonzero(~found)
    wanted = wanted[np.argsort(encoder.lengths(tokens[wanted]), kind="stable")]
    try:
        with progress(stage="sentences", unit="sentences", total=len(wanted)) as bar:
            for begin in range(0, len(wanted), TEXT_BATCH):
                part = wanted[begin:begin + TEXT_BATCH]
                filled = np.resize(part, -(-len(part) // TEXT_STEP) * TEXT_STEP)
                features = unit_rows(encoder.texts(tokens[filled])[:len(part)])
                if not _sound(features[:, None]):
                    raise UserError(f"the encoder {encoder.name} gives text rows that are zero or no numbers: "
                                    "is the checkpoint damaged?")
                rows[part] = features
                if store is not None:
                    store.put(keys[part], features[:, None])
                bar.update(len(part))
    finally:
        if cache is not None:
            cache.flush()
    return rows[np.asarray(back).reshape(-1)]
