"""Formats of data sets, a file each; every one of them reads into one description, data_set.DataSet.

A format is a module with `recognise(root)`, how sure it is that a folder has this format and why, and
`read(root, wanted)`. To add one: a file, a line in FORMATS, a real example in tests/data/test_formats.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from jclip_fewshot.data.data_set import DataSet, Wanted, domain_of
from jclip_fewshot.data.formats import contest, coop, image_folder, table, tree
from jclip_fewshot.data.listing import PathLike
from jclip_fewshot.errors import UserError

FORMATS = {"contest": contest, "coop": coop, "imagefolder": image_folder, "table": table, "tree": tree}


def read_data_set(root: PathLike, board: str = "A", domains: bool = False, labelled: bool = True, format: str = "",
                  labels: PathLike = "") -> DataSet:
    """Return a data set's classes, training images and test sets, whatever its format; opens no image.

    Args:
        root: the data folder.
        board: "A" (classes.txt) or "B" (classes_b.txt) of the contest; other formats have one list of classes.
        domains: the part of each class's name before the first underscore is its domain, whatever the layout.
        labelled: False where no training image is asked for: the contest then needs none, nor train.txt.
        format: a name in FORMATS; "" for the one that the folder shows.
        labels: the table of the training images, where its name does not show it.

    Raise UserError if there is no such folder, no format or two fit, or something is wrong with the files, and where.
    """
    try:
        there = Path(root).is_dir()
    except (OSError, ValueError):  # a name that is too long, a link that leads to itself
        there = False
    if not there:
        raise UserError(f"no folder {root}: give the data set's folder with --data")
    folder = Path(os.path.abspath(root))  # a later change of the working directory changes nothing
    if labels and format not in ("", "table"):
        raise UserError(f"--labels {labels} is for --format table, not {format}")
    wanted = Wanted(board, labelled, Path(os.path.abspath(labels)) if labels else None)
    data = FORMATS[format or ("table" if labels else recognised(folder))].read(folder, wanted)
    return replace(data, domains=[domain_of(name) for name in data.class_names]) if domains else data


def recognised(root: Path) -> str:
    """Return the name of the format that fits a folder best, "tree" if none does. Raise UserError if two fit alike."""
    found = {name: sure for name, module in FORMATS.items() if (sure := module.recognise(root))}
    most = max((sure.much for sure in found.values()), default=0)
    best = [name for name, sure in found.items() if sure.much == most]
    if len(best) > 1:
        fits = " or ".join(f"{name} ({found[name].why})" for name in best)
        raise UserError(f"{root} may be read in two ways, as {fits}: choose with --format {best[0]} or {best[1]}")
    return best[0] if best else "tree"  # which says what is missing
