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
from typing import Any, Union

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.download import is_released
from jclip_fewshot.console import duration, tell, warn
from jclip_fewshot.data.data_set import TestSet
from jclip_fewshot.data.formats import contest
from jclip_fewshot.encoders import onnx_encoder
from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.encoders.registry import open_encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import Bad, encode_images, encode_texts
from jclip_fewshot.features.several import SeveralSources, encoders_of
from jclip_fewshot.features.table import FeatureTable
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.fit_cache import FitCache
from jclip_fewshot.task import CLIP_SCALE, Part, Task

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
        self.barrier = ranks.Barrier(cache.folder) if cache is not None else None
        self._forecast_said = False
        self._as_seen = as_seen

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0, stage: str = "images",
               test_views: int = 1) -> tuple[np.ndarray, Bad]:
        """(N, D) unit rows of files below `root`, and why some could not be read: {index: reason}.

        views: random ones, averaged, in place of the plain image. test_views: without those, how many of the
        test-time views (decode.view_of_test) are averaged, the plain image first; each is kept in the cache by itself.
        """
        rows, bad = self._view(root, paths, views, seed, stage, 0, test_views)
        if test_views == 1 or views or len(bad) == len(paths):
            return rows, bad
        total = rows
        for view in range(1, test_views):
            more, worse = self._view(root, paths, 0, 0, f"{stage}, view {view + 1} of {test_views}", view, test_views)
            total, bad = total + more, {**worse, **bad}
        return unit_rows(total), bad

    def _view(self, root: Path, paths: Sequence[str], views: int, seed: int, stage: str, view: int,
              test_views: int) -> tuple[np.ndarray, Bad]:
        seen, root = self._seen(root), os.path.abspath(root)

        def forecast(images: int) -> None:
            if not view or not self._forecast_said:
                self._forecast(stage, images, views if test_views == 1 else test_views - view)
                self._forecast_said = True

        def encode(shard: tuple[int, int] = (0, 1)) -> tuple[np.ndarray, Bad]:
            return encode_images(self._encoder, [os.path.join(root, path) for path in paths], cache=self._cache,
                                 views=views, seed=seed, workers=self._workers, stage=stage, shard=shard, view=view,
                                 on_start=forecast, as_seen=seen)
        if ranks.size() > 1:
            encode((ranks.rank(), ranks.size()))
            self.barrier.wait()
        return encode()

    def _seen(self, root: Path) -> bool:
        if self._as_seen is None:
            self._as_seen = contest.recognise(Path(root)) is None
        return self._as_seen

    def _forecast(self, stage: str, images: int, views: int) -> None:
        """Says before a long encoding how long it will take here, by timing a batch, and how much disk it needs.

        Raises:
            UserError: the disk of the cache has less room than that.
        """
        encoder, each = self._encoder, max(1, views)
        row_bytes = each * encoder.width * 4 + 64
        where = ""
        if self._cache is not None:
            free = shutil.disk_usage(self._cache.folder if self._cache.folder.exists() else os.curdir).free
            where = f"; {size_text(images * row_bytes)} in {self._cache.folder}"
            if free < images * row_bytes:
                raise UserError(f"{stage}: the cache {self._cache.folder} needs {size_text(images * row_bytes)}, and "
                                f"its disk has {size_text(free)} left; give another --cache, or --cache '' for none")
        if images * each < BATCHES_TO_SAY * encoder.batch_size or not ranks.first():
            return
        pixels = np.zeros((encoder.batch_size, *encoder.recipe.size, 3), encoder.recipe.dtype)
        encoder.images(pixels)  # compiles
        begun = time.perf_counter()
        encoder.images(pixels)
        rate = encoder.batch_size / (time.perf_counter() - begun)
        what = f"{images:,} images" + (f" x {views} views" if views else "")
        tell(f"{stage}: {what} to encode, about {duration(images * each / rate)} here "
             f"({rate:.0f} {'views' if views else 'images'}/s){where}")

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """(K, D) rows, the mean over each class's sentences, normalised again."""
        if not ranks.first():  # the first rank's rows are in the cache then
            self.barrier.wait()
        try:
            rows = encode_texts(self._encoder, sentences, cache=self._cache)
        except UserError:
            for name, said in zip(class_names, sentences):
                self._require_short(name, said)
            raise
        if ranks.size() > 1 and ranks.first():
            self.barrier.wait()
        return rows

    def _require_short(self, name: str, sentences: Sequence[str]) -> None:
        """Raises UserError, which names the class, where the text tower cannot take all of a sentence."""
        try:
            self._encoder.tokens(sentences)
        except UserError as error:
            raise UserError(f"class {name}: {str(error).rpartition(';')[0]}; shorten the class's name (--names), its "
                            "template or its description") from None

    @property
    def encoder(self) -> Encoder:
        return self._encoder

    @property
    def scale(self) -> float:
        """Of the cosines in zero-shot logits."""
        return self._encoder.scale

    @property
    def part(self) -> Part:
        """The encoder among several."""
        encoder, given = self._encoder, Path(self._record["model"])
        if is_released(given.as_posix()):
            name = given.as_posix().replace("/", "-")
        else:
            name = given.stem if given.suffix in CHECKPOINT_SUFFIXES else given.resolve().name
        name = given.name if given.is_dir() and given.name else name
        return Part(name, encoder.width, encoder.has_text, encoder.scale)

    parts = ()  # one encoder

    def activations(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0,
                    sentences: Sequence[str] = ()) -> Activations:
        """The images at any depth of the tower, for what tunes it, and a sentence a class."""
        seen, root = self._seen(root), os.path.abspath(root)
        tokens = self._encoder.tokens(sentences) if sentences else None
        return Activations(self._encoder, [os.path.join(root, path) for path in paths], cache=self._cache, views=views,
                           seed=seed, workers=self._workers, class_tokens=tokens, as_seen=seen, fits=self.fits)

    def under(self, make: Callable[[Encoder], Encoder]) -> EncoderSource:
        """The same source with the encoder that `make` makes of its own: its rows are cached on their own."""
        return EncoderSource(make(self._encoder), self._cache, self._workers, self._record, self._as_seen)

    @property
    def model(self) -> object:
        """The CLIP that encodes; None where it is none that can be tuned."""
        return getattr(self._encoder, "model", None)

    @property
    def fits(self) -> FitCache | None:
        """Where finished trainings are kept: next to the cached rows."""
        return None if self._cache is None else self._cache.fits

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return self._record if self._as_seen is None else {**self._record, "as_seen": self._as_seen}


