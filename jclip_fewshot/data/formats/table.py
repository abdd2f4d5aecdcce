"""A table of images and their classes: .csv, .tsv or .jsonl with a column of paths and a column of classes.

    train.csv   id,breed            Kaggle's: images in train/ or train_images/, with or without their ending
                0a1f,beagle
    labels.csv  path,label,split    one table of everything; a split column names train, val and test
    test.csv    id                  images to answer, or with their classes

Columns are known by their names, or else by what they hold: the one whose cells are files has the paths.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import (
    DataSet,
    Sure,
    TestSet,
    Wanted,
    by_class,
    known_answers,
    named_by_files,
    one_label_each,
)
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
LARGEST_CELL = 1 << 16
Row = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class Table:
    """A file's columns and rows: (line number, cell by column)."""

    file: Path
    columns: list[str]
    rows: list[Row]

    def column(self, names: Sequence[str]) -> str:
        """The column that has one of the names, the likeliest first; "" for none."""
        letters = {re.sub("[^a-z]", "", column.lower()): column for column in reversed(self.columns)}
        forms = [form for name in names for form in (name, name + "s", name + "es")]
        return next((letters[form] for form in forms if form in letters), "")


@dataclass(frozen=True)
class Labelled:
    """A table that lists images of a folder: which columns ("" for none), and the folder that its paths begin in."""

    table: Table
    paths: str
    labels: str
    splits: str
    base: str

    def located(self, files: listing.Files, rows: Sequence[Row]) -> list[tuple[int, str, str]]:
        """Return (line number, path below the data folder, class name) of rows. Raise UserError if one is absent."""
        found = listing.locate(files, self.table.file, [(number, row[self.paths]) for number, row in rows], self.base,
                               any_ending=True)
        return [(number, path, self._label(row)) for (number, row), path in zip(rows, found)]

    def _label(self, row: dict[str, str]) -> str:
        return same_text(row[self.labels].strip()) if self.labels else ""

    def test_set(self, files: listing.Files, rows: Sequence[Row], class_names: Sequence[str], name: str) -> TestSet:
        """Return the images of rows as a test set, each once."""
        named = {path: label for _, path, label in self.located(files, rows)}
        names = sorted(named, key=natural_key)
        labels, notes = known_answers(named, class_names, f"the test set {name}") if self.labels else (None, [])
        return TestSet(files.root, names, names, labels, notes)

    def classes(self, rows: Sequence[tuple[str, str]]) -> list[str]:
        """Return the names of the training rows' classes (path, class name). Raise UserError if one cannot be such."""
        source = self.table.file
        names = sorted({label for _, label in rows}, key=natural_key)
        for name in names:
            if not name or not name.isprintable():
                line = next(number for number, row in self.table.rows if self._label(row) == name)
                raise UserError(f"{source}, line {line}: {shown(brief(name))} is no class name; fill the column "
                                f"{self.labels!r}")
        if len(names) < 2 or len(names) == len(rows) > 20:
            raise UserError(f"{source}: the column {self.labels!r} names {len(names)} classes for {len(rows)} images; "
                            "is it the column of the classes? Call the right one label")
        return names


def recognise(root: Path) -> Sure | None:
    """A table whose paths are images here."""
    for top in dict.fromkeys((root, unwrapped(root))):
        found = _training_table(root, top)
        if found:
            return Sure(2, f"{found.table.file}, columns {found.paths!r} and {found.labels!r}")
    return None


def read(root: Path, wanted: Wanted) -> DataSet:
    """Return classes by the training rows' labels, numbered in natural order.

    Raise UserError if a table cannot be read or its columns are not clear, an image is absent or has two classes.
    """
    given = read_table(wanted.labels) if wanted.labels else None
    found = None
    for top in dict.fromkeys((root, unwrapped(root))):
        found = labelled(root, top, given) if given else _training_table(root, top)
        if found and found.labels:
            return read_rows(root, top, found, _test_tables(root, top, found.table.file), "table")
    if given:
        raise UserError(f"{given.file}: which columns hold the images' paths and their classes? It has "
                        f"{', '.join(map(repr, given.columns[:8]))}; call them path and label"
                        + ("" if found else f", and give paths below {root}"))
    raise UserError(f"{root} holds no table (.csv, .tsv, .jsonl) with a column of image paths and a column of classes; "
                    "name it with --labels")


