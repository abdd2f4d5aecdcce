"""Where feature rows come from: a CLIP that encodes, or a file of features that somebody has computed.

All answer `images` and `texts`; several are one more source. `clip`: the EncoderSource of a CLIP to tune, or None.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.download import released
from jclip_fewshot.console import duration, tell, warn
from jclip_fewshot.data.data_set import TestSet
from jclip_fewshot.data.formats import contest
from jclip_fewshot.data.listing import some
from jclip_fewshot.encoders import onnx_encoder, open_encoder
from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import Bad, encode_images, encode_texts
from jclip_fewshot.storage.arrays import Field, load_arrays
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.task import CLIP_SCALE, EncoderSlice, Task, joined, joined_scale

BATCHES_TO_SAY = 20  # fewer are over before a forecast of them was read
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".safetensors", ".onnx")
SAID = ("activation", "head_width", "output")  # what the user said of a model
SAME_ROWS = 1e-3  # how far rows may lie apart that only another rounding has changed
_TABLE = {"path": Field("text", "N"), "feature": Field("float", "N D", rows=True),
          "classes": Field("text", "K", needed=False), "text": Field("float", "K D", rows=True, needed=False)}
barrier = functools.cache(ranks.Barrier)  # one count of the points that all ranks have come to


@dataclass(eq=False)
class EncoderSource:
    """Encodes image files and sentences; under mpirun each rank a part, and finds the others' rows in the cache.

    as_seen: whether pictures are turned as their EXIF data says and laid on white where they are transparent. None lets
    the first folder decide: not in the contest's layout, for parity with CLIP's own preprocessing; else they are.
    """

    encoder: Encoder
    cache: FeatureCache | None
    workers: int | None
    opened_as: dict[str, Any]  # what `record` says beside as_seen
    as_seen: bool | None = None
    parts = ()  # one encoder

    def __post_init__(self) -> None:
        encoder, given = self.encoder, Path(self.opened_as["model"])
        name = given.as_posix().replace("/", "-") if released(given) else given.name or given.resolve().name
        if given.suffix in CHECKPOINT_SUFFIXES and not given.is_dir():
            name = given.stem
        self.part, self.scale = EncoderSlice(name, encoder.width, encoder.has_text, encoder.scale), encoder.scale

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0, stage: str = "images",
               test_views: int = 1) -> tuple[np.ndarray, Bad]:
        """Return (N, D) unit rows of files below `root`, and why some could not be read: {index: reason}.

        The mean of `views` random views, or, of none, of the first of the test-time views (decode.view_images).
        """
        total: Any = 0.0
        files, bad = _below(root, paths), dict[int, str]()

        def forecast(images: int) -> None:
            del how["on_start"]  # one is enough
            self._forecast(stage, images, views or (test_views - view if test_views > 1 else 0))

        how: dict[str, Any] = dict(cache=self.cache, workers=self.workers, as_seen=self._seen(root), views=views,
                                   seed=seed, on_start=forecast)
        for view in range(1 if views else test_views):
            how.update(view=view, stage=f"{stage}, view {view + 1} of {test_views}" if view else stage)
            if ranks.size() > 1:
                encode_images(self.encoder, files[ranks.rank()::ranks.size()], **how)
                self._wait()
            rows, unreadable = encode_images(self.encoder, files, **how)
            total, bad = total + rows, {**unreadable, **bad}
            if len(bad) == len(paths):
                break
        return unit_rows(total) if test_views > 1 and not views else total, bad

    def _seen(self, root: Path) -> bool:
        if self.as_seen is None:
            self.as_seen = contest.recognise(Path(root)) is None
        return self.as_seen

    def _forecast(self, stage: str, images: int, views: int) -> None:
        """Say before a long encoding how long it takes here, by timing a batch; raise UserError if the disk is full."""
        encoder, each, where = self.encoder, max(1, views), ""
        if self.cache is not None:
            size = images * (each * encoder.width * 4 + 64)
            free = shutil.disk_usage(self.cache.folder if self.cache.folder.exists() else os.curdir).free
            where = f"; {size_text(size)} in {self.cache.folder}"
            if free < size:
                raise UserError(f"{stage}: the cache {self.cache.folder} needs {size_text(size)}, and its disk has "
                                f"{size_text(free)} left; give another {parameter('cache')}, or none")
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
        """Return (K, D) rows as `encode_texts` does; raise UserError, too, if there is no text tower."""
        if not self.encoder.has_text:
            raise UserError(_no_text(self.part))
        if not ranks.first():  # the first rank's rows are in the cache then
            self._wait()
        rows = encode_texts(self.encoder, sentences, class_names, cache=self.cache)
        if ranks.first():
            self._wait()
        return rows

    def _wait(self) -> None:
        if self.cache is not None:  # as there is under mpirun
            barrier(self.cache.folder).wait()

    @property
    def clip(self) -> EncoderSource | None:
        return self if getattr(self.encoder, "model", None) is not None else None

    def activations(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0,
                    sentences: Sequence[str] = ()) -> Activations:
        """The images at any depth of the tower, for what tunes it, and a sentence a class."""
        tokens = self.encoder.tokens(sentences) if sentences else None
        fits = None if self.cache is None else self.cache.fits  # finished trainings are kept beside the rows
        return Activations(self.encoder, _below(root, paths), cache=self.cache, views=views, seed=seed,
                           workers=self.workers, class_tokens=tokens, as_seen=self._seen(root), fits=fits)

    def under(self, make: Callable[[Encoder], Encoder]) -> EncoderSource:
        """The same source with the encoder that `make` makes of its own: its rows are cached on their own."""
        return EncoderSource(make(self.encoder), self.cache, self.workers, self.opened_as, self.as_seen)

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return self.opened_as if self.as_seen is None else {**self.opened_as, "as_seen": self.as_seen}


class TableSource:
    """Features that somebody has computed already, in a .npz, see _TABLE; sentences went into it when it was made.

    Paths are relative to the data folder; text rows are in the order of `classes` or, without that, of the contest's
    ids. with_text: False for --features-extra. Raise UserError if the file is damaged or its arrays are not these.
    """

    scale = CLIP_SCALE  # a feature file does not say
    parts = ()  # one encoder
    clip = None  # nothing that could be tuned

    def __init__(self, file: str | Path, with_text: bool = True) -> None:
        self._given = str(file)
        self._said = f"{parameter('features' if with_text else 'features_extra')} {file}"
        content = load_arrays(Path(file), _TABLE, others=None, said=self._said)
        if "text" in content and not with_text:
            raise UserError(f"{self._said}: holds text rows, so its encoder has a text tower; give it with "
                            f"{parameter('features')}")
        paths = [path.replace("\\", "/").removeprefix("./") for path in content["path"].tolist()]
        self.index = {path: number for number, path in enumerate(paths)}
        if len(self.index) < len(paths):
            raise UserError(f"{self._said}: {len(paths) - len(self.index)} paths are listed twice")
        self.feature = unit_rows(content["feature"])
        self.text = unit_rows(content["text"]) if "text" in content else None
        self.classes = content["classes"].tolist() if "classes" in content else None
        self._digest = file_digest(Path(file))
        self.part = EncoderSlice(Path(file).stem, self.feature.shape[1], with_text)

    def images(self, _root: Path | None, paths: Sequence, *_: Any, **__: Any) -> tuple[np.ndarray, Bad]:
        """Return (N, D) unit rows; raise UserError, which names the paths that it lacks."""
        names = [Path(path).as_posix() for path in paths]
        missing = [name for name in names if name not in self.index]
        if missing:
            raise UserError(f"{self._said}: no feature for {some(missing, 3)} "
                            f"({len(missing)} of {len(names)} images; it holds {len(self.index)})")
        return self.feature[[self.index[name] for name in names]], {}

    def texts(self, class_names: Sequence[str], *_: Any) -> np.ndarray:
        """Return (K, D) unit rows, by name, or in order without names; raise UserError for a class with none or two."""
        if self.text is None:
            raise UserError(f"{self._said}: has no array 'text' (K, D): the classes' text rows")
        if self.classes is None and len(self.text) != len(class_names):
            raise UserError(f"{self._said}: {len(self.text)} text rows without names for {len(class_names)} classes; "
                            "add an array 'classes' (K,)")
        if self.classes in (None, list(class_names)):  # ImageNet has two cranes
            return self.text.copy()
        counts = Counter(self.classes)
        twice = [name for name in dict.fromkeys(class_names) if counts[name] > 1]
        if twice:
            raise UserError(f"{self._said}: several text rows for {some(twice, 3)}; list each class once in 'classes', "
                            "or all of them in the data set's order")
        missing = [name for name in class_names if not counts[name]]
        if missing:
            raise UserError(f"{self._said}: no text row for {some(missing, 3)} "
                            f"({len(missing)} of {len(class_names)} classes)")
        return self.text[[self.classes.index(name) for name in class_names]]

    def record(self) -> dict:
        return {"features": self._given, "features_digest": self._digest,
                **({} if self.part.has_text else {"has_text": False})}


class SeveralSources:
    """The rows of several encoders side by side (task.joined); the first has text, others' text columns may be 0."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources, self.parts, seen = list(sources), tuple[EncoderSlice, ...](), Counter[str]()
        for part in (source.part for source in sources):
            seen[part.name] += 1  # a second "model" becomes model-2
            name = f"{part.name}-{seen[part.name]}" if seen[part.name] > 1 else part.name
            self.parts += (part._replace(name=name),)
        self.scale = joined_scale(self.parts)
        self.clip = sources[0].clip

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0, stage: str = "images",
               test_views: int = 1) -> tuple[np.ndarray, Bad]:
        """(N, D) unit rows of files below `root`, and why some could not be read by any of the encoders."""
        rows, bad = [], dict[int, str]()
        for part, source in zip(self.parts, self._sources):
            found, unreadable = source.images(root, paths, views, seed, f"{stage} by {part.name}", test_views)
            rows.append(found)
            bad = {**unreadable, **bad}
        together = joined(rows)
        together[sorted(bad)] = 0
        return together, bad

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]]) -> np.ndarray:
        return joined([source.texts(class_names, sentences) if part.has_text
                       else np.zeros((len(class_names), part.width), np.float32)
                       for part, source in zip(self.parts, self._sources)])

    def record(self) -> dict:
        """The first one's record, and the others in it."""
        first, *others = [{**source.record(), "name": part.name} for part, source in zip(self.parts, self._sources)]
        return {**first, "others": others}


