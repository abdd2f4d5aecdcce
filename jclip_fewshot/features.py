"""Images and sentences -> unit feature rows.

    encoder = open_encoder("ViT-B/32")
    cache = FeatureCache(".cache")
    rows, bad = encode_images(encoder, paths, cache=cache)             # (N, D), {index: reason}
    text = encode_texts(encoder, sentences_by_class, cache=cache)      # (K, D)

Images are decoded ahead of the encoder (decode.py) and what has once been computed is found again by content
(feature_cache.py). Every batch is filled up to one size: the row of an image is then the same, bit for bit,
whatever is encoded beside it and wherever an earlier run stopped, and Jittor, which compiles a batch of 1
anew, need not.

Letters: N images, V views an image, K classes, D feature width, R pixels a side, B batch, L tokens.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from . import progress as bars
from .clip.preprocess import MEAN, STD, normalize
from .decode import DIGEST_BYTES, Decoder, Recipe, content_digest
from .errors import UserError
from .feature_cache import FeatureCache, as_keys
from .progress import progress

PREPROCESSING = "clip-1"  # in every fingerprint: to be raised when preprocess.py or decode.py change a pixel
CPU_BATCH, CUDA_BATCH = 16, 256
TEXT_BATCH = 64
TEXT_STEP = 8  # the last texts are filled up to a multiple of this
IMAGES_A_WORKER = 64  # fewer are decoded sooner than a worker starts
FILES_A_WORKER = 512  # the same for reading alone
COLLECT_EVERY = 16  # batches; Jittor's memory grows otherwise

Bad = Dict[int, str]


@dataclass(frozen=True)
class Encoder:
    """A CLIP as the rest of the package sees it: NumPy in, NumPy out, rows not yet normalised."""

    name: str
    fingerprint: str  # of the checkpoint's content, the preprocessing and the precision
    image_size: int   # R
    width: int        # D
    batch_size: int   # B
    device: str       # "cpu" or "cuda"
    images: Callable[[np.ndarray], np.ndarray]        # (B, R, R, 3) uint8, RGB -> (B, D) float32
    texts: Callable[[np.ndarray], np.ndarray]         # (B, L) int32 -> (B, D) float32
    tokens: Callable[[Sequence[str]], np.ndarray]     # B sentences -> (B, L) int32
    parameters: int = 0                               # of both towers


def open_encoder(name_or_path: Union[str, Path], *, device: Optional[str] = None,
                 download_root: Union[str, Path, None] = None, dtype: str = "float32",
                 batch_size: Optional[int] = None, cache: Optional[FeatureCache] = None,
                 tokens: Optional[Callable[[Sequence[str]], np.ndarray]] = None) -> Encoder:
    """Loads a CLIP by name or checkpoint file.

    dtype: "float16" on CUDA is twice as fast or more; its features are kept apart from float32's in the
        cache.
    batch_size: None takes 16 on the CPU, 256 on CUDA.
    cache: saves reading the checkpoint twice for its fingerprint.
    tokens: another tokenizer than CLIP's, for a CLIP with a vocabulary of its own.
    Raises:
        UserError: see `clip.load`.
    """
    from . import clip
    path = clip.find_checkpoint(name_or_path, download_root)
    model, _ = clip.load(path, device=device, download_root=download_root, dtype=dtype)
    return wrap_model(model, str(name_or_path), _file_digest(path, cache), batch_size, tokens)


def wrap_model(model, name: str, digest: str, batch_size: Optional[int] = None,
               tokens: Optional[Callable[[Sequence[str]], np.ndarray]] = None) -> Encoder:
    """An `Encoder` of a loaded CLIP; `digest` stands for its weights."""
    from . import clip, runtime
    jt = runtime.jt
    calls = 0

    def numpy(features) -> np.ndarray:
        nonlocal calls
        result = features.numpy()
        calls += 1
        if calls % COLLECT_EVERY == 0:
            jt.sync_all()
            jt.gc()
        return result

    cuda = runtime.on_cuda()
    normal = _normalize_on_device if cuda else (lambda pixels: jt.array(normalize(pixels)))
    return Encoder(
        name=name,
        fingerprint=content_digest(f"{digest} {PREPROCESSING} {model.dtype}".encode()).hex(),
        image_size=model.visual.input_resolution,
        width=model.embed_dim,
        batch_size=batch_size or (CUDA_BATCH if cuda else CPU_BATCH),
        device="cuda" if cuda else "cpu",
        images=lambda pixels: numpy(model.encode_image(normal(pixels))),
        texts=lambda batch: numpy(model.encode_text(batch)),
        tokens=tokens or (lambda sentences: clip.token_array(sentences, model.context_length)),
        parameters=sum(int(np.prod(parameter.shape)) for parameter in model.parameters()))


def _normalize_on_device(pixels: np.ndarray) -> "jt.Var":  # noqa: F821
    """clip.preprocess.normalize, computed by Jittor: a quarter of the bytes go over the bus."""
    from .runtime import jt
    return ((jt.array(pixels).float32() / 255 - jt.array(MEAN)) / jt.array(STD)).transpose(0, 3, 1, 2)


def _file_digest(path: Path, cache: Optional[FeatureCache]) -> str:
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


def encode_images(encoder: Encoder, paths: Sequence, *, cache: Optional[FeatureCache] = None, views: int = 1,
                  seed: int = 0, workers: Optional[int] = None, draft: bool = False,
                  shard: Tuple[int, int] = (0, 1), stage: str = "images") -> Tuple[np.ndarray, Bad]:
    """Feature rows of image files.

    paths: N files. cache: where rows are looked for and kept; None computes them all.
    views: 0 or 1 is CLIP's own preprocessing; more is the mean of that many random views, seeded by `seed`
        and the image's content (Tip-Adapter's: crops of half the area and more, flips), normalised again.
    workers: decoding processes; None fits them to the machine, 0 decodes in this process.
    draft: lets libjpeg shrink large JPEGs while decoding single views: faster, not exact (see
        decode.open_image).
    shard: (rank, size): computes only this rank's part; rows of the other parts stay zero where the cache
        does not have them. Afterwards every rank calls again without it and finds all rows in the common
        cache.

    Returns:
        rows (N, D) float32, unit length, and bad {index: reason}: images that could not be decoded; rows of
        zeros.
    Raises:
        UserError: a worker died; the encoder gave rows that are no numbers.
        KeyboardInterrupt: Ctrl-C; workers are stopped and all finished rows are in the cache.
    """
    rows, bad = encode_views(encoder, paths, cache=cache, views=views, seed=seed, workers=workers,
                             draft=draft, shard=shard, stage=stage)
    return (rows[:, 0] if rows.shape[1] == 1 else _unit(rows.mean(axis=1))), bad


def encode_views(encoder: Encoder, paths: Sequence, *, cache: Optional[FeatureCache] = None, views: int = 1,
                 seed: int = 0, workers: Optional[int] = None, draft: bool = False,
                 shard: Tuple[int, int] = (0, 1), stage: str = "images") -> Tuple[np.ndarray, Bad]:
    """As `encode_images`, but the rows of the single views: (N, V, D), each of unit length."""
    views = max(1, views)
    recipe = Recipe(encoder.image_size, views, seed if views > 1 else 0, draft and views == 1)
    n, width = len(paths), encoder.width
    rows = np.zeros((n, views, width), np.float32)
    found = np.zeros(n, bool)
    marks, store = np.zeros((n, 2), np.uint64), None
    if cache is not None:
        about = dict(recipe._asdict(), what="images", encoder=encoder.fingerprint)
        store = cache.rows(about, rows[:1].nbytes)
        store.refresh()
        digests, known, marks = cache.known_files(paths)
        if len(store):
            _read_unknown(paths, digests, known, marks, recipe, workers, cache)
            rows_found, found = store.get(digests)
            rows = rows_found.view(np.float32).reshape(n, views, width)
            found &= known

    batch_images = _images_a_batch(encoder, views)
    rank, ranks = shard
    wanted = [i for i in np.flatnonzero(~found).tolist() if i // batch_images % ranks == rank]
    if workers is None:
        workers = min(default_workers(), len(wanted) * views // IMAGES_A_WORKER)
    bad: Bad = {}
    finished = 0
    decoder = Decoder(paths, recipe, batch_images, workers)
    with decoder, progress(stage=stage, unit="images", total=len(wanted)) as bar:
        try:
            for indices, pixels, done in decoder.batches(wanted):
                bad.update((i, result.reason) for i, result in zip(indices, done) if result.reason)
                features = _encode_batch(encoder, pixels)
                good = [place for place, result in enumerate(done) if not result.reason]
                if not np.isfinite(features[good]).all():
                    raise UserError(f"the encoder {encoder.name} gives rows that are no numbers, near "
                                    f"{paths[indices[0]]}: is the checkpoint sound? (float16 may overflow)")
                placed = [indices[place] for place in good]
                rows[placed] = features[good]
                if store is not None and good:
                    keys = as_keys([done[place].digest for place in good])
                    store.put(keys, rows[placed].reshape(len(good), -1).view(np.uint8))
                    cache.remember_files(marks[placed], keys)
                finished += len(indices)
                bar.update(len(indices))
        except KeyboardInterrupt:
            if not bars.quiet:
                kept = "they are kept" if store is not None else "without a cache they are lost"
                print(f"\n{stage}: stopped after {finished} of {len(wanted)}; {kept}", file=sys.stderr)
            raise
        finally:
            if cache is not None:
                cache.flush()
    return rows, bad


def _read_unknown(paths, digests, known, marks, recipe, workers, cache) -> None:
    """Reads the files that the cache has not seen at this place; fills in their `digests` and `known`."""
    unknown = np.flatnonzero(~known).tolist()
    if workers is None:
        workers = min(default_workers(), len(unknown) // FILES_A_WORKER)
    with Decoder(paths, recipe, 1, workers if unknown else 0) as decoder:
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


def _encode_batch(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """pixels (n, V, R, R, 3) -> unit rows (n, V, D)."""
    n, views = pixels.shape[:2]
    batch = pixels.reshape((n * views,) + pixels.shape[2:])
    missing = _images_a_batch(encoder, views) * views - len(batch)
    if missing:
        batch = np.concatenate([batch, np.zeros((missing,) + batch.shape[1:], np.uint8)])
    return _unit(encoder.images(batch)[:n * views]).reshape(n, views, -1)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 along the last axis; rows of zeros stay zeros."""
    rows = np.asarray(rows, np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms == 0, np.float32(1), norms)


