"""What train.py learns from images without labels, or with unchecked ones, and the members that learn from them.

    --support DIR      a folder a class of found or generated images: further shots
    --unlabelled DIR   images of anything; the refinement sees them together with the test images
    --transductive     the test images themselves, as the contest allows; off unless it is asked for, and in the record
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip_fewshot.config import TrainConfig
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data import prompts
from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.listing import LabelledPath
from jclip_fewshot.data.support import read_support, read_unlabelled
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.features.sources import EncoderSource, Source, labelled_rows
from jclip_fewshot.methods.rows.base import Head
from jclip_fewshot.methods.unlabelled import label_free
from jclip_fewshot.pipeline import with_support
from jclip_fewshot.task import Task, domain_indices


@dataclass(frozen=True)
class Listed:
    """What the settings name, as it lies on the disk: support images, paths of --unlabelled, names of members."""

    support: Sequence[LabelledPath]
    unlabelled: Sequence[str]
    names: Sequence[str]


def list_without_labels(settings: TrainConfig, class_names: Sequence[str]) -> Listed:
    """Looks for all that is named, and complains before the work.

    Raises:
        UserError: see `label_free_names`, `read_support`, `read_unlabelled`; --support-for without --support.
    """
    if settings.support_for != "all" and not settings.support:
        raise UserError(f"--support-for {settings.support_for} says whom support images serve, and there are none: "
                        "give --support DIR")
    return Listed(read_support(settings.support, class_names) if settings.support else [],
                  read_unlabelled(settings.unlabelled) if settings.unlabelled else [], label_free_names(settings))


@dataclass(frozen=True)
class Support:
    """Support images that could be read: (path, class id), and their rows (M, D)."""

    images: Sequence[LabelledPath] = ()
    rows: np.ndarray | None = None

    def added_to(self, task: Task, unseen_only: bool) -> tuple[Task, list[LabelledPath]]:
        """The task with those as further shots that stay (see pipeline.with_support), and those."""
        if not self.images:
            return task, []
        task, kept = with_support(task, self.rows, [label for _, label in self.images], unseen_only)
        tell(f"{int(kept.sum())} of {len(kept)} support images stay: zero-shot ranks their class among the first few")
        return task, [image for image, stays in zip(self.images, kept) if stays]


def encode_support(settings: TrainConfig, listed: Listed, source: Source) -> Support:
    """The images of `--support`, as the shots are encoded; under mpirun all ranks have to call it.

    Raises:
        UserError: none can be read.
    """
    if not listed.support:
        return Support()
    images = [(os.path.abspath(path), label) for path, label in listed.support]
    rows, images, _ = labelled_rows(source, Path(), images, True, settings.augment, settings.seed, "support",
                                    what="support image")
    return Support(images, rows)


@dataclass(frozen=True)
class WithoutLabels:
    """Images without labels, encoded.

    unlabelled: rows (U, D) of --unlabelled's images, None without. rows (M, D): those and, with --transductive, the
    test images. names: of the members that learn from them. spoken: of each class, the rows of its sentences.
    shown: what to call each class.
    """

    unlabelled: np.ndarray | None = None
    rows: np.ndarray | None = None
    names: Sequence[str] = ()
    spoken: Sequence[np.ndarray] = ()
    shown: Sequence[str] = ()

    def learn(self, contest: DataSet, source: Source, text: np.ndarray, seed: int) -> list[Head]:
        """The members that have learned."""
        if not self.names:
            return []
        task = Task(np.zeros((0, text.shape[1])), [], text, domain_indices(contest.domains), source.scale)
        return label_free.learn(self.names, source.encoder, self.shown, self.rows, task, self.spoken, seed)


def encode_without_labels(settings: TrainConfig, listed: Listed, contest: DataSet, source: Source,
                          sentences: Sequence[Sequence[str]]) -> WithoutLabels:
    """Encodes what the settings name; under mpirun all ranks have to call it.

    Raises:
        UserError: no unlabelled image can be read; members that cannot learn from this source.
    """
    names = listed.names
    if not (settings.unlabelled or settings.transductive):
        return WithoutLabels()
    if names and not isinstance(source, EncoderSource):
        raise UserError("--label-free learns with one CLIP, not with a file of --features nor with several encoders; "
                        "--label-free '' goes without")
    unlabelled, parts = None, []
    if settings.unlabelled:
        where = f"--unlabelled {settings.unlabelled}"
        unlabelled = _readable(source, Path(), listed.unlabelled, where)
        parts.append(unlabelled)
    if settings.transductive:
        tests = contest.split()
        parts.append(_readable(source, contest.root, tests.files, f"--transductive: {tests.folder}"))
    rows = np.concatenate(parts)
    tell(f"{len(rows)} images without labels; {', '.join(names) or 'nothing'} learns from them")
    spoken = [source.texts([name], [[one] for one in said]) for name, said in zip(contest.class_names, sentences)
              ] if names else []
    shown = prompts.display_names(contest.class_names, contest.domains, settings.prompts, settings.names)
    return WithoutLabels(unlabelled, rows, names, spoken, shown)


def label_free_names(settings: TrainConfig) -> list[str]:
    """`--label-free` as names.

    Raises:
        UserError: a member that there is not, or no image that it could learn from.
    """
    names = [name.strip() for name in settings.label_free.split(",") if name.strip()]
    for name in names:
        if name not in label_free.MEMBERS:
            raise UserError(f"--label-free: unknown method {name!r}{nearest(name, label_free.MEMBERS)}; there are "
                            f"{', '.join(label_free.MEMBERS)}")
    if names and not (settings.unlabelled or settings.transductive):
        raise UserError(f"--label-free {','.join(names)} learns from images without labels: name a folder with "
                        "--unlabelled, or take the test images with --transductive")
    return names


def _readable(source: Source, root: Path, paths: Sequence[str], where: str) -> np.ndarray:
    """Rows of the images that can be read."""
    rows, bad = source.images(root, paths, stage="without labels")
    if len(bad) == len(paths):
        index, reason = next(iter(bad.items()))
        raise UserError(f"{where}: none of the {len(paths)} images can be read ({paths[index]}: {reason})")
    for index, reason in bad.items():
        warn(f"{paths[index]} cannot be read ({reason}); left out")
    return rows[[index for index in range(len(paths)) if index not in bad]]
