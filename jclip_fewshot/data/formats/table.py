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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jclip_fewshot.data.data_set import (
    DataSet,
    TestSet,
    by_class,
    domain_of,
    domains_of,
    known_answers,
    name_notes,
    one_label_each,
)
from jclip_fewshot.data.formats.folders import below, folder_split, role_of, splits_in, unwrapped
from jclip_fewshot.data.formats.wanted import Sure, Wanted
from jclip_fewshot.data.listing import (
    Files,
    brief,
    entries_of,
    folders_of,
    locate,
    natural_key,
    read_json,
    read_text,
    require_plain_name,
    same_text,
)
from jclip_fewshot.errors import UserError, shown

SUFFIXES = (".csv", ".tsv", ".jsonl")
# by their letters alone, the likeliest first
PATHS = ("path", "filepath", "imagepath", "impath", "imgpath", "filename", "imagename", "file", "image", "img",
         "imageid", "id", "name")
LABELS = ("label", "class", "classname", "category", "categoryname", "target", "breed", "species", "classid")
SPLITS = ("split", "set", "dataset", "subset", "partition", "usage")
LOOKED_AT = 50  # rows, to see which folder a table's paths begin in
LARGEST_CELL = 1 << 16


@dataclass(frozen=True)
class Table:
    """A file's columns and rows: (line number, cell by column)."""

    file: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]

    def column(self, names: Sequence[str]) -> str:
        """The column that has one of the names, the likeliest first; "" for none."""
        letters = {re.sub("[^a-z]", "", column.lower()): column for column in reversed(self.columns)}
        forms = [form for name in names for form in (name, name + "s", name + "es")]
        return next((letters[form] for form in forms if form in letters), "")


@dataclass(frozen=True)
class Labelled:
    """A table that lists images of a folder: which columns, and the folder that its paths begin in."""

    table: Table
    paths: str
    labels: str  # "" for none
    splits: str
    base: str

    def located(self, files: Files, rows: Iterable[tuple[int, dict[str, str]]]) -> list[tuple[int, str, str]]:
        """(line number, path below the data folder, class name) of rows.

        Raises:
            UserError: an image that is absent or lies elsewhere.
        """
        rows = list(rows)
        found = locate(files, self.table.file, [(number, row[self.paths]) for number, row in rows], self.base, True)
        for path in found:
            require_plain_name(path)
        return [(number, path, same_text(row[self.labels].strip()) if self.labels else "")
                for (number, row), path in zip(rows, found)]


def recognise(root: Path) -> Sure | None:
    """A table whose paths are images here."""
    for top in dict.fromkeys((root, unwrapped(root))):
        found = _training_table(root, top)
        if found:
            return Sure(2, f"{found.table.file}, columns {found.paths!r} and {found.labels!r}")
    return None


def read(root: Path, wanted: Wanted) -> DataSet:
    """Classes by the training rows' labels, numbered in natural order.

    Raises:
        UserError: a table that cannot be read, or whose columns are not clear; an image that is absent, or has two
            classes.
    """
    for top in dict.fromkeys((root, unwrapped(root))):
        found = labelled(root, top, read_table(wanted.labels)) if wanted.labels else _training_table(root, top)
        if found and found.labels:
            return read_rows(root, top, found, _test_tables(root, top, found.table.file), wanted, "table")
    if wanted.labels:
        table = read_table(wanted.labels)
        raise UserError(f"{wanted.labels}: which columns hold the images' paths and their classes? It has "
                        f"{', '.join(map(repr, table.columns[:8]))}; call them path and label"
                        + ("" if found else f", and give paths below {root}"))
    raise UserError(f"{root} holds no table (.csv, .tsv, .jsonl) with a column of image paths and a column of classes; "
                    "name it with --labels")


