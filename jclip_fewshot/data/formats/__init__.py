"""Formats of data sets, a file each; every one of them reads into one description, data_set.DataSet.

A format is a module with `recognise(root)` and `read(root, *found, **wanted)`. `recognise` returns how sure it is of a
folder (3: by files that no other format has, 2: by what they hold, 1: by its folders), why, and what else `read` is
handed, or None. `read` raises UserError for all that is wrong with the files. To add one: a file, a line in FORMATS, a
real example in tests/data/test_formats.py.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.formats import contest, coop, image_folder, table, tree
from jclip_fewshot.data.listing import PathLike
from jclip_fewshot.data.prompts import domain_of
from jclip_fewshot.errors import UserError

FORMATS = {"contest": contest, "coop": coop, "imagefolder": image_folder, "table": table, "tree": tree}
NEEDS = {"coop": f"{coop.NAME}….json", "imagefolder": f"{' or '.join(image_folder.NAMES)} with file_name and a label",
         "table": "table (.csv, .tsv, .jsonl) of image paths and classes; name it with --labels"}


def read_data_set(root: PathLike, board: str = "A", domains: bool = False, labelled: bool = True, format: str = "",
                  labels: PathLike = "") -> DataSet:
    """Return a data set's classes, training images and test sets, whatever its format; opens no image.

    board: the contest's, "A" (classes.txt) or "B" (classes_b.txt). domains: each class's domain is the part of its name
    before the first underscore, whatever the layout. labelled: False where no training image is asked for: the contest
    then needs none. format: a name in FORMATS; "" for the one that the folder shows. labels: the table of the training
    images, where its name does not show it. Raise UserError if no format or two fit, or a file is wrong, and where.
    """
    if not os.path.isdir(root):
        raise UserError(f"no folder {root}: give the data set's folder with --data")
    folder = Path(os.path.abspath(root))  # a later change of the working directory changes nothing
    if labels and format not in ("", "table"):
        raise UserError(f"--labels {labels} is for --format table, not {format}")
    if labels:
        format, found = "table", table.recognise(folder, Path(os.path.abspath(labels)))
    else:
        format, found = (format, FORMATS[format].recognise(folder)) if format else recognised(folder)
    if found is None and format in NEEDS:
        raise UserError(f"{root} holds no {NEEDS[format]}")
    data = FORMATS[format].read(folder, *(found or ())[2:], board=board, labelled=labelled)
    return replace(data, domains=[domain_of(name) for name in data.class_names]) if domains else data


def recognised(root: Path) -> tuple[str, Any]:
    """Return the format that fits a folder best and what it found, "tree" if none does; UserError if two fit alike."""
    found = {name: sure for name, module in FORMATS.items() if (sure := module.recognise(root))}
    most = max((sure[0] for sure in found.values()), default=0)
    best = [name for name, sure in found.items() if sure[0] == most]
    if len(best) > 1:
        fits = " or ".join(f"{name} ({found[name][1]})" for name in best)
        raise UserError(f"{root} may be read in two ways, as {fits}: choose with --format {best[0]} or {best[1]}")
    return (best[0], found[best[0]]) if best else ("tree", None)  # which says what is missing