Source = EncoderSource | TableSource | SeveralSources


def encoders_of(record: dict) -> list[dict]:
    """Return what a source's record says of each encoder: the first one's entries, then those of the others in it."""
    first = {key: value for key, value in record.items() if key != "others"}
    return [first, *record.get("others", [])]


def _below(root: Path, paths: Sequence[str]) -> list[str]:
    return [os.path.join(os.path.abspath(root), path) for path in paths]


def _no_text(part: EncoderSlice) -> str:
    return (f"{part.name} has no text tower: give a CLIP with it, whose answers it corrects; {parameter('model')} "
            "takes several")


def open_source(model: str | Sequence[str], weights: str, features: str | Sequence[str] = "",
                features_extra: str | Sequence[str] = "", **how: Any) -> Source:
    """Return a source by what the flags of the same names say, `how`: by the other flags of config.SourceConfig.

    Raise UserError if a checkpoint or feature file is absent, damaged or there twice, or a folder is none.
    """
    models, tables, extra = listed(model), listed(features), listed(features_extra)
    for said, given in (("model", models), ("features", [*tables, *extra])):
        if twice := [one for one in given if given.count(one) > 1]:
            raise UserError(f"{parameter(said)} {twice[0]} is given twice; each encoder counts once")
    if how.get("output") and not any(map(onnx_encoder.recognises, map(Path, models))):
        raise UserError(f"{parameter('output')} {how['output']} names an output of an ONNX encoder, and there is none")
    first: list[Any] = [TableSource(file) for file in tables]
    first = first or [_encoder_source(name, weights, **how) for name in models]
    return _together([*first, *(TableSource(file, with_text=False) for file in extra)])


