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
Entry = tuple[int, str, int, str]  # number in the list, path, class id, class name


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
    lists = {part: _entries(file, part, content[part]) for part in ("train", *SPLITS) if content.get(part)}
    class_names = _class_names(file, [entry for entries in lists.values() for entry in entries])
    files, folders = listing.Files(root), listing.folders_of(root)
    paths = [path for _, path, _, _ in lists["train"][:LOOKED_AT]]
    base, hits = files.most_in((*FOLDERS, *folders), paths)
    if not hits:
        raise UserError(f"{file} lists {paths[0]}, which is in none of {root} and its folders "
                        f"({listing.some(folders)}); unpack the images beside it")

    def located(part: str) -> list[listing.LabelledPath]:
        found = listing.locate(files, file, [entry[:3] for entry in lists[part]], base)
        return one_label_each(found, Path(f"{file} ({part})"))[0]

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


def _entries(file: Path, part: str, entries: Any) -> list[Entry]:
    found = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [None], 1):
        if not (isinstance(entry, list) and [type(one) for one in entry] == [str, int, str]
                and 0 <= entry[1] < 10 ** listing.MAX_DIGITS and "\0" not in entry[0]):
            raise UserError(f"{file}: entry {number} of {part!r} is not [path, id, name]")
        found.append((number, entry[0], entry[1], listing.same_text(entry[2])))
    return found


def _class_names(file: Path, entries: list[Entry]) -> list[str]:
    names: dict[int, str] = {}
    for _, path, label, name in entries:
        if names.setdefault(label, name) != name:
            raise UserError(f"{file}: class {label} is called {name!r} ({path}) and {names[label]!r}; "
                            "keep the right one")
        if not name.strip() or not name.isprintable():
            raise UserError(f"{file}: {path} has the class name {name!r}, which cannot be printed")
    missing = next((label for label in range(len(names)) if label not in names), None)
    if missing is not None or len(set(names.values())) < len(names):
        raise UserError(f"{file}: {len(names)} classes need the ids 0..{len(names) - 1} and a name each"
                        + (f", but {missing} is missing" if missing is not None else ", but a name is there twice"))
    return [names[label] for label in range(len(names))]
