"""A table of images and their classes: .csv, .tsv or .jsonl with a column of paths and a column of classes.

    train.csv   id,breed            Kaggle's: images in train/ or train_images/, with or without their ending
                0a1f,beagle
    labels.csv  path,label,split    one table of everything; a split column names train, val and test
    test.csv    id                  images to answer, or with their classes

Columns are known by their names, or else by what they hold: the one whose cells are files has the paths.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import DataSet, TestSet, by_class, known_answers, named_by_files, one_label_each
from jclip_fewshot.data.formats.folders import below, folder_split, role_of, splits_in, unwrapped
from jclip_fewshot.data.listing import brief, natural_key, same_text
from jclip_fewshot.errors import UserError, shown

SUFFIXES = (".csv", ".tsv", ".jsonl")
# by their letters alone, the likeliest first
PATHS = ("path", "filepath", "imagepath", "impath", "imgpath", "filename", "imagename", "file", "image", "img",
         "imageid", "id", "name")
LABELS = ("label", "class", "classname", "category", "categoryname", "target", "breed", "species", "classid")
SPLITS = ("split", "set", "dataset", "subset", "partition", "usage")
LOOKED_AT = 50  # rows, to see which folder a table's paths begin in
Listed = tuple[int, str, str]  # line number, path below the base, class


@dataclass(frozen=True)
class Labelled:
    file: Path
    paths: str  # the name of a column
    labels: str  # likewise; "" for none
    base: str  # the folder below the data folder that its paths begin in
    parts: dict[str, list[Listed]]  # by a column of splits: "train", or the name of a test set


Found = tuple[Path, Labelled]  # the folder of the tables, and the training images' one


def first_in(root: Path, find: Callable[[Path], Labelled | None]) -> Found | None:
    """Return the table with classes that `find` finds in the data folder, or else in the one inside its wrappers."""
    for top in dict.fromkeys((root, unwrapped(root))):
        found = find(top)
        if found and found.labels:
            return top, found
    return None


def recognise(root: Path, labels: Path | None = None) -> tuple[int, str, Found] | None:
    """A table whose paths are images here. Raise UserError if `labels`, the one that is meant, is none."""
    found = first_in(root, lambda top: labelled(root, top, labels) if labels else _training_table(root, top))
    if labels and not found:
        there = ", ".join(repr(brief(column)) for column in _read_table(labels)[0][:8])
        raise UserError(f"{labels}: which columns hold the images' paths and their classes? It has {there}; call them "
                        f"path and label, and give paths below {root}")
    return (2, f"{found[1].file}, columns {found[1].paths!r} and {found[1].labels!r}", found) if found else None


def read(root: Path, found: Found, **_: Any) -> DataSet:
    """Return classes by the training rows' labels, numbered in natural order."""
    top, training = found
    tests = {file.stem: one for file in _tables_in(top) if role_of(file.stem) not in ("", "train")
             and file != training.file and (one := labelled(root, top, file))}
    return read_rows(root, top, training, tests, "table")


def read_rows(root: Path, top: Path, found: Labelled, others: dict[str, Labelled], name: str,
              class_names: list[str] | None = None) -> DataSet:
    """Return the data set of a table's training rows. others: tables of the test sets, by name.

    class_names: by id, if known; the training images then stay in the table's order, in which CoOp's seeds draw shots.
    """
    files = listing.Files(root, any_ending=True)
    for part in found.parts:
        if Path(part).name != part or len(part) > 60:
            raise UserError(f"{found.file}: {shown(part)} in its column of splits is no name of a test set")

    def located(one: Labelled, listed: list[Listed]) -> tuple[list[tuple[str, str]], list[str]]:
        return one_label_each(listing.locate(files, one.file, listed, one.base), one.file)

    for number, _, label in found.parts["train"]:
        if not label or not label.isprintable():
            raise UserError(f"{found.file}, line {number}: {shown(brief(label))} is no class name; fill the column "
                            f"{found.labels!r}")
    rows, notes = located(found, found.parts["train"])
    names = class_names or sorted({label for _, label in rows}, key=natural_key)
    if not class_names and (len(names) < 2 or len(names) == len(rows) > 20):
        raise UserError(f"{found.file}: the column {found.labels!r} names {len(names)} classes for {len(rows)} "
                        "images; is it the column of the classes? Call the right one label")
    tables = {**{part: (found, listed) for part, listed in found.parts.items() if part != "train"},
              **{part: (one, [row for rows in one.parts.values() for row in rows]) for part, one in others.items()}}
    order = sorted(tables, key=lambda part: ({"test": 0, "val": 1}.get(role_of(part), 2), natural_key(part)))

    def split(part: str) -> TestSet:
        if part not in tables:
            return folder_split(root, top, part, names)
        named = dict(located(*tables[part])[0])
        images = sorted(named, key=natural_key)
        labels, said = known_answers(named, names, f"the test set {part}") if tables[part][0].labels else (None, [])
        return TestSet(root, images, images, labels, said)

    ids = {label: place for place, label in enumerate(names)}
    train = [(path, ids[label]) for path, label in rows]
    return named_by_files(root, name, names, train if class_names else by_class(train), order or splits_in(top)[1],
                          [f"classes by {found.labels!r} of {found.file}", *notes], split)