def listed(given: str | Path | Sequence[str]) -> list[str]:
    """What a flag that may be given several times says: a text, or several."""
    if isinstance(given, (str, Path)):
        return [str(given)] if str(given) else []
    return [str(one) for one in given]


def _together(found: Sequence[Any]) -> Source:
    """One source of several encoders, those with text first; one alone stays itself."""
    found = sorted(found, key=lambda source: not source.part.has_text)
    if not found:
        raise UserError(f"no encoder is named: give {parameter('model')} or {parameter('features')}")
    if len(found) > 1 and not found[0].part.has_text:
        raise UserError(_no_text(found[0].part))
    known: dict[str, str] = {}
    for source in found:
        digest = source.record().get("weights_digest") or source.record().get("features_digest", "")
        if digest in known:
            raise UserError(f"{source.part.name} is the same encoder as {known[digest]}; each counts once")
        known[digest] = source.part.name
    return found[0] if len(found) == 1 else SeveralSources(found)


def reopen_source(saved: dict, where: Sequence[tuple[str, str]], shots: Sequence[str], class_names: Sequence[str],
                  task: Task, **how: Any) -> Source:
    """Return the source that a run was trained with; raise UserError if it is gone, or another one now.

    saved: its `record`. where: of each encoder, the model or the file of features as it lies now, and the folder of its
    weights. shots (S,), class_names (K,), task: what the run learned from, to recognise rows. how: as `open_source`'s.
    """
    if "others" in saved:
        parts = task.parts
        if len(parts) != 1 + len(saved["others"]):
            raise UserError("the run's record names other encoders than its arrays hold: train again")
        return _together([reopen_source(one, [place], shots, class_names, task.of(part.name).evidence, **how)
                          for part, one, place in zip(parts, encoders_of(saved), where)])
    (place, weights), = where
    if "features" in saved:
        table = TableSource(place, saved.get("has_text", True))
        if table.record()["features_digest"] != saved.get("features_digest"):
            _require_same_rows(table, place, shots, class_names, task)
        return table
    if how.get("precision", "auto") == "auto":  # the run's own, where this machine has it
        how["precision"] = saved.get("precision") or "auto"
    how.update({name: saved[name] for name in SAID if name in saved})
    source = _encoder_source(place, weights, saved.get("as_seen", False), **how)
    now = source.record()
    if now["weights_digest"] != saved.get("weights_digest"):
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
    said = f"{file} is not the feature file that the run was trained with"
    remedy = f"train again, or give the old one with {parameter('features')}"
    try:
        text = source.texts(class_names) if source.part.has_text else task.text
        pairs = ((source.images(None, shots)[0], task.features), (text, task.text))
    except UserError as error:
        raise UserError(f"{said}, and cannot be compared with it ({error}): {remedy}") from None
    if not all(now.shape == then.shape and np.abs(now - then).max(initial=0) < SAME_ROWS for now, then in pairs):
        raise UserError(f"{said}: its shots' or text rows differ; {remedy}")
    tell(f"{file} has changed since the run was trained, but not in what the run learned from")


