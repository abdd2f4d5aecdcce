"""What test.py asks a run: the images of a test set and, where somebody has them, their classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip_fewshot.config import TestConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data.data_set import DataSet, TestSet
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.submission import answers_file, require_names
from jclip_fewshot.evaluation.scores import truth_of
from jclip_fewshot.run import Run, require_result


@dataclass(frozen=True)
class Questions:
    """The N test images that a run is asked about."""

    data: DataSet
    split: str
    tests: TestSet
    truth: np.ndarray | None  # (N,) their classes; None where nobody knows
    result: Path  # the file of the answers


def read_questions(run: Run, settings: TestConfig) -> Questions:
    """Read the test images of a run: of the data folder and the split that the settings name, or its own.

    Raise UserError if something is absent, not what the run has learned, or cannot stand in the answers' file.
    """
    config = run.record.config
    root = settings.data or run.where(config.data)
    data = read_data_set(root, run.board, labelled=config.shots > 0, format=config.format,
                         labels=run.where(config.labels) if config.labels else "")
    run.require_same_classes(data.class_names)
    split = run.split(data, settings.split)
    tests = data.split(split, used=run.record.shots.files)
    for note in tests.notes:
        tell(note)
    result = answers_file(settings.result, settings.out, data.plain, root if config.demo else "")
    require_result(result)
    if result.suffix != ".csv":
        require_names(tests.folder, tests.names)
    return Questions(data, split, tests, None if tests.labels is None else truth_of(tests.labels, tests.names), result)
