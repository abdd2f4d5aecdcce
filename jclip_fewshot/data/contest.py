"""Earlier names for data/formats and data/data_set, for callers that still use them."""

from __future__ import annotations

from jclip_fewshot.data.data_set import DataSet, TestSet, by_class, domain_of, domains_of
from jclip_fewshot.data.formats import contest, data_folder, read_data_set
from jclip_fewshot.data.formats.contest import CLASS_LISTS
from jclip_fewshot.data.listing import LabelledPath, PathLike

Contest = DataSet
read_contest = read_data_set


def read_classes(root: PathLike, board: str = "A") -> list[str]:
    """The raw class names by id."""
    return _of(root, board).class_names


def default_split(root: PathLike, board: str = "A") -> str:
    """The test set that is meant where none is named."""
    return _of(root, board).default_split


def test_images(root: PathLike, split: str = "") -> TestSet:
    """A test set of a data folder; "" for the default one."""
    board = split if (data_folder(root) / CLASS_LISTS.get(split, "")).is_file() else "A"
    return _of(root, board).split(split)


test_images.__test__ = False  # pytest: no test function


def read_labels(data: DataSet, split: str = "") -> dict[str, int] | None:
    """The known answers of a split, test image to class id."""
    return data.split(split).labels


def _of(root: PathLike, board: str) -> DataSet:
    return read_data_set(root, board if contest.recognise(data_folder(root)) else "A", labelled=False)


__all__ = ["CLASS_LISTS", "Contest", "LabelledPath", "TestSet", "by_class", "default_split", "domain_of", "domains_of",
           "read_classes", "read_contest", "read_labels", "test_images"]
