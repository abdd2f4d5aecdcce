"""CoOp's splits: split_zhou_<name>.json beside the images' folder, as the field's eleven data sets have them.

    {"train": [["barrel/image_0001.jpg", 0, "barrel"], …], "val": […], "test": […]}

Zhou et al. 2022, "Learning to prompt for vision-language models"; paths begin in the data set's usual folder.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.formats import table
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.json_files import read_json

NAME = "split_zhou_"
# where the paths of the eleven data sets begin, beside the split file
FOLDERS = ("", "101_ObjectCategories", "images", "jpg", "SUN397", "2750", "UCF-101-midframes")
LOOKED_AT = 50
Entry = tuple[str, Annotated[int, msgspec.Meta(ge=0, lt=10**9)], str]  # path, class id, class name


class Splits(msgspec.Struct):
    train: Annotated[list[Entry], msgspec.Meta(min_length=1)]
    val: list[Entry] = []
    test: list[Entry] = []


def recognise(root: Path) -> tuple[int, str, Path] | None:
    names = [name for name in listing.entries_of(root)[0] if name.startswith(NAME) and name.endswith(".json")]
    if len(names) > 1:
        raise UserError(f"{root} holds {' and '.join(sorted(names))}; leave the one that is meant")
    return (3, names[0], root / names[0]) if names else None


def read(root: Path, file: Path, **_: Any) -> DataSet:
    """Return classes by the file's ids and names; test, then val."""
    content = read_json(file, Splits, 'it must be {"train": [[path, id, name], …], "val": […], "test": […]}')
    class_names = _class_names(file, content)
    folders, paths = listing.folders_of(root), [path for path, _, _ in content.train[:LOOKED_AT]]
    base, hits = listing.Files(root).most_in((*FOLDERS, *folders), paths)
    if not hits:
        raise UserError(f"{file} lists {paths[0]}, which is in none of {root} and its folders "
                        f"({listing.some(folders)}); unpack the images beside it")

    parts = {part: [(number, path, listing.same_text(name)) for number, (path, _, name) in enumerate(entries, 1)]
             for part in ("train", "test", "val") if (entries := getattr(content, part))}
    return table.read_rows(root, root, table.Labelled(file, "path", "name", base, parts), {}, "coop", class_names)


def _class_names(file: Path, content: Splits) -> list[str]:
    names: dict[int, str] = {}
    for path, label, name in (*content.train, *content.val, *content.test):
        name = listing.same_text(name)
        if names.setdefault(label, name) != name:
            raise UserError(f"{file}: class {label} is called {name!r} ({path}) and {names[label]!r}; keep the right "
                            "one")
        if not name.strip() or not name.isprintable():
            raise UserError(f"{file}: {path} has the class name {name!r}, which cannot be printed")
    missing = [f"{label} is missing" for label in range(len(names)) if label not in names]
    if missing or len(set(names.values())) < len(names):
        raise UserError(f"{file}: {len(names)} classes need the ids 0..{len(names) - 1} and a name each, but "
                        f"{missing[0] if missing else 'a name is there twice'}")
    return [names[label] for label in range(len(names))]
