"""What train.py learns from images without labels: which images, and the members that learn from them.

    --unlabelled DIR   images of anything; the refinement sees them together with the test images
    --transductive     the test images themselves, as the contest allows; off unless it is asked for, and in the record
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence

import numpy as np

from jclip_fewshot.config import TrainConfig
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data import prompts
from jclip_fewshot.data.contest import Contest, test_images
from jclip_fewshot.data.support import read_unlabelled
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.features.sources import EncoderSource, Source
from jclip_fewshot.heads.base import Head
from jclip_fewshot.task import Task, domain_indices
from jclip_fewshot.tuning import label_free


@dataclass(frozen=True)
class WithoutLabels:
    """Images without labels, encoded.

    unlabelled: rows (U, D) of --unlabelled's images, None without. rows (M, D): those and, with --transductive, the
    test images. names: of the members that learn from them. spoken: of each class, the rows of its sentences.
    """

    unlabelled: Optional[np.ndarray] = None
    rows: Optional[np.ndarray] = None
    names: Sequence[str] = ()
    spoken: Sequence[np.ndarray] = ()

    def learn(self, contest: Contest, source: Source, text: np.ndarray, seed: int) -> List[Head]:
        """The members that have learned."""
        if not self.names:
            return []
        task = Task(np.zeros((0, text.shape[1])), [], text, domain_indices(contest.domains), source.scale)
        shown = [prompts.display_name(name, domain) for name, domain in zip(contest.class_names, contest.domains)]
        return label_free.learn(self.names, source.encoder, shown, self.rows, task, self.spoken, seed)


def encode_without_labels(settings: TrainConfig, contest: Contest, source: Source,
                          sentences: Sequence[Sequence[str]]) -> WithoutLabels:
    """Finds and encodes what the settings name; under mpirun all ranks have to call it.

    Raises:
        UserError: no unlabelled image can be read; a member that there is not; features without a CLIP.
    """
    if not (settings.unlabelled or settings.transductive):
        return WithoutLabels()
    names = [name.strip() for name in settings.label_free.split(",") if name.strip()]
    for name in names:
        if name not in label_free.MEMBERS:
            raise UserError(f"--label-free: unknown method {name!r}{nearest(name, label_free.MEMBERS)}; there are "
                            f"{', '.join(label_free.MEMBERS)}")
    if names and not isinstance(source, EncoderSource):
        raise UserError("--label-free: a file of --features has no CLIP to learn with; --label-free '' goes without")
    unlabelled, parts = None, []
    if settings.unlabelled:
        where = f"--unlabelled {settings.unlabelled}"
        unlabelled = _readable(source, Path(), read_unlabelled(settings.unlabelled), where)
        parts.append(unlabelled)
    if settings.transductive:
        tests = test_images(contest.root, settings.board)
        parts.append(_readable(source, contest.root, tests.files, f"--transductive: {tests.folder}"))
    rows = np.concatenate(parts)
    tell(f"{len(rows)} images without labels; {', '.join(names) or 'nothing'} learns from them")
    spoken = [source.texts([name], [[one] for one in said]) for name, said in zip(contest.class_names, sentences)
              ] if names else []
    return WithoutLabels(unlabelled, rows, names, spoken)


def _readable(source: Source, root: Path, paths: Sequence[str], where: str) -> np.ndarray:
    """Rows of the images that can be read."""
    rows, bad = source.images(root, paths, stage="without labels")
    if len(bad) == len(paths):
        index, reason = next(iter(bad.items()))
        raise UserError(f"{where}: none of the {len(paths)} images can be read ({paths[index]}: {reason})")
    for index, reason in bad.items():
        warn(f"{paths[index]} cannot be read ({reason}); left out")
    return rows[[index for index in range(len(paths)) if index not in bad]]
