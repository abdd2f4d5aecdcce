"""Labelled feature suites: .npz files of shots, test rows, text rows and class names."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.data.prompts import domains_of
from jclip_fewshot.errors import UserError, shown
from jclip_fewshot.storage.arrays import Field, load_arrays
from jclip_fewshot.task import Task, domain_indices, fold_of_shots

# S shots, N test rows, K classes, D feature width
SCHEMA = {"train_x": Field("float", "S D", rows=True), "train_y": Field("whole", "S", low=0, below="K"),
          "test_x": Field("float", "N D", rows=True), "test_y": Field("whole", "N", low=0, below="K"),
          "text": Field("float", "K D", rows=True), "classes": Field("text", "K")}


@dataclass(frozen=True)
class Suite:
    """Shots and labelled test rows in one feature space."""

    name: str
    task: Task
    features: np.ndarray  # (N, D) unit rows
    labels: np.ndarray  # (N,)
    classes: list[str]  # (K,) labels alone, as text rows are given: two classes may have one name
    domains: list[str]  # (K,) see data_set.domains_of: a suite shows no folders, so names of known domains alone


def with_shots(suite: Suite, shots: int, seed: int = 0) -> Suite:
    """Return the suite with `shots` shots of each class that has any, see `drawn`; raise UserError if one has fewer."""
    counts = suite.task.counts
    for name, count in zip(suite.classes, counts):
        if 0 < count < shots:
            raise UserError(f"{suite.name}: class {shown(name)} has {count} shots, fewer than --shots {shots}; the "
                            f"most that all have is {counts[counts > 0].min()}")
    return replace(suite, task=suite.task.take(drawn(suite.task.labels, shots, seed)))


def drawn(labels: np.ndarray, shots: int, seed: int = 0) -> np.ndarray:
    """Return which shots (S,) are among `shots` of their class: for seed 0 the first, else drawn; (S,) bool."""
    order = np.arange(len(labels)) if seed == 0 else np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels), np.int64)
    place[order] = fold_of_shots(labels[order])
    return place < shots


def load_suite(path: str | Path) -> Suite:
    """Return the suite of a file, see SCHEMA, rows normalised again; raise UserError if the file is no such .npz."""
    arrays = load_arrays(Path(path), SCHEMA, others=None)
    classes = arrays["classes"].tolist()
    labels = arrays["test_y"].astype(np.int64)
    if not len(labels) or len(classes) < 2 or not arrays["text"].shape[1]:
        raise UserError(f"{path}: a suite has at least one test row, two classes and rows that are not empty")
    for name in classes:
        if not name.strip() or not name.isprintable():
            raise UserError(f"{path}: the class name {shown(name)} is empty or not printable")
    domains = domains_of(classes)
    features = unit_rows(arrays["test_x"])
    task = Task(arrays["train_x"], arrays["train_y"], arrays["text"], domain_indices(domains))
    return Suite(Path(path).stem, task, features, labels, classes, domains)
