"""What test.py asks a run: the images of a test set and, where somebody has them, their classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jclip_fewshot.console import tell
from jclip_fewshot.data.contest import Contest, TestSet, read_contest, read_labels, test_images
from jclip_fewshot.data.submission import require_names
from jclip_fewshot.evaluation.scores import truth_of
from jclip_fewshot.run import Run


@dataclass(frozen=True)
class Questions:
    """The N test images that a run is asked about. own: they are the split that it was trained for.

    truth (N,): their classes; None where nobody knows.
    """

    data: Contest
    split: str
    own: bool
    tests: TestSet
    truth: np.ndarray | None


def read_questions(run: Run, root: str = "", given: str = "") -> Questions:
    """Read the test images of a run: of the data folder `root` and the split `given`, or its own.

    Raise UserError if something is absent, not what the run has learned, or cannot stand in a result.txt.
    """
    data = read_contest(root or run.where(run.record.config.data), run.board, labelled=run.record.config.shots > 0)
    run.require_same_classes(data.class_names)
    split, own = run.split(data.root, given)
    tests = test_images(data.root, split)
    require_names(tests.folder, tests.names)
    if tests.ignored:
        tell(f"{tests.folder}: {tests.ignored} files that are no images are left out")
    labels = read_labels(data, split)
    return Questions(data, split, own, tests, None if labels is None else truth_of(labels, tests.names))