def read_rows(root: Path, top: Path, found: Labelled, others: dict[str, Labelled], wanted: Wanted,
              name: str) -> DataSet:
    """The data set of a table's training rows. others: tables of the test sets, by name."""
    files, source = Files(root), found.table.file
    parts: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, row in found.table.rows:
        part = row[found.splits].strip() or "(none)" if found.splits else "train"
        parts.setdefault("train" if role_of(part) == "train" else part, []).append((number, row))
    if "train" not in parts:
        raise UserError(f"{source}: no row of the column {found.splits!r} says train, but {', '.join(list(parts)[:5])}")
    rows, notes = one_label_each(found.located(files, parts.pop("train")), source)
    class_names = sorted({label for _, label in rows}, key=natural_key)
    for label in class_names:
        if not label or not label.isprintable():
            line = next(number for number, row in found.table.rows if same_text(row[found.labels].strip()) == label)
            raise UserError(f"{source}, line {line}: {shown(brief(label))} is no class name; fill the column "
                            f"{found.labels!r}")
    if len(class_names) < 2 or len(class_names) == len(rows) > 20:
        raise UserError(f"{source}: the column {found.labels!r} names {len(class_names)} classes for {len(rows)} "
                        "images; is it the column of the classes? Call the right one label")
    ids = {label: place for place, label in enumerate(class_names)}
    train = by_class((path, ids[label]) for path, label in rows)
    for part in parts:
        if Path(part).name != part or len(part) > 60:
            raise UserError(f"{source}: {shown(part)} in the column {found.splits!r} is no name of a test set")
    tables = {part: (found, listed) for part, listed in parts.items()}
    tables.update({part: (one, one.table.rows) for part, one in others.items()})
    folders = [] if tables else splits_in(top)[1]
    order = sorted(tables, key=lambda part: (["test", "val"].index(role_of(part)) if role_of(part) in ("test", "val")
                                             else 2, natural_key(part)))

    def split(part: str) -> TestSet:
        if part not in tables:
            return folder_split(root, top, part, class_names)
        one, listed = tables[part]
        return listed_split(root, one.located(files, listed), bool(one.labels), class_names, part)

    domains = [domain_of(label) for label in class_names] if wanted.domains else domains_of(class_names)
    return DataSet(root, class_names, domains, train, (*order, *folders), name,
                   [f"classes by the column {found.labels!r} of {source}", *notes, *name_notes(class_names)], split)


def listed_split(root: Path, rows: Iterable[tuple[int, str, str]], labelled: bool, class_names: Sequence[str],
             name: str) -> TestSet:
    """Listed test images (line number, path, class name), each once."""
    named = {path: label for _, path, label in rows}
    files = sorted(named, key=natural_key)
    labels, notes = known_answers(named, class_names, f"the test set {name}") if labelled else (None, [])
    return TestSet(root, files, files, labels, notes)


def read_table(path: Path) -> Table:
    """A .csv (commas or semicolons), .tsv or .jsonl with its column names.

    Raises:
        UserError: no such file, no UTF-8, rows that do not fit the header.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a table ends in {', '.join(SUFFIXES)}")
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(path, text)
    head = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    csv.field_size_limit(LARGEST_CELL)
    try:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
        columns = [cell.strip() for cell in next(reader, [])]
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise UserError(f"{path}, line {reader.line_num}: {len(cells)} cells under {len(columns)} column names")
            rows.append((reader.line_num, dict(zip(columns, cells))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no row of a table ({error})") from None
    if len(set(columns)) < len(columns) or not all(columns[1:]):
        raise UserError(f"{path}: its first line must name the columns, each once: {', '.join(columns[:8])}")
    return Table(path, columns, rows)


def _json_lines(path: Path, text: str) -> Table:
    rows, columns = [], {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = read_json(line, f"{path}, row {number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object a line, with a path and a label, not {line[:40]!r}")
        plain = {key: str(value) for key, value in row.items() if isinstance(value, (str, int, float))}
        columns.update(dict.fromkeys(plain))
        rows.append((number, plain))
    return Table(path, list(columns), [(number, {**dict.fromkeys(columns, ""), **row}) for number, row in rows])


def _training_table(root: Path, top: Path) -> Labelled | None:
    """The table of the training images in a folder: train.csv, or the one table with paths and classes."""
    found = []
    for path in _tables_in(top):
        if role_of(path.stem) in ("", "train"):
            one = labelled(root, top, read_table(path))
            if one and one.labels:
                found.append(one)
    named = [one for one in found if role_of(one.table.file.stem) == "train"]
    found = named or found
    if len(found) > 1:
        raise UserError(f"{top}: {' and '.join(one.table.file.name for one in found[:3])} all list images with "
                        "classes; choose one with --labels")
    return found[0] if found else None


def _test_tables(root: Path, top: Path, training: Path) -> dict[str, Labelled]:
    """The tables of test sets in a folder, by the name without its ending."""
    found = {}
    for path in _tables_in(top):
        if role_of(path.stem) not in ("", "train") and path != training:
            one = labelled(root, top, read_table(path))
            if one:
                found[path.stem] = one
    return found


def _tables_in(folder: Path) -> list[Path]:
    names = sorted(entries_of(folder)[0], key=natural_key)
    return [folder / name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            and "submission" not in name.lower()]


def labelled(root: Path, top: Path, table: Table) -> Labelled | None:
    """The table with its columns; None where no column's cells are images here."""
    files = Files(root)
    named = table.column(PATHS)
    called = table.column(LABELS)
    for column in dict.fromkeys([named, *(one for one in table.columns if one != called)] if named or called
                                else table.columns):
        if not column:
            continue
        cells = [row[column] for _, row in table.rows[:LOOKED_AT]]
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
    folders = folders_of(top)[:LOOKED_AT]
    order = [name for name in folders if role_of(name) == role] + [name for name in folders if not role_of(name)]
    places = [top, *(top / name for name in order), *(top / name / name for name in order), root]
    if root in file.parents:
        places.insert(0, file.parent)
    return list(dict.fromkeys(below(place, root).rstrip("/") for place in places))
