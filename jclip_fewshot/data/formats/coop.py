"""CoOp's splits: split_zhou_<name>.json beside the images' folder, as the field's eleven data sets have them.

    {"train": [["barrel/image_0001.jpg", 0, "barrel"], …], "val": […], "test": […]}

Zhou et al. 2022, "Learning to prompt for vision-language models"; paths begin in the data set's usual folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import HELD_OUT, DataSet, TestSet, named_by_files, one_label_each
from jclip_fewshot.errors import UserError

NAME = "split_zhou_"
# where the paths of the eleven data sets begin, beside the split file
FOLDERS = ("", "101_ObjectCategories", "images", "jpg", "SUN397", "2750", "UCF-101-midframes")
LOOKED_AT = 50
SPLITS = ("test", "val")
Lists = dict[str, list[tuple[int, str, int]]]  # of a part: number in the list, path, class id


def recognise(root: Path) -> tuple[int, str] | None:
    """The split file."""
    file = _split_file(root)
    return (3, file.name) if file else None


def read(root: Path, **_: Any) -> DataSet:
    """Return classes by the file's ids and names; test, then val."""
    file = _split_file(root)
    if file is None:
        raise UserError(f"{root} holds no {NAME}….json")
    content = listing.read_json(listing.read_text(file), str(file))
    if not isinstance(content, dict) or not content.get("train"):
        raise UserError(f'{file}: it must be {{"train": [[path, id, name], …], "val": […], "test": […]}}')
    lists, class_names = _read_lists(file, content)
    files, folders = listing.Files(root), listing.folders_of(root)
    paths = [path for _, path, _ in lists["train"][:LOOKED_AT]]
    base, hits = files.most_in((*FOLDERS, *folders), paths)
    if not hits:
        raise UserError(f"{file} lists {paths[0]}, which is in none of {root} and its folders "
                        f"({listing.some(folders)}); unpack the images beside it")

    def located(part: str) -> list[listing.LabelledPath]:
        return one_label_each(listing.locate(files, file, lists[part], base), Path(f"{file} ({part})"))[0]

    splits = [part for part in SPLITS if part in lists]

    def split(part: str) -> TestSet:
        if part not in splits:
            raise UserError(f"--split {part}: {file} has {', '.join(splits) or 'none'}; or {HELD_OUT}")
        labels = dict(located(part))
        names = sorted(labels, key=listing.natural_key)
        return TestSet(root, names, names, labels)

    train = located("train")  # in the file's order, in which CoOp's random seeds draw shots
    return named_by_files(root, "coop", class_names, train, splits, [f"classes and splits by {file}"], split)


def _split_file(root: Path) -> Path | None:
    names = [name for name in listing.entries_of(root)[0] if name.startswith(NAME) and name.endswith(".json")]
    if len(names) > 1:
        raise UserError(f"{root} holds {' and '.join(sorted(names))}; leave the one that is meant")
    return root / names[0] if names else None


def _read_lists(file: Path, content: dict[str, Any]) -> tuple[Lists, list[str]]:
    """The images of each part, and the names of the classes by id."""
    lists: Lists = {}
    names: dict[int, str] = {}
    for part in (part for part in ("train", *SPLITS) if content.get(part)):
        for number, entry in enumerate(content[part] if isinstance(content[part], list) else [None], 1):
            if not (isinstance(entry, list) and [type(one) for one in entry] == [str, int, str]
                    and listing.CLASS_ID.fullmatch(str(entry[1])) and "\0" not in entry[0]):
                raise UserError(f"{file}: entry {number} of {part!r} is not [path, id, name]")
            path, label, name = entry[0], entry[1], listing.same_text(entry[2])
            if names.setdefault(label, name) != name:
                raise UserError(f"{file}: class {label} is called {name!r} ({path}) and {names[label]!r}; "
                                "keep the right one")
            if not name.strip() or not name.isprintable():
                raise UserError(f"{file}: {path} has the class name {name!r}, which cannot be printed")
            lists.setdefault(part, []).append((number, path, label))
    missing = next((label for label in range(len(names)) if label not in names), None)
    if missing is not None or len(set(names.values())) < len(names):
        raise UserError(f"{file}: {len(names)} classes need the ids 0..{len(names) - 1} and a name each"
                        + (f", but {missing} is missing" if missing is not None else ", but a name is there twice"))
    return lists, [names[label] for label in range(len(names))]
