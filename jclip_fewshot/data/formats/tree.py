"""A plain tree: a folder a class, in a training folder or in the data folder itself.

    train/dog/1.jpg   test/dog/2.jpg   test/3.jpg      also Training/, TrainSet/, seg_train/seg_train/, val/, …
    dog/1.jpg  cat/1.jpg                               no test set: the images that are no shots are held out
    train/Animal/Bear/1.jpg                            the class Animal_Bear of the domain Animal
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import DataSet, by_class, named_by_files
from jclip_fewshot.data.formats import contest, folders
from jclip_fewshot.data.listing import count_of, folders_of, sorted_entries
from jclip_fewshot.errors import UserError


def recognise(root: Path) -> tuple[int, str] | None:
    """A training folder with folders of images in it; or any folders of images, which is worth less."""
    top = folders.unwrapped(root)
    trains = [name for name in folders.splits_in(top)[0] if _holds_classes(top / name)]
    if trains:
        return 2, f"a folder a class in {folders.below(top, root)}{trains[0]}"
    return (1, f"a folder a class in {top}") if _holds_classes(top) else None


def _holds_classes(folder: Path) -> bool:
    return any(folders.holds_images(folder / name) for name in folders_of(folder))


def read(root: Path, **_: Any) -> DataSet:
    """Return classes by their folders, numbered in natural order."""
    inner = contest.elsewhere(root)
    if inner:
        raise UserError(f"{root} holds no classes.txt, but {inner} has lists; did you mean --data {inner}?")
    top = folders.unwrapped(root)
    trains, tests = folders.splits_in(top)
    beside = [one for one in folders_of(top) if one not in trains + tests and folders.holds_images(top / one)]
    base = _training_folder(top, trains, beside)
    found, notes = folders.class_folders(root, base, [] if base != top else tests)
    if beside and base != top:
        notes.append(f"folders beside {base} that are not learned from: {listing.some(beside)}")
    classes: dict[str, tuple[str, ...]] = {}
    for parts, images in found.items():
        called = listing.same_text("_".join(parts))
        if called in classes:
            raise UserError(f"{base.joinpath(*parts)}: another folder makes the class {called} too; rename one")
        classes[called] = parts
        for path in images:
            listing.require_plain_name(path)
    if len(classes) < 2:
        _require_no_boxes(top)
        images, beside, others = sorted_entries(top)
        raise UserError(f"{root}: {base} holds {'one class folder alone' if classes else 'no class folder with images'}"
                        f" (folders: {listing.some(beside) or 'none'}; {count_of(len(images), 'image')} and "
                        f"{count_of(len(others), 'other file')} beside them), and no list or table says more; give the "
                        "folder with a folder a class with --data, or a table with --labels")
    names = sorted(classes, key=listing.natural_key)
    notes.insert(0, f"no classes.txt and no train.txt in {root}: {count_of(len(names), 'class', 'classes')} named and "
                    f"numbered by the folders of {base}")
    train = by_class((path, label) for label, name in enumerate(names) for path in found[classes[name]])
    data = named_by_files(root, "tree", names, train, tests, notes,
                          lambda split: folders.folder_split(root, top, split, names))
    return replace(data, domains=[classes[name][0] for name in names]) if len(classes[names[0]]) > 1 else data


def _training_folder(top: Path, trains: list[str], beside: list[str]) -> Path:
    """The folder that holds the class folders: the one training folder, or `top` where there is none."""
    sorted_ones = [name for name in trains if _holds_classes(top / name)]
    if len(sorted_ones) > 1:
        raise UserError(f"{top}: {' and '.join(sorted_ones)} both look like the training images; take one away, or "
                        "give its folder with --data")
    if sorted_ones:
        return folders.inside_split(top / sorted_ones[0])
    flat = [name for name in trains if sorted_entries(top / name)[0]]
    if flat and not beside:
        _require_no_boxes(top)
        raise UserError(f"{top / flat[0]} holds images, but no class folders, and no table with their classes was "
                        "found: give it with --labels FILE (a .csv with a column of paths and one of classes)")
    return top


def _require_no_boxes(top: Path) -> None:
    """Raise UserError for YOLO's detection layout, labels/ with a file of boxes an image."""
    places = (top, top.parent, *(top / name for name in folders_of(top)))
    if any(name.lower() == "labels" for folder in places for name in folders_of(folder)):
        raise UserError(f"{top} has a folder labels beside its images, as YOLO keeps boxes of objects in: this program "
                        "learns one class an image, from a folder a class (YOLO's classification layout)")