def _training_table(root: Path, top: Path) -> Labelled | None:
    """The table of the training images in a folder: train.csv, or the one table with paths and classes."""
    tables = [labelled(root, top, file) for file in _tables_in(top) if role_of(file.stem) in ("", "train")]
    found = [one for one in tables if one and one.labels]
    found = [one for one in found if role_of(one.file.stem) == "train"] or found
    if len(found) > 1:
        raise UserError(f"{top}: {' and '.join(one.file.name for one in found[:3])} all list images with classes; "
                        "choose one with --labels")
    return found[0] if found else None


def _tables_in(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(listing.entries_of(folder)[0], key=natural_key)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and "submission" not in name.lower()]


def labelled(root: Path, top: Path, file: Path) -> Labelled | None:
    """Return a table; None where no column's cells are images here. Raise UserError if it cannot be read."""
    columns, rows = _read_table(file)
    letters = {re.sub("[^a-z]", "", column.lower()): column for column in reversed(columns)}

    def called(names: Sequence[str]) -> str:
        """The column that has one of the names, the likeliest first; "" for none."""
        forms = [form for name in names for form in (name, name + "s", name + "es")]
        return next((letters[form] for form in forms if form in letters), "")

    files, bases, labels = listing.Files(root, any_ending=True), _bases(root, top, file), called(LABELS)
    for paths in dict.fromkeys([called(PATHS), *(one for one in columns if one != labels)]):
        cells = [row[paths] for _, row in rows[:LOOKED_AT]] if paths else []
        base, hits = files.most_in(bases, [one for one in cells if one.strip() and ".." not in one])
        if 2 * hits > len(cells):
            break
    else:
        return None
    splits = called(SPLITS)
    splits = splits if splits and any(role_of(row[splits]) == "train" for _, row in rows) else ""
    rest = [one for one in columns if one not in (paths, splits) and one]
    labels = labels if labels in rest else rest[0] if len(rest) == 1 else ""
    parts: dict[str, list[Listed]] = {}
    for number, row in rows:
        part = row[splits].strip() or "(none)" if splits else "train"
        parts.setdefault("train" if role_of(part) == "train" else part, []).append(
            (number, row[paths], same_text(row[labels].strip()) if labels else ""))
    return Labelled(file, paths, labels, base, parts)


def _bases(root: Path, top: Path, file: Path) -> list[str]:
    """Folders below the data folder in which a table's paths may begin, the likeliest first."""
    role = role_of(file.stem) or "train"
    folders = listing.folders_of(top)[:LOOKED_AT]
    order = [name for name in folders if role_of(name) == role] + [name for name in folders if not role_of(name)]
    places = [*([file.parent] if root in file.parents else []), top, *(top / name for name in order),
              *(top / name / name for name in order), root]
    return list(dict.fromkeys(below(place, root).rstrip("/") for place in places))


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns and rows, (line number, cell by column), of a .csv (commas or semicolons), .tsv or .jsonl."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a table ends in {', '.join(SUFFIXES)}")
    text = listing.read_text(path)
    if suffix == ".jsonl":
        return _json_lines(path, text)
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        columns = [cell.strip() for cell in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no row of a table ({error})") from None
    if len(set(columns)) < len(columns) or not all(columns[1:]):
        named = ", ".join(map(brief, columns[:8]))
        raise UserError(f"{path}: its first line must name the columns, each once: {named}")
    for number, cells in rows:
        if len(cells) != len(columns):
            raise UserError(f"{path}, line {number}: {len(cells)} cells under {len(columns)} column names")
    return columns, [(number, dict(zip(columns, cells))) for number, cells in rows]


def _json_lines(path: Path, text: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    rows: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = listing.read_json(line, f"{path}, row {number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object a line, with a path and a label, not {line[:40]!r}")
        rows.append((number, {key: str(value) for key, value in row.items() if isinstance(value, (str, int, float))}))
    columns = dict.fromkeys((key for _, row in rows for key in row), "")
    return list(columns), [(number, {**columns, **row}) for number, row in rows]
