"""Where feature rows come from: a CLIP that encodes, or a file of features that somebody has computed.

train.py and test.py do not care which: both sources answer `images` and `texts`. Several of them together are one
more source (several.py), whose rows are theirs side by side.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.download import released
from jclip_fewshot.console import duration, tell, warn
from jclip_fewshot.data.data_set import TestSet
from jclip_fewshot.data.formats import contest
from jclip_fewshot.encoders import onnx_encoder
from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.encoders.registry import open_encoder
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import Bad, encode_images, encode_texts
from jclip_fewshot.features.several import SeveralSources, encoders_of
from jclip_fewshot.features.table import TableSource
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.task import EncoderSlice, Task

BATCHES_TO_SAY = 20  # fewer are over before a forecast of them was read
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".safetensors", ".onnx")
SAID = ("activation", "head_width", "output")  # what the user said of a model
SAME_ROWS = 1e-3  # how far rows may lie apart that only another rounding has changed


class EncoderSource:
    """Encodes image files and sentences; what is in the cache is not computed again.

    Under mpirun each rank encodes a part of the images and finds the others' rows in the cache.

    as_seen: whether pictures are turned as their EXIF data says and laid on white where they are transparent. None lets
    the first folder decide: not in the contest's layout, for parity with CLIP's own preprocessing; else they are.
    """

    def __init__(self, encoder: Encoder, cache: FeatureCache | None, workers: int | None, record: dict,
                 as_seen: bool | None = None) -> None:
        self._encoder = encoder
        self._cache = cache
        self._workers = workers
        self._record = record
        self.barrier: Any = ranks.Barrier(cache.folder) if cache is not None else None  # under mpirun there is a cache
        self._as_seen = as_seen

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0, stage: str = "images",
               test_views: int = 1) -> tuple[np.ndarray, Bad]:
        """Return (N, D) unit rows of files below `root`, and why some could not be read: {index: reason}.

        views: random ones, averaged, in place of the plain image. test_views: without those, how many of the
        test-time views (decode.view_images) are averaged, the plain image first; each is kept in the cache by itself.
        """
        how: dict[str, Any] = dict(cache=self._cache, workers=self._workers, as_seen=self._seen(root))
        files = [os.path.join(os.path.abspath(root), path) for path in paths]
        total: Any = 0
        bad, said = dict[int, str](), False

        def forecast(images: int) -> None:
            nonlocal said
            if not said:
                self._forecast(stage, images, views or (test_views - view if test_views > 1 else 0))
            said = True

        for view in range(1 if views else test_views):
            one = dict(how, views=views, seed=seed if views else 0, view=view, on_start=forecast,
                       stage=f"{stage}, view {view + 1} of {test_views}" if view else stage)
            if ranks.size() > 1:
                encode_images(self._encoder, files, shard=(ranks.rank(), ranks.size()), **one)
                self.barrier.wait()
            rows, unreadable = encode_images(self._encoder, files, **one)
            total, bad = total + rows, {**unreadable, **bad}
            if len(bad) == len(paths):
                break
        return unit_rows(total) if test_views > 1 and not views else total, bad

    def _seen(self, root: Path) -> bool:
        if self._as_seen is None:
            self._as_seen = contest.recognise(Path(root)) is None
        return self._as_seen

    def _forecast(self, stage: str, images: int, views: int) -> None:
        """Say before a long encoding how long it will take here, by timing a batch, and how much disk it needs.

        Raise UserError if the disk of the cache has less room than that.
        """
        encoder, each = self._encoder, max(1, views)
        row_bytes = each * encoder.width * 4 + 64
        where = ""
        if self._cache is not None:
            free = shutil.disk_usage(self._cache.folder if self._cache.folder.exists() else os.curdir).free
            where = f"; {size_text(images * row_bytes)} in {self._cache.folder}"
            if free < images * row_bytes:
                raise UserError(f"{stage}: the cache {self._cache.folder} needs {size_text(images * row_bytes)}, and "
                                f"its disk has {size_text(free)} left; give another {parameter('cache')}, or none")
        if images * each < BATCHES_TO_SAY * encoder.batch_size or not ranks.first():
            return
        pixels: np.ndarray = np.zeros((encoder.batch_size, *encoder.recipe.size, 3), encoder.recipe.dtype)
        encoder.images(pixels)  # compiles
        begun = time.perf_counter()
        encoder.images(pixels)
        rate = encoder.batch_size / (time.perf_counter() - begun)
        what = f"{images:,} images" + (f" x {views} views" if views else "")
        tell(f"{stage}: {what} to encode, about {duration(images * each / rate)} here "
             f"({rate:.0f} {'views' if views else 'images'}/s){where}")

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """Return (K, D) rows, the mean over each class's sentences, normalised again.

        Raise UserError if there is no text tower, or a sentence is too long, whose class is named then.
        """
        if not self._encoder.has_text:
            raise UserError(f"{self.part.name} has no text tower: give a CLIP with it, whose answers it corrects; "
                            f"{parameter('model')} takes several")
        if not ranks.first():  # the first rank's rows are in the cache then
            self.barrier.wait()
        for name, said in zip(class_names, sentences):
            try:
                self._encoder.tokens(said)
            except UserError as error:
                raise UserError(f"class {name}: {str(error).rpartition(';')[0]}; shorten the class's name, its "
                                "template or its description") from None
        rows = encode_texts(self._encoder, sentences, cache=self._cache)
        if ranks.size() > 1 and ranks.first():
            self.barrier.wait()
        return rows

    @property
    def encoder(self) -> Encoder:
        return self._encoder

    @property
    def scale(self) -> float:
        """Of the cosines in zero-shot logits."""
        return self._encoder.scale

    @property
    def part(self) -> EncoderSlice:
        """The encoder among several."""
        encoder, given = self._encoder, Path(self._record["model"])
        name = given.as_posix().replace("/", "-") if released(given) else given.name or given.resolve().name
        if given.suffix in CHECKPOINT_SUFFIXES and not given.is_dir():
            name = given.stem
        return EncoderSlice(name, encoder.width, encoder.has_text, encoder.scale)

    parts = ()  # one encoder

    def activations(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0,
                    sentences: Sequence[str] = ()) -> Activations:
        """The images at any depth of the tower, for what tunes it, and a sentence a class."""
        files = [os.path.join(os.path.abspath(root), path) for path in paths]
        tokens = self._encoder.tokens(sentences) if sentences else None
        fits = None if self._cache is None else self._cache.fits  # finished trainings are kept beside the rows
        return Activations(self._encoder, files, cache=self._cache, views=views, seed=seed, workers=self._workers,
                           class_tokens=tokens, as_seen=self._seen(root), fits=fits)

    def under(self, make: Callable[[Encoder], Encoder]) -> EncoderSource:
        """The same source with the encoder that `make` makes of its own: its rows are cached on their own."""
        return EncoderSource(make(self._encoder), self._cache, self._workers, self._record, self._as_seen)

    @property
    def model(self) -> object:
        """The CLIP that encodes; None where it is none that can be tuned."""
        return getattr(self._encoder, "model", None)

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return self._record if self._as_seen is None else {**self._record, "as_seen": self._as_seen}


Source = EncoderSource | TableSource | SeveralSources


def open_source(model: str | Sequence[str], weights: str, features: str | Sequence[str] = "",
                features_extra: str | Sequence[str] = "", *, cache: str = "", workers: int = 0,
                **how: Any) -> Source:
    """Return a source by what the flags of the same names say; several encoders where they name several.

    how: precision, batch_size, activation, head_width, output, as encoders.Options has them.
    Raise UserError if a checkpoint or feature file is absent, damaged or given twice, or a folder is none.
    """
    models, tables, extra = listed(model), listed(features), listed(features_extra)
    for what, names in (("model", models), ("features", tables), ("features_extra", extra)):
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{parameter(what)} {name} is given twice; each encoder counts once")
    if how.get("output") and not any(map(onnx_encoder.recognises, map(Path, models))):
        raise UserError(f"{parameter('output')} {how['output']} names an output of an ONNX encoder, and there is none")
    found: list[EncoderSource | TableSource] = [TableSource(file) for file in tables]
    found += [] if tables else [_encoder_source(name, weights, cache, workers, **how) for name in models]
    found += [TableSource(file, with_text=False) for file in extra]
    return together(found)


def listed(given: str | Path | Sequence[str]) -> list[str]:
    """What a flag that may be given several times says: a text, or several."""
    if isinstance(given, (str, Path)):
        return [str(given)] if str(given) else []
    return [str(one) for one in given]


def together(found: Sequence[Any]) -> Source:
    """Return one source of several encoders, those with text first; one alone stays itself.

    Raise UserError if there is none, if of several none has text, or if one is there twice.
    """
    found = sorted(found, key=lambda source: not source.part.has_text)
    if not found:
        raise UserError(f"no encoder is named: give {parameter('model')} or {parameter('features')}")
    if len(found) > 1 and not found[0].part.has_text:
        raise UserError(f"{found[0].part.name} has no text tower: give a CLIP with it, whose answers it corrects; "
                        f"{parameter('model')} takes several")
    known: dict[str, str] = {}
    for source in found:
        digest = source.record().get("weights_digest") or source.record().get("features_digest", "")
        if digest in known:
            raise UserError(f"{source.part.name} is the same encoder as {known[digest]}; each counts once")
        known[digest] = source.part.name
    return found[0] if len(found) == 1 else SeveralSources(found)


def reopen_source(saved: dict, where: Sequence[tuple[str, str]], shots: Sequence[str], class_names: Sequence[str],
                  task: Task, *, cache: str = "", workers: int = 0, **how: Any) -> Source:
    """Return the source that a run was trained with.

    saved: what `record` of that source said. where: of each encoder, the model or the file of features as it lies now,
    and the folder of its weights.
    shots (S,): the run's training images, class_names (K,), task: what it learned from, to recognise rows.
    Raise UserError if it is gone, or another one now.
    """
    if "others" in saved:
        parts = task.parts
        if len(parts) != 1 + len(saved["others"]):
            raise UserError("the run's record names other encoders than its arrays hold: train again")
        encoding = dict(cache=cache, workers=workers, **how)
        return together([reopen_source(one, [place], shots, class_names, task.of(part.name).evidence, **encoding)
                         for part, one, place in zip(parts, encoders_of(saved), where)])
    (place, weights), = where
    if "features" in saved:
        table = TableSource(place, saved.get("has_text", True))
        if table.record()["features_digest"] != saved.get("features_digest"):
            _require_same_rows(table, place, shots, class_names, task)
        return table
    if "weights_digest" not in saved:
        raise UserError("the run does not say which checkpoint it was trained with; train again")
    if how.get("precision", "auto") == "auto":  # the run's own, where this machine has it
        how["precision"] = saved.get("precision") or "auto"
    how.update({name: saved[name] for name in SAID if name in saved})
    as_seen = saved.get("as_seen", False)  # earlier versions turned no picture
    source = _encoder_source(place, weights, cache, workers, as_seen, **how)
    now = source.record()
    if now["weights_digest"] != saved["weights_digest"]:
        raise UserError(f"{place} is not the checkpoint that the run was trained with (width {now['width']} "
                        f"now, {saved.get('width')} then; the content differs): train again, or say with "
                        f"{parameter('model')} or {parameter('weights')} where the old file lies")
    if now["precision"] != saved.get("precision"):
        warn(f"the run was trained in {saved.get('precision')} and is tested in {now['precision']}; features agree to "
             "about 1e-3")
    return source


def _require_same_rows(source: TableSource, file: str, shots: Sequence[str], class_names: Sequence[str],
                       task: Task) -> None:
    """Raise UserError where a feature file that has changed holds other rows than those the run learned from."""
    remedy = f"train again, or give the old one with {parameter('features')}"
    try:
        text = source.texts(class_names) if source.part.has_text else task.text
        pairs = ((source.images(None, shots)[0], task.features), (text, task.text))
    except UserError as error:
        raise UserError(f"{file} is not the feature file that the run was trained with, and cannot be compared with it "
                        f"({error}): {remedy}") from None
    if not all(now.shape == then.shape and np.abs(now - then).max(initial=0) < SAME_ROWS for now, then in pairs):
        raise UserError(f"{file} is not the feature file that the run was trained with: its shots' or text rows differ;"
                        f" {remedy}")
    tell(f"{file} has changed since the run was trained, but not in what the run learned from")


def _encoder_source(model: str, weights: str, cache: str, workers: int, as_seen: bool | None = None, *,
                    precision: str = "auto", **how: Any) -> EncoderSource:
    ranks.require_cache(cache)
    if os.path.exists(weights) and not os.path.isdir(weights):
        raise UserError(f"{parameter('weights')} {weights}: no folder; give the one where checkpoints lie")
    store = FeatureCache(os.path.abspath(cache)) if cache else None
    encoder = open_encoder(model, download_root=weights, dtype=precision, cache=store, **how)
    tell(f"{encoder.name}: {encoder.width}-wide features of {encoder.image_size} px images, {encoder.precision}")
    record = {"model": model, "weights": weights, "fingerprint": encoder.fingerprint,
              "weights_digest": encoder.weights_digest, "precision": encoder.precision, "width": encoder.width,
              "image_size": encoder.image_size, "parameters": encoder.parameters,
              **({} if encoder.recipe.is_clips_own else {"pixels": asdict(encoder.recipe)}),
              **{name: how[name] for name in SAID if how.get(name)}}
    return EncoderSource(encoder, store, workers or None, record, as_seen)


def labelled_rows(source: Source, root: Path, images: Sequence[tuple[str, int]], skip_bad: bool,
                  what: str = "training image", **how: Any) -> tuple[np.ndarray, list[tuple[str, int]], Bad]:
    """Return feature rows of labelled images that could be read, those images, and what was wrong with the others.

    what: to call one of them. how: as for `images` of the source.
    Raise UserError if none can be read, or, without `skip_bad`, if one cannot.
    """
    rows, bad = source.images(root, [path for path, _ in images], **how)
    for index in sorted(bad):
        path = images[index][0]
        if not skip_bad:
            raise UserError(f"{what} {path} cannot be read ({bad[index]}); replace it, or leave it out with "
                            f"{parameter('skip_bad')}")
        warn(f"{what} {path} cannot be read ({bad[index]}); left out")
    kept = [index for index in range(len(images)) if index not in bad]
    if images and not kept:
        raise UserError(f"none of the {len(images)} {what}s can be read ({images[0][0]}: {bad[0]}); "
                        "unpack or fetch them again")
    return rows[kept], [images[i] for i in kept], bad


def test_rows(source: Source, root: Path, tests: TestSet, views: int = 1) -> tuple[np.ndarray, Bad]:
    """Return feature rows of a test set and why some images could not be read: {index: reason}, each with a warning.

    views: test-time views of each image that are averaged. Raise UserError if none can be read.
    """
    rows, bad = source.images(root, tests.files, test_views=views)
    if not ranks.first():  # the first rank says it
        return rows, bad
    if len(bad) == len(tests.names):
        index, reason = next(iter(bad.items()))
        raise UserError(f"{tests.folder}: none of the {len(tests.names)} images can be read ({tests.names[index]}: "
                        f"{reason}); unpack the test set again")
    for index, reason in sorted(bad.items()):
        warn(f"{tests.names[index]} cannot be read ({reason}); its line holds the most likely classes of the rest")
    return rows, bad


test_rows.__test__ = False  # type: ignore[attr-defined]  # pytest: no test function


def size_text(size: float) -> str:
    """"15 MB", "1.2 GB"; "0 MB" of nothing alone."""
    if not size:
        return "0 MB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