class TableSource:
    """Looks rows up in a --features file; views and sentences went into them when they were made."""

    def __init__(self, table: FeatureTable, digest: str, given: str) -> None:
        self._table = table
        self._digest = digest
        self._given = given

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0, stage: str = "images",
               test_views: int = 1) -> tuple[np.ndarray, Bad]:
        """(N, D) unit rows of paths below the data folder."""
        return self._table.lookup(paths), {}

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """(K, D) unit rows of the classes."""
        return self._table.text_rows(class_names)

    scale = CLIP_SCALE  # a feature file does not say
    parts = ()  # one encoder
    model = None  # nothing that could be tuned

    @property
    def part(self) -> Part:
        """The encoder among several."""
        return Part(Path(self._given).stem, self._table.width, self._table.with_text)

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return {"features": self._given, "features_digest": self._digest,
                **({} if self._table.with_text else {"has_text": False})}


Source = Union[EncoderSource, TableSource, SeveralSources]


def open_source(model: str | Sequence[str], weights: str, features: str | Sequence[str] = "",
                features_extra: str | Sequence[str] = "", *, cache: str = "", workers: int = 0,
                **how: Any) -> Source:
    """A source by what the flags of the same names say; several encoders where they name several.

    how: precision, batch_size, activation, head_width, output, as encoders.Options has them.

    Raises:
        UserError: no such checkpoint or feature file, or a damaged one; a folder that is none; one given twice.
    """
    models, tables, extra = listed(model), listed(features), listed(features_extra)
    for flag, given in (("--model", models), ("--features", tables), ("--features-extra", extra)):
        for name in given:
            if given.count(name) > 1:
                raise UserError(f"{flag} {name} is given twice; each encoder counts once")
    if how.get("output") and not any(map(onnx_encoder.recognises, map(Path, models))):
        raise UserError(f"--output {how['output']} names an output of an ONNX encoder, and there is none")
    found: list[EncoderSource | TableSource] = [_table_source(file) for file in tables]
    found += [] if tables else [_encoder_source(name, weights, cache, workers, **how)
                                for name in models]
    found += [_table_source(file, with_text=False) for file in extra]
    return together(found)


