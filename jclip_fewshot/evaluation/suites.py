"""Labelled feature suites: .npz files of shots, test rows, text rows and class names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Union

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.data.contest import domains_of
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import load_arrays
from jclip_fewshot.task import Task, domain_indices, fold_of_shots

KEYS = ("train_x", "train_y", "test_x", "test_y", "text", "classes")


@dataclass(frozen=True)
class Suite:
    """Shots and labelled test rows in one feature space: N test rows, K classes, D feature width."""

    name: str
    task: Task
    features: np.ndarray  # (N, D) unit rows
    labels: np.ndarray  # (N,)
    classes: List[str]  # (K,)
    domains: List[str]  # (K,) the part of the class name before the first underscore, "" without


def with_shots(suite: Suite, shots: int) -> Suite:
    """The suite with at most `shots` shots of each class, its first ones; 0 leaves the class names alone."""
    return replace(suite, task=suite.task.take(fold_of_shots(suite.task.labels) < shots))


def load_suite(path: Union[str, Path]) -> Suite:
    """Reads a suite: train_x (S, D), train_y (S,), test_x (N, D), test_y (N,), text (K, D), classes (K,).

    Rows of any float type are normalised again.
    Raises:
        UserError: absent, not an .npz, a key missing, shapes that do not fit, labels out of range.
    """
    arrays = load_arrays(Path(path))
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)}; a suite has {', '.join(KEYS)}")
    classes = [str(name) for name in arrays["classes"]]
    domains = domains_of(classes)
    labels = np.asarray(arrays["test_y"], np.int64)
    try:
        features = unit_rows(arrays["test_x"])
        task = Task(arrays["train_x"], arrays["train_y"], arrays["text"], domain_indices(domains))
    except ValueError as error:
        raise UserError(f"{path}: {error}")
    if len(classes) != task.num_classes or features.shape != (len(labels), task.text.shape[1]):
        raise UserError(f"{path}: {len(classes)} classes, text {task.text.shape}, test_x {features.shape} "
                        f"and test_y {labels.shape} do not fit together")
    if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < len(classes):
        raise UserError(f"{path}: test_y must name classes 0..{len(classes) - 1} of at least one test row")
    if not np.isfinite(features).all():
        raise UserError(f"{path}: test_x holds a value that is not finite")
    return Suite(Path(path).stem, task, features, labels, classes, domains)
