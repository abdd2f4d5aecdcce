"""python -m jclip_fewshot predict: a run's answers to any pictures, as they come."""

import csv
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip_fewshot.cli import command
from jclip_fewshot.config import PredictConfig
from jclip_fewshot.console import warn
from jclip_fewshot.data.listing import IMAGE_SUFFIXES, count_of, walk
from jclip_fewshot.errors import UserError, shown
from jclip_fewshot.evaluation.scores import best_classes
from jclip_fewshot.features.sources import Source, TableSource
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.problem import queries_of
from jclip_fewshot.run import Run

FIRST, MOST = 16, 512  # pictures that are encoded together: few at first, so that answers come at once
NONE_OF_THESE = "(none of these)"


class Named(NamedTuple):
    """A picture that the command line names, or `reason` why there is none."""

    path: str
    reason: str = ""


# what stands between pictures where no more of them wait: those so far are answered now
Listed = Iterator[Named | None]


def listed(arguments: Sequence[str]) -> Listed:
    """Return the pictures that the arguments name, of folders all that is in them, of "-" standard input."""
    for argument in arguments:
        if argument == "-":
            if sys.stdin is None:
                raise UserError("standard input, which - stands for, is closed")
            yield from _lines(sys.stdin.fileno())
        elif os.path.isdir(argument):
            found = [str(folder / name) for folder, images, _ in walk(Path(argument)) for name in images]
            none = Named(argument, f"the folder holds no image ({', '.join(IMAGE_SUFFIXES)})")
            yield from map(Named, found) if found else [none]
        elif os.path.exists(argument) or not glob.has_magic(argument):
            yield Named(argument)
        else:
            found = [name for name in sorted(glob.glob(argument, recursive=True)) if name != "-"]
            yield from listed(found) if found else [Named(argument, "no file has such a name")]


def _lines(descriptor: int) -> Listed:
    """A name a line; a mark wherever the other end has sent no more yet."""
    rest = b""
    while True:
        data = os.read(descriptor, 1 << 16)  # what is there, which may be less
        *lines, rest = (rest + data).split(b"\n")
        for line in lines + ([rest] if not data else []):
            name = os.fsdecode(line.rstrip(b"\r"))
            if name.strip():
                yield Named(name, "a name with NUL" if "\0" in name else "")
        if not data:
            return
        yield None


def chunks(pictures: Listed, together: bool = False) -> Iterator[list[Named]]:
    """Return the pictures in lists that grow to `MOST`, or in one; a mark ends a list."""
    chunk, size = list[Named](), FIRST
    for picture in pictures:
        if picture is not None:
            chunk.append(picture)
        if chunk and not together and (picture is None or len(chunk) == size):
            yield chunk
            chunk, size = [], min(MOST, 2 * size) if len(chunk) == size else FIRST
    if chunk:
        yield chunk


class Printer:
    """Write a line for each picture to standard output; reject: the least probability that counts as an answer."""

    def __init__(self, class_names: Sequence[str], top: int = 5, reject: float = 0.0, form: str = "text") -> None:
        self.class_names, self.top, self.reject, self.form = class_names, min(top, len(class_names)), reject, form
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        if form == "csv":
            pairs = [f"{what}{place}" for place in range(1, self.top + 1) for what in ("class", "probability")]
            self._csv.writerow(["image", "answer", *pairs])

    def write(self, path: str, probs: np.ndarray) -> None:
        """Write the answer to a picture with probs (K,)."""
        best = best_classes(probs[None], self.top)[0]
        answers = [(self.class_names[k], float(probs[k])) for k in best]
        rejected = answers[0][1] < self.reject
        if self.form == "json":
            any_text = (sys.stdout.encoding or "").lower().startswith("utf")
            print(json.dumps({"image": path, "answer": None if rejected else answers[0][0],
                              "classes": [{"class": name, "probability": round(p, 6)} for name, p in answers]},
                             ensure_ascii=not any_text))
        elif self.form == "csv":
            self._csv.writerow([path, NONE_OF_THESE if rejected else answers[0][0],
                                *(cell for name, p in answers for cell in (name, f"{p:.6f}"))])
        else:
            said = [NONE_OF_THESE] if rejected else []
            print(shown(path), *said, *(f"{name} {100 * p:.1f} %" for name, p in answers), sep="\t")
        sys.stdout.flush()


def opened(settings: PredictConfig) -> tuple[Pipeline, Source, Sequence[str], str]:
    """Start Jittor. Return pipeline, source, class names (K,) and the folder below which a feature file's paths are."""
    if Path(settings.run).is_file():
        from jclip_fewshot.classifier import FewShotClassifier
        if settings.features or settings.features_extra:
            raise UserError(f"{settings.run} is a classifier with a model of its own: leave --features out")
        command.set_up(settings)
        classifier = FewShotClassifier.load(settings.run, settings.cache or None, list(settings.model) or "",
                                            settings.weights or None)
        return classifier.pipeline_, classifier.source, classifier.class_names_, ""
    run = Run.open(settings.run, "RUN")
    command.set_up(settings)
    source, root = run.source(settings, **settings.encoding), run.where(run.record.config.data)
    return run.pipeline, source, run.record.classes, root


def answer(pipeline: Pipeline, source: Source, pictures: Listed, printer: Printer, *, root: str = "",
           refine: bool = False, views: int = 1) -> int:
    """Answer and print pictures, with `refine` together. Return 1 if some cannot be read; UserError if none can be."""
    read = given = 0
    for chunk in chunks(pictures, together=refine):
        for picture in chunk:
            if picture.reason:
                warn(f"{shown(picture.path)}: {picture.reason}")
        paths = [picture.path for picture in chunk if not picture.reason]
        rows, bad = _rows(source, paths, root, views)
        for index, reason in sorted(bad.items()):
            warn(f"{shown(paths[index])} cannot be read ({reason})")
        good = [path for index, path in enumerate(paths) if index not in bad]
        read, given = read + len(good), given + len(chunk)
        if good:
            answers = pipeline.answer(queries_of(source, Path(), good, rows, views), "auto" if refine else "off")
            for path, probs in zip(good, answers.final):
                printer.write(path, probs)
    if not read:
        raise UserError(f"{count_of(given, 'name')} given, and no picture could be read" if given
                        else "no picture was named")
    return int(read < given)


def _rows(source: Source, paths: list[str], root: str, views: int) -> tuple[np.ndarray, dict[int, str]]:
    """Rows of the pictures that can be read, and why the others cannot: {index: reason}."""
    if not isinstance(source, TableSource):
        rows, bad = source.images(Path(), paths, stage="pictures", test_views=views)
        return np.delete(rows, list(bad), axis=0), bad
    found, bad = [], {}
    for index, path in enumerate(paths):
        inside = os.path.relpath(path, root)
        try:
            found.append(source.images(Path(), [path if inside.startswith("..") else inside])[0][0])
        except UserError as error:
            bad[index] = str(error)
    return np.array(found), bad