def listed(given: str | Path | Sequence[str]) -> list[str]:
    """What a flag that may be given several times says: a text, or several."""
    return [str(given)] if isinstance(given, (str, Path)) and str(given) else [str(one) for one in given]


def _table_source(file: str, with_text: bool = True) -> TableSource:
    return TableSource(FeatureTable.read(file, with_text), file_digest(Path(file)), file)


def together(found: Sequence[EncoderSource | TableSource]) -> Source:
    """One source of several encoders, those with text first; one alone stays itself.

    Raises:
        UserError: none has text; one is there twice.
    """
    found = sorted(found, key=lambda source: not source.part.has_text)
    if not found:
        raise UserError("no encoder is named: give --model or --features")
    if not found[0].part.has_text:
        raise UserError(f"{found[0].part.name} has no text tower: give a CLIP with it, whose answers it corrects "
                        "(--model, repeated)")
    known: dict[str, str] = {}
    for source in found:
        digest = source.record().get("weights_digest") or source.record().get("features_digest", "")
        if digest in known:
            raise UserError(f"{source.part.name} is the same encoder as {known[digest]}; each counts once")
        known[digest] = source.part.name
    return found[0] if len(found) == 1 else SeveralSources(found)


def reopen_source(saved: dict, where: dict[str, str], shots: Sequence[str], class_names: Sequence[str], task: Task, *,
                  cache: str = "", workers: int = 0, **how: Any) -> Source:
    """The source that a run was trained with.

    saved: what `record` of that source said. where: "model", "weights", "features" as they lie now; of several
    encoders, "others" has the same of those behind the first.
    shots (S,): the run's training images, class_names (K,), task: what it learned from, to recognise rows.
    Raises:
        UserError: it is gone, or another one now.
    """
    if "others" in saved:
        parts = task.parts
        if len(parts) != 1 + len(saved["others"]) or len(where["others"]) != len(saved["others"]):
            raise UserError("the run's record names other encoders than its arrays hold: train again")
        encoding = dict(cache=cache, workers=workers, **how)
        return together([reopen_source(one, there, shots, class_names, task.of(part.name).evidence, **encoding)
                         for part, one, there in zip(parts, encoders_of(saved), [where, *where["others"]])])
    if "features" in saved:
        source = _table_source(where["features"], saved.get("has_text", True))
        if source.record()["features_digest"] != saved.get("features_digest"):
            _require_same_rows(source, where["features"], shots, class_names, task)
        return source
    if "weights_digest" not in saved:
        raise UserError("the run does not say which checkpoint it was trained with: an earlier version of this "
                        "program made it; train again")
    if how.get("precision", "auto") == "auto":  # the run's own, where this machine has it
        how["precision"] = saved.get("precision") or "auto"
    how.update({name: saved[name] for name in SAID if name in saved})
    as_seen = saved.get("as_seen", False)  # earlier versions turned no picture
    source = _encoder_source(where["model"], where["weights"], cache, workers, as_seen, **how)
    now = source.record()
    if now["weights_digest"] != saved["weights_digest"]:
        raise UserError(f"{where['model']} is not the checkpoint that the run was trained with (width {now['width']} "
                        f"now, {saved.get('width')} then; the content differs): train again, or say with --model or "
                        "--weights where the old file lies")
    if now["precision"] != saved.get("precision"):
        warn(f"the run was trained in {saved.get('precision')} and is tested in {now['precision']}; features agree to "
             "about 1e-3")
    return source


