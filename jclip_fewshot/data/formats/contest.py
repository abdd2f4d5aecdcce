"""The contest's own files.

    classes.txt  classes_b.txt      `Animal_Bear 0`: <Domain>_<name> and the class's id, boards A and B
    train.txt                       `TrainSet/Animal/Bear/1.jpg 0`: path below the data folder, class id
    TestSetA/  TestSetB/            photographs to answer
    labels_TestSetA.txt             `image_1.jpg 14`: the known answers, where somebody has them
"""

import re
from collections.abc import Sequence
from pathlib import Path

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import DataSet, by_class, one_label_each
from jclip_fewshot.data.formats.folders import folder_split, splits_in
from jclip_fewshot.data.prompts import domain_of, domains_of
from jclip_fewshot.errors import UserError

CLASS_LISTS = {"A": "classes.txt", "B": "classes_b.txt"}
TRAIN_LIST = "train.txt"
LOOKED_AT = 200  # folders in which the contest's lists are looked for where --data leads past them


def recognise(root: Path) -> tuple[int, str] | None:
    """Its lists: classes.txt, classes_b.txt or train.txt; a classes.txt alone, which others have too, by its form."""
    there = [name for name in (*CLASS_LISTS.values(), TRAIN_LIST) if (root / name).is_file()]
    alone = there == [CLASS_LISTS["A"]] and not any((root / name).is_dir() for name in ("TrainSet", "TestSetA"))
    if not there or alone and not re.search(r"\S\s+[0-9]+\s*$", _first_line(root / there[0])):
        return None
    return 3, " and ".join(there)


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline(listing.MAX_LINE)


def elsewhere(root: Path) -> Path | None:
    """Return the contest's folder that is meant where --data names one above it, or its TrainSet."""
    for above in list(root.parents)[:2]:
        if (above / TRAIN_LIST).is_file() and recognise(above):
            listed = _first_line(above / TRAIN_LIST).replace("\\", "/")
            if listed.startswith(root.relative_to(above).as_posix() + "/"):
                return above
    one = [root / name for name in listing.folders_of(root)]
    two = [folder / name for folder in one[:LOOKED_AT] for name in listing.folders_of(folder)]
    return next((folder for folder in (*one, *two)[:LOOKED_AT] if recognise(folder)), None)


def read(root: Path, board: str = "A", labelled: bool = True) -> DataSet:
    class_names = read_classes(root, board)
    source = root / TRAIN_LIST
    rows = listing.read_pairs(source, num_classes=len(class_names)) if labelled or source.is_file() else []
    train, notes = one_label_each(listing.locate(listing.Files(root), source, rows) if labelled else rows, source)
    without = len(class_names) - len({label for _, label in train})
    if without and labelled:
        notes.append(f"{without} of {len(class_names)} classes have no training image; text alone knows them")
    train = by_class(train)
    tests = [board, *(other for other in CLASS_LISTS if other != board and (root / f"TestSet{other}").is_dir()),
             *(name for name in splits_in(root)[1] if name not in ("TestSetA", "TestSetB"))]
    return DataSet(root, "contest", class_names, _domains(class_names, train), train, tuple(tests), notes,
                   lambda name: folder_split(root, root, name, class_names, flat=name in CLASS_LISTS))


def read_classes(root: Path, board: str = "A") -> list[str]:
    """Return the raw class names of a board, by id. Raise UserError for what is wrong with its list."""
    path = root / CLASS_LISTS[board]
    if not path.is_file():
        raise UserError(f"no {path.name} in {root}: board {board} takes its classes from there; "
                        "put it there or choose another board or --data")
    by_id: dict[int, str] = {}
    line_of: dict[str, int] = {}
    for number, name, label in listing.read_pairs(path, "<class name> <id>"):
        name = listing.same_text(name)
        listing.require_plain_name(name)
        if name in line_of:
            raise UserError(f"{path}, line {number}: class {name} is on line {line_of[name]} too; remove one")
        if label in by_id:
            raise UserError(f"{path}, line {number}: id {label} of {name} belongs to {by_id[label]} "
                            f"(line {line_of[by_id[label]]}); each class needs its own")
        by_id[label], line_of[name] = name, number
    if not by_id:
        raise UserError(f"{path} holds no class; it needs lines like `Animal_Bear 0`")
    count, largest = len(by_id), max(by_id)
    if largest != count - 1:
        missing = next(label for label in range(count) if label not in by_id)
        raise UserError(f"{path}: {listing.count_of(count, 'class needs', 'classes need')} the ids 0..{count - 1}, but "
                        f"{missing} is missing and {largest} is there (line {line_of[by_id[largest]]})")
    return [by_id[label] for label in range(count)]


def _domains(class_names: Sequence[str], train: Sequence[listing.LabelledPath]) -> list[str]:
    """Animal_Bear is of Animal where every name has a known domain, or where its images lie in Animal/Bear/.

    Classes without an image go by their names, if the layout shows domains for all others, or for one of that name.
    """
    domains = domains_of(class_names)
    if any(domains):
        return domains
    first_image = {label: path for path, label in reversed(train)}
    by_layout = {label: _domain_in(path, class_names[label]) for label, path in first_image.items()}
    shown = set(by_layout.values())
    by_name = [domain_of(name) if shown and "" not in shown or domain_of(name) in shown else "" for name in class_names]
    return [by_layout.get(label) or by_name[label] for label in range(len(class_names))]


def _domain_in(path: str, class_name: str) -> str:
    """"Sea life" of "TrainSet/Sea life/Sea_lion/1.jpg" for the class "Sea life_Sea_lion"; "" for any other class."""
    folders = path.split("/")[:-1]
    return next((folders[-above] for above in range(2, len(folders) + 1)
                 if "_".join(folders[-above:]) == class_name), "")
