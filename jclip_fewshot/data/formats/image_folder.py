"""Hugging Face's ImageFolder: metadata.csv or metadata.jsonl beside the images, with file_name and a label.

    train/metadata.csv   file_name,label       test/metadata.csv      or one metadata.csv above all
                         0001.png,dog
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.formats import table
from jclip_fewshot.data.formats.folders import splits_in, unwrapped
from jclip_fewshot.errors import UserError

NAMES = ("metadata.csv", "metadata.jsonl")


def recognise(root: Path) -> tuple[int, str] | None:
    """A metadata file with a class for every file_name."""
    found = _found(root)
    return (3, f"{found[1].file} with file_name and {found[1].labels!r}") if found else None


def read(root: Path, **_: Any) -> DataSet:
    """Return classes by the labels of the training folder's metadata; see table.read_rows."""
    found = _found(root)
    if found is None:
        raise UserError(f"{root} holds no {' or '.join(NAMES)} with file_name and a label, in its training folder or "
                        "itself")
    top, training = found
    others = {name: one for name in splits_in(top)[1] if (one := _labelled(root, top, top / name))
              and one.file != training.file}
    return table.read_rows(root, top, training, others, "imagefolder")


def _found(root: Path) -> tuple[Path, table.Labelled] | None:
    for top in dict.fromkeys((root, unwrapped(root))):
        for folder in (*(top / name for name in splits_in(top)[0]), top):
            found = _labelled(root, top, folder)
            if found and found.labels:
                return top, found
    return None


def _labelled(root: Path, top: Path, folder: Path) -> table.Labelled | None:
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    return table.labelled(root, top, file) if file else None