def _require_same_rows(source: TableSource, file: str, shots: Sequence[str], class_names: Sequence[str],
                       task: Task) -> None:
    """Raises UserError where a feature file that has changed holds other rows than those the run learned from."""
    try:
        same = all(len(now) == len(then) and now.shape == then.shape and np.abs(now - then).max(initial=0) < SAME_ROWS
                   for now, then in ((source.images(Path(), shots)[0], task.features),
                                     (source.texts(class_names, []) if source.part.has_text else task.text, task.text)))
    except UserError as error:
        raise UserError(f"{file} is not the feature file that the run was trained with, and cannot be compared with it "
                        f"({error}): train again, or give the old one with --features")
    if not same:
        raise UserError(f"{file} is not the feature file that the run was trained with: its shots' or text rows differ;"
                        " train again, or give the old one with --features")
    tell(f"{file} has changed since the run was trained, but not in what the run learned from")


def _encoder_source(model: str, weights: str, cache: str, workers: int, as_seen: bool | None = None, *,
                    precision: str = "auto", **how: Any) -> EncoderSource:
    ranks.require_cache(cache)
    if os.path.exists(weights) and not os.path.isdir(weights):
        raise UserError(f"--weights {weights}: no folder; give the one where checkpoints lie")
    store = FeatureCache(os.path.abspath(cache)) if cache else None
    encoder = open_encoder(model, download_root=weights, dtype=precision, cache=store, **how)
    tell(f"{encoder.name}: {encoder.width}-wide features of {encoder.image_size} px images, {encoder.precision}")
    record = {"model": model, "weights": weights, "fingerprint": encoder.fingerprint,
              "weights_digest": encoder.weights_digest, "precision": encoder.precision, "width": encoder.width,
              "image_size": encoder.image_size, "parameters": encoder.parameters,
              **({} if encoder.recipe.is_clips_own else {"pixels": asdict(encoder.recipe)}),
              **{name: how[name] for name in SAID if how.get(name)}}
    return EncoderSource(encoder, store, workers or None, record, as_seen)


def labelled_rows(source: Source, root: Path, images: Sequence[tuple[str, int]], skip_bad: bool, views: int = 0,
                  seed: int = 0, stage: str = "images", test_views: int = 1,
                  what: str = "training image") -> tuple[np.ndarray, list[tuple[str, int]], Bad]:
    """Feature rows of labelled images that could be read, those images, and what was wrong with the others.

    what: to call one of them.
    Raises:
        UserError: an image that cannot be read, without `skip_bad`; not one that can.
    """
    rows, bad = source.images(root, [path for path, _ in images], views=views, seed=seed, stage=stage,
                             **({"test_views": test_views} if test_views > 1 else {}))
    for index in sorted(bad):
        path = images[index][0]
        if not skip_bad:
            raise UserError(f"{what} {path} cannot be read ({bad[index]}); replace it, or --skip-bad goes without")
        warn(f"{what} {path} cannot be read ({bad[index]}); left out")
    kept = [index for index in range(len(images)) if index not in bad]
    if images and not kept:
        raise UserError(f"none of the {len(images)} {what}s can be read ({images[0][0]}: {bad[0]}); "
                        "unpack or fetch them again")
    return rows[kept], [images[i] for i in kept], bad


def test_rows(source: Source, root: Path, tests: TestSet, views: int = 1) -> tuple[np.ndarray, Bad]:
    """Feature rows of a test set and why some images could not be read: {index: reason}, each named in a warning.

    views: test-time views of each image that are averaged.
    Raises:
        UserError: none can be read.
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


test_rows.__test__ = False  # pytest: no test function


def size_text(size: float) -> str:
    """"15 MB", "1.2 GB"; "0 MB" of nothing alone."""
    if not size:
        return "0 MB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
