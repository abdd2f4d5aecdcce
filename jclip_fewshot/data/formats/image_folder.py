"""Hugging Face's ImageFolder: metadata.csv or metadata.jsonl beside the images, with file_name and a label.

    train/metadata.csv   file_name,label       test/metadata.csv      or one metadata.csv above all
                         0001.png,dog
"""

from pathlib import Path
from typing import Any

from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.formats import table
from jclip_fewshot.data.formats.folders import splits_in

NAMES = ("metadata.csv", "metadata.jsonl")


def recognise(root: Path) -> tuple[int, str, table.Found] | None:
    """A metadata file with a class for every file_name."""
    def of_training(top: Path) -> table.Labelled | None:
        found = (_labelled(root, top, folder) for folder in (*(top / name for name in splits_in(top)[0]), top))
        return next((one for one in found if one and one.labels), None)

    found = table.first_in(root, of_training)
    return (3, f"{found[1].file} with file_name and {found[1].labels!r}", found) if found else None


def read(root: Path, found: table.Found, **_: Any) -> DataSet:
    """Return classes by the labels of the training folder's metadata; see table.read_rows."""
    top, training = found
    others = {name: one for name in splits_in(top)[1] if (one := _labelled(root, top, top / name))
              and one.file != training.file}
    return table.read_rows(root, top, training, others, "imagefolder")


def _labelled(root: Path, top: Path, folder: Path) -> table.Labelled | None:
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    return table.labelled(root, top, file) if file else None