def _encoder_source(model: str, weights: str, as_seen: bool | None = None, *, cache: str = "", workers: int = 0,
                    precision: str = "auto", **how: Any) -> EncoderSource:
    ranks.require_cache(cache)
    if os.path.exists(weights) and not os.path.isdir(weights):
        raise UserError(f"{parameter('weights')} {weights}: no folder; give the one where checkpoints lie")
    store = FeatureCache(cache) if cache else None
    encoder = open_encoder(model, download_root=weights, dtype=precision, cache=store, **how)
    tell(f"{encoder.name}: {encoder.width}-wide features of {encoder.image_size} px images, {encoder.precision}")
    facts = ("fingerprint", "weights_digest", "precision", "width", "image_size", "parameters")
    record = {"model": model, "weights": weights, **{name: getattr(encoder, name) for name in facts},
              **({} if encoder.recipe.is_clips_own else {"pixels": asdict(encoder.recipe)}),
              **{name: how[name] for name in SAID if how.get(name)}}
    return EncoderSource(encoder, store, workers or None, record, as_seen)


def require_some(names: Sequence[str], bad: Bad, what: str = "images", where: str = "") -> None:
    """Raise UserError if images could not be read, and none could."""
    if bad and len(bad) == len(names):
        index, reason = next(iter(bad.items()))
        raise UserError(f"{where}none of the {len(names)} {what} can be read ({names[index]}: {reason}); unpack or "
                        "fetch them again")


def labelled_rows(source: Source, root: Path, images: Sequence[tuple[str, int]], skip_bad: bool,
                  what: str = "training image", **how: Any) -> tuple[np.ndarray, list[tuple[str, int]], Bad]:
    """Return feature rows of labelled images that could be read, those images, and what was wrong with the others.

    Raise UserError if none can be read or, without `skip_bad`, if one cannot. what: such an image in messages.
    """
    paths = [path for path, _ in images]
    rows, bad = source.images(root, paths, **how)
    for index in sorted(bad):
        said = f"{what} {paths[index]} cannot be read ({bad[index]})"
        if not skip_bad:
            raise UserError(f"{said}; replace it, or leave it out with {parameter('skip_bad')}")
        warn(f"{said}; left out")
    require_some(paths, bad, f"{what}s")
    kept = [index for index in range(len(images)) if index not in bad]
    return rows[kept], [images[i] for i in kept], bad


def test_rows(source: Source, root: Path, tests: TestSet, views: int = 1) -> tuple[np.ndarray, Bad]:
    """Return feature rows of a test set, `views` test-time views averaged, and {index: reason} of unreadable images."""
    rows, bad = source.images(root, tests.files, test_views=views)
    if ranks.first():  # one rank says it
        require_some(tests.names, bad, where=f"{tests.folder}: ")
        for index, reason in sorted(bad.items()):
            warn(f"{tests.names[index]} cannot be read ({reason}); its line holds the most likely classes of the rest")
    return rows, bad


def size_text(size: float) -> str:
    """"15 MB", "1.2 GB"; "0 MB" of nothing alone."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(int(size > 0), round(size / 1e6))} MB"
