"""Settings → data set, source, text rows, shots, task, and what some methods need beside it. Nothing else wires data.

Letters: N images, S shots, K classes, D feature width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.config import SourceConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data import prompts
from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.formats.folders import read_support, read_unlabelled
from jclip_fewshot.data.listing import LabelledPath
from jclip_fewshot.data.shots import choose_shots, shortage
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import Bad
from jclip_fewshot.features.sources import labelled_rows, open_source
from jclip_fewshot.methods.base import SHOTS, TEXT, TOWER, UNLABELLED, Given, Queries, Unlabelled
from jclip_fewshot.methods.plan import Choice, choose, require_possible
from jclip_fewshot.methods.rows.sus_x import keep_support
from jclip_fewshot.task import Task, domain_indices


@dataclass(frozen=True)
class Problem:
    """What there is to learn, read from the disk and checked, and, by `encode`, with its source of features.

    sentences: of each class. support_files: (path, class id) of --support's images. unlabelled_files: --unlabelled's.
    Under mpirun all ranks have to call whatever encodes, in the same order.
    """

    settings: SourceConfig
    choice: Choice
    data: DataSet
    sentences: Sequence[Sequence[str]]
    support_files: Sequence[LabelledPath] = ()
    unlabelled_files: Sequence[str] = ()
    source: Any = None  # Source; only that of a CLIP has activations
    text: Any = None  # (K, D), the classes' rows

    def encode(self) -> Problem:
        """Open the source of features and encode the classes' sentences; raise UserError if there is no such file."""
        settings = self.settings
        source = open_source(settings.model, settings.weights, settings.features, settings.features_extra,
                             **settings.encoding)
        return replace(self, source=source, text=source.texts(self.data.class_names, self.sentences))

    def shots(self, count: int, seed: int, stage: str = "shots") -> tuple[np.ndarray, list[LabelledPath], Bad]:
        """Choose `count` images a class and return their rows (S, D), the images, and why others could not be read."""
        settings = self.settings
        encode = partial(self.source.images, self.data.root, stage="pool")
        chosen = choose_shots(self.data, count, seed, settings.shot_list, settings.pool,
                              encode if settings.select == "representative" else None, self.text)
        return labelled_rows(self.source, self.data.root, chosen, settings.skip_bad, views=settings.augment, seed=seed,
                             stage=stage)

    def task(self, rows: np.ndarray, labels: Sequence[int]) -> Task:
        """Return the task of shots (S, D) with those labels."""
        return Task(rows, np.asarray(labels), self.text, domain_indices(self.data.domains), self.source.scale,
                    self.source.parts)

    def support(self) -> tuple[np.ndarray, Sequence[LabelledPath]]:
        """Rows (M, D) of the support images that can be read, encoded as shots are, and those images."""
        if not self.support_files:
            return np.zeros((0, self.text.shape[1]), np.float32), []
        images = [(os.path.abspath(path), label) for path, label in self.support_files]
        rows, images, _ = labelled_rows(self.source, Path(), images, True, "support image", stage="support",
                                        views=self.settings.augment, seed=self.settings.seed)
        return rows, images

    def unlabelled(self, shots: Sequence[LabelledPath]) -> Unlabelled | None:
        """Return the images of --unlabelled and, with --transductive, of the test set but the shots; None for none."""
        settings, data = self.settings, self.data
        sets = [(Path(), self.unlabelled_files, "--unlabelled")] if self.unlabelled_files else []
        if settings.transductive:
            sets.append((data.root, data.split(used=[path for path, _ in shots]).files, "--transductive"))
        if not sets:
            return None
        found, paths = [], []
        for root, files, flag in sets:
            rows, kept, _ = labelled_rows(self.source, root, [(file, 0) for file in files], True, f"{flag} image",
                                          stage="without labels")
            found.append(rows)
            paths += [os.path.abspath(root / path) for path, _ in kept]
        rows, beside = np.concatenate(found), len(found[0]) if self.unlabelled_files else 0
        tell(f"{len(paths)} images without labels")
        encoder = getattr(self.source, "encoder", None)  # none of a feature file, nor of several encoders
        if encoder is None:
            return Unlabelled(rows, beside=beside)
        names = prompts.display_names(data.class_names, data.domains, settings.prompts, settings.names)
        sentences = [self.source.texts([name] * len(said), [[one] for one in said])
                     for name, said in zip(data.class_names, self.sentences)]
        return Unlabelled(rows, sentences, names, encoder, lambda: self.source.activations(Path(), paths).pixels(),
                          beside)

    def given(self, shots: Sequence[str], seed: int, unlabelled: Unlabelled | None = None) -> Given:
        """Return what methods need beside the task whose shots are the images `shots` (absolute, or below the data)."""
        settings, data = self.settings, self.data
        plain = prompts.plain_sentences(data.class_names, data.domains, settings.prompts, settings.names)
        return Given(tower_of(self.source, data.root, shots, settings.augment, seed, plain), unlabelled)