def read_rows(root: Path, top: Path, found: Labelled, others: dict[str, Labelled], name: str) -> DataSet:
    """Return the data set of a table's training rows. others: tables of the test sets, by name."""
    files, source = listing.Files(root), found.table.file
    parts: dict[str, list[Row]] = {}
    for number, row in found.table.rows:
        part = row[found.splits].strip() or "(none)" if found.splits else "train"
        parts.setdefault("train" if role_of(part) == "train" else part, []).append((number, row))
    for part in parts:
        if Path(part).name != part or len(part) > 60:
            raise UserError(f"{source}: {shown(part)} in the column {found.splits!r} is no name of a test set")
    rows, notes = one_label_each(found.located(files, parts.pop("train")), source)
    class_names = found.classes(rows)
    ids = {label: place for place, label in enumerate(class_names)}
    tables = {**{part: (found, listed) for part, listed in parts.items()},
              **{part: (one, one.table.rows) for part, one in others.items()}}
    order = sorted(tables, key=lambda part: ({"test": 0, "val": 1}.get(role_of(part), 2), natural_key(part)))

    def split(part: str) -> TestSet:
        if part not in tables:
            return folder_split(root, top, part, class_names)
        one, listed = tables[part]
        return one.test_set(files, listed, class_names, part)

    return named_by_files(root, name, class_names, by_class((path, ids[label]) for path, label in rows),
                          order or splits_in(top)[1],
                          [f"classes by the column {found.labels!r} of {source}", *notes], split)


def read_table(path: Path) -> Table:
    """Return a .csv (commas or semicolons), .tsv or .jsonl with its column names.

    Raise UserError if there is no such file, it is no UTF-8, or rows do not fit the header.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a table ends in {', '.join(SUFFIXES)}")
    text = listing.read_text(path)
    if suffix == ".jsonl":
        return _json_lines(path, text)
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=text.split("\n", 1)[0].count)
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        columns = [cell.strip() for cell in next(reader, [])]
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise UserError(f"{path}, line {reader.line_num}: {len(cells)} cells under {len(columns)} column "
                                    "names")
                rows.append((reader.line_num, dict(zip(columns, cells))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no row of a table ({error})") from None
    if len(set(columns)) < len(columns) or not all(columns[1:]):
        raise UserError(f"{path}: its first line must name the columns, each once: {', '.join(columns[:8])}")
    return Table(path, columns, rows)


def _json_lines(path: Path, text: str) -> Table:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = listing.read_json(line, f"{path}, row {number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object a line, with a path and a label, not {line[:40]!r}")
        rows.append((number, {key: str(value) for key, value in row.items() if isinstance(value, (str, int, float))}))
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    return Table(path, columns, [(number, {**dict.fromkeys(columns, ""), **row}) for number, row in rows])


def _training_table(root: Path, top: Path) -> Labelled | None:
    """The table of the training images in a folder: train.csv, or the one table with paths and classes."""
    tables = [labelled(root, top, read_table(path)) for path in _tables_in(top) if role_of(path.stem) in ("", "train")]
    found = [one for one in tables if one and one.labels]
    found = [one for one in found if role_of(one.table.file.stem) == "train"] or found
    if len(found) > 1:
        raise UserError(f"{top}: {' and '.join(one.table.file.name for one in found[:3])} all list images with "
                        "classes; choose one with --labels")
    return found[0] if found else None


def _test_tables(root: Path, top: Path, training: Path) -> dict[str, Labelled]:
    """The tables of test sets in a folder, by the name without its ending."""
    return {path.stem: one for path in _tables_in(top) if role_of(path.stem) not in ("", "train") and path != training
            and (one := labelled(root, top, read_table(path)))}


def _tables_in(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(listing.entries_of(folder)[0], key=natural_key)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and "submission" not in name.lower()]


def labelled(root: Path, top: Path, table: Table) -> Labelled | None:
    """Return the table with its columns; None where no column's cells are images here."""
    files = listing.Files(root)
    named, called = table.column(PATHS), table.column(LABELS)
    for column in dict.fromkeys([named, *(one for one in table.columns if one != called)]):
        cells = [row[column] for _, row in table.rows[:LOOKED_AT]] if column else []
        bases = {base: sum(files.find(f"{base}/{cell}" if base else cell, any_ending=True) is not None for cell in cells
                           if cell.strip() and ".." not in cell) for base in _bases(root, top, table.file)}
        best = max(bases, key=lambda base: bases[base])
        if 2 * bases[best] > len(cells):
            break
    else:
        return None
    splits = table.column(SPLITS)
    splits = splits if splits and any(role_of(row[splits]) == "train" for _, row in table.rows) else ""
    rest = [one for one in table.columns if one not in (column, splits) and one]
    labels = called if called in rest else rest[0] if len(rest) == 1 else ""
    return Labelled(table, column, labels, splits, best)


def _bases(root: Path, top: Path, file: Path) -> list[str]:
    """Folders below the data folder in which a table's paths may begin, the likeliest first."""
    role = role_of(file.stem) or "train"
    folders = listing.folders_of(top)[:LOOKED_AT]
    order = [name for name in folders if role_of(name) == role] + [name for name in folders if not role_of(name)]
    places = [top, *(top / name for name in order), *(top / name / name for name in order), root]
    if root in file.parents:
        places.insert(0, file.parent)
    return list(dict.fromkeys(below(place, root).rstrip("/") for place in places))