def encode_texts(encoder: Encoder, sentences_by_class: Sequence[Sequence[str]], *,
                 cache: Optional[FeatureCache] = None, stage: str = "sentences") -> np.ndarray:
    """Text rows of classes: the normalised mean of the normalised rows of each class's sentences.

    sentences_by_class: K lists of at least one sentence.

    Returns:
        (K, D) float32 unit rows.
    Raises:
        UserError: a class without sentences; a sentence that is too long.
    """
    for k, sentences in enumerate(sentences_by_class):
        if not len(sentences):
            raise UserError(f"class {k} has no sentence: give it at least one prompt")
    different = dict.fromkeys(s for sentences in sentences_by_class for s in sentences)
    number = {sentence: i for i, sentence in enumerate(different)}
    rows = _encode_sentences(encoder, list(number), cache, stage)
    means = [rows[[number[s] for s in sentences]].mean(axis=0) for sentences in sentences_by_class]
    return _unit(np.stack(means)) if means else np.zeros((0, encoder.width), np.float32)


def _encode_sentences(encoder, sentences, cache, stage) -> np.ndarray:
    """Different sentences -> unit rows (P, D); those with the same tokens are computed once."""
    tokens = encoder.tokens(sentences) if sentences else np.zeros((0, 1), np.int32)
    tokens, back = np.unique(tokens, axis=0, return_inverse=True)
    tokens = np.ascontiguousarray(tokens, np.int32)
    rows = np.zeros((len(tokens), encoder.width), np.float32)
    found = np.zeros(len(tokens), bool)
    keys, store = None, None
    if cache is not None and len(tokens):
        store = cache.rows({"what": "texts", "encoder": encoder.fingerprint}, rows[:1].nbytes)
        store.refresh()
        keys = as_keys([content_digest(row.tobytes()) for row in tokens])
        rows, found = store.get(keys)
        rows = rows.view(np.float32).reshape(len(tokens), -1)
    # The end mark has the highest id: all columns behind it are idle. Similar lengths share a batch.
    wanted = np.flatnonzero(~found)
    wanted = wanted[np.argsort(tokens[wanted].argmax(axis=1), kind="stable")]
    try:
        with progress(stage=stage, unit="sentences", total=len(wanted)) as bar:
            for begin in range(0, len(wanted), TEXT_BATCH):
                part = wanted[begin:begin + TEXT_BATCH]
                filled = np.resize(part, -(-len(part) // TEXT_STEP) * TEXT_STEP)
                features = _unit(encoder.texts(tokens[filled])[:len(part)])
                if not np.isfinite(features).all():
                    raise UserError(f"the encoder {encoder.name} gives text rows that are no numbers: "
                                    "is the checkpoint sound?")
                rows[part] = features
                if store is not None:
                    store.put(keys[part], rows[part].view(np.uint8))
                bar.update(len(part))
    finally:
        if cache is not None:
            cache.flush()
    return rows[np.asarray(back).reshape(-1)]


def default_workers() -> int:
    """Decoding processes: one a core. Beside a CPU encoder they get what it leaves, between its batches all of it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class FeatureTable:
    """Features that somebody has computed already: a .npz of `path`, `feature`, and `classes`, `text`.

    path (N,) image files, relative to the data folder; feature (N, D); text (K, D), in the order of classes
    (K,) or, without that, of the contest's ids. Rows need not be normalised, nor float32.
    """

    file: Path
    index: Dict[str, int]
    feature: np.ndarray             # (N, D) float32 unit rows
    text: Optional[np.ndarray]      # (K, D) float32 unit rows
    classes: Optional[List[str]]

    @classmethod
    def read(cls, file: Union[str, Path]) -> "FeatureTable":
        """Reads and checks a file.

        Raises:
            UserError: absent, not an .npz, arrays missing or of shapes that do not fit.
        """
        file = Path(file)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                names = [name for name in ("path", "feature", "text", "classes") if name in arrays]
                content = {name: arrays[name] for name in names}
        except FileNotFoundError:
            raise UserError(f"--features {file}: no such file")
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"--features {file}: cannot be read as .npz ({error})")
        for name in ("path", "feature"):
            if name not in content:
                raise UserError(f"--features {file}: has no array {name!r}; path and feature are needed")
        paths = [str(path).replace("\\", "/") for path in content["path"].reshape(-1)]
        feature = _checked_rows(file, "feature", content["feature"], len(paths))
        text, classes = content.get("text"), content.get("classes")
        if classes is not None:
            classes = [str(name) for name in classes.reshape(-1)]
        if text is not None:
            text = _checked_rows(file, "text", text, len(text) if classes is None else len(classes))
            if text.shape[1] != feature.shape[1]:
                raise UserError(f"--features {file}: text rows have width {text.shape[1]}, "
                                f"features {feature.shape[1]}")
        index = {path[2:] if path.startswith("./") else path: i for i, path in enumerate(paths)}
        if len(index) < len(paths):
            raise UserError(f"--features {file}: {len(paths) - len(index)} paths stand there twice")
        return cls(file, index, feature, text, classes)

    @property
    def width(self) -> int:
        return self.feature.shape[1]

    def lookup(self, paths: Sequence) -> np.ndarray:
        """(N, D) rows of image paths relative to the data folder.

        Raises:
            UserError: names the images that the file does not hold.
        """
        names = [Path(path).as_posix() for path in paths]
        missing = [name for name in names if name not in self.index]
        if missing:
            raise UserError(f"--features {self.file}: no feature for {_some(missing)} "
                            f"({len(missing)} of {len(names)} images; it holds {len(self.index)})")
        return self.feature[[self.index[name] for name in names]]

    def text_rows(self, class_names: Sequence[str]) -> np.ndarray:
        """(K, D) text rows of classes: by name, or in order where the file has no names.

        Raises:
            UserError: names the classes without a row.
        """
        if self.text is None:
            raise UserError(f"--features {self.file}: has no array 'text' (K, D): the classes' text rows")
        if self.classes is None:
            if len(self.text) != len(class_names):
                raise UserError(f"--features {self.file}: {len(self.text)} text rows without names for "
                                f"{len(class_names)} classes; add an array 'classes' (K,)")
            return self.text.copy()
        number = {name: k for k, name in enumerate(self.classes)}
        missing = [name for name in class_names if name not in number]
        if missing:
            raise UserError(f"--features {self.file}: no text row for {_some(missing)} "
                            f"({len(missing)} of {len(class_names)} classes)")
        return self.text[[number[name] for name in class_names]]


def _checked_rows(file: Path, name: str, rows: np.ndarray, count: int) -> np.ndarray:
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu":
        raise UserError(f"--features {file}: {name} is {rows.dtype} of shape {rows.shape}, "
                        f"numbers of shape ({count}, D) are needed")
    rows = rows.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1))
    if len(broken):
        raise UserError(f"--features {file}: row {broken[0]} of {name} is zero or not finite "
                        f"({len(broken)} such rows)")
    return _unit(rows)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