def read_problem(settings: SourceConfig, shots: int) -> Problem:
    """Read what the settings name, for `shots` images a class at most. Raise UserError if anything does not fit."""
    choice, labelled = choose(settings.methods), shots > 0 or bool(settings.shot_list)
    if settings.support_for != "all" and not settings.support:
        raise UserError(f"--support-for {settings.support_for} says which classes support images serve, and there are "
                        "none: give --support DIR")
    has = {TEXT: True, TOWER: True, SHOTS: labelled or settings.support,
           UNLABELLED: settings.unlabelled or settings.transductive}
    require_possible(choice, {need for need, there in has.items() if there})
    data = read_data_set(settings.data, settings.board, settings.domains, labelled, settings.format, settings.labels)
    tell(data.summary())
    for note in filter(None, [*data.notes, shortage(data, shots)]):
        tell(note)
    sentences = prompts.class_sentences(data.class_names, data.domains, settings.prompts, settings.names,
                                        settings.templates, settings.prompt_set, settings.descriptions)
    return Problem(settings, choice, data, sentences,
                   read_support(settings.support, data.class_names) if settings.support else (),
                   read_unlabelled(settings.unlabelled) if settings.unlabelled else ())


def with_support(task: Task, rows: np.ndarray, images: Sequence[LabelledPath], unseen_only: bool = False
                 ) -> tuple[Task, list[LabelledPath]]:
    """Return the task with support images (M, D) as further shots, and those that stay.

    One stays if zero-shot ranks its class among the first few (SuS-X), and with `unseen_only` if that has no shot.
    """
    if not len(images):
        return task, []
    labels = np.array([label for _, label in images], np.int64)
    kept = keep_support(rows, labels, task.text)
    if unseen_only:
        kept &= ~task.seen[labels]
    tell(f"{int(kept.sum())} of {len(kept)} support images stay: zero-shot ranks their class among the first few")
    both = replace(task, features=np.concatenate([task.features, rows[kept]]),
                   labels=np.concatenate([task.labels, labels[kept]]))
    return both, [image for image, stays in zip(images, kept) if stays]


def tower_of(source: Any, root: Path, shots: Sequence[str], views: int, seed: int, sentences: Sequence[str]
             ) -> Activations | None:
    """Return the activations of shots below `root` in the source's CLIP; None if it has no transformer to tune."""
    if source.clip is None or not hasattr(source.clip.encoder.model.visual, "transformer"):
        return None
    return source.clip.activations(root, shots, views, seed, sentences)


def queries_of(source: Any, root: Path, paths: Sequence[str], rows: np.ndarray, test_views: int = 1) -> Queries:
    """Return images below `root`, with rows (N, D), as queries: encoded anew for a method that asks for them."""
    if source.clip is None:
        return Queries(rows)

    def under(make: Callable) -> np.ndarray:
        other = source.clip.under(make)
        return other.images(root, paths, stage=f"images by {other.encoder.name}", test_views=test_views)[0]
    return Queries(rows, under)
