"""A plain tree: a folder a class, in a training folder or in the data folder itself.

    train/dog/1.jpg   test/dog/2.jpg   test/3.jpg      also Training/, TrainSet/, seg_train/seg_train/, val/, …
    dog/1.jpg  cat/1.jpg                               no test set: the images that are no shots are held out
    train/Animal/Bear/1.jpg                            the class Animal_Bear of the domain Animal
"""

from __future__ import annotations

from pathlib import Path

from jclip_fewshot.data.data_set import DataSet, by_class, domain_of, domains_of, name_notes
from jclip_fewshot.data.formats import contest
from jclip_fewshot.data.formats.folders import (
    below,
    class_folders,
    folder_split,
    holds_images,
    inside_split,
    splits_in,
    unwrapped,
)
from jclip_fewshot.data.formats.wanted import Sure, Wanted
from jclip_fewshot.data.listing import (
    IMAGE_SUFFIXES,
    count_of,
    folders_of,
    images_of,
    natural_key,
    require_plain_name,
    same_text,
)
from jclip_fewshot.errors import UserError


def recognise(root: Path) -> Sure | None:
    """A training folder with folders of images in it; or any folders of images, which is worth less."""
    top = unwrapped(root)
    trains = [name for name in splits_in(top)[0] if any(holds_images(top / name / one)
                                                        for one in folders_of(top / name))]
    if trains:
        return Sure(2, f"a folder a class in {below(top, root)}{trains[0]}")
    return Sure(1, f"a folder a class in {top}") if any(holds_images(top / one) for one in folders_of(top)) else None


def read(root: Path, wanted: Wanted) -> DataSet:
    """Classes by their folders, numbered in natural order.

    Raises:
        UserError: no class folder with images, or one alone; two folders that make one class; see `class_folders`.
    """
    inner = contest.elsewhere(root)
    if inner:
        raise UserError(f"{root} holds no classes.txt, but {inner} has lists; did you mean --data {inner}?")
    return read_tree(root, unwrapped(root), wanted, "tree")


def read_tree(root: Path, top: Path, wanted: Wanted, name: str) -> DataSet:
    """The tree in `top`, a folder of the data folder."""
    trains, tests = splits_in(top)
    base = _training_folder(top, trains)
    found, notes = class_folders(root, base, [] if base != top else tests)
    beside = [one for one in folders_of(top) if base != top and one not in trains + tests and holds_images(top / one)]
    if beside:
        notes.append(f"folders beside {base} that are not learned from: {', '.join(beside[:5])}"
                     + (", …" if len(beside) > 5 else ""))
    classes: dict[str, tuple[str, ...]] = {}
    for parts in found:
        called = same_text("_".join(parts))
        if called in classes:
            raise UserError(f"{base.joinpath(*parts)}: another folder makes the class {called} too; rename one")
        classes[called] = parts
    for path in (path for images in found.values() for path in images):
        require_plain_name(path)
    if len(classes) < 2:
        _require_no_boxes(top)
        raise UserError(f"{root}: {base} holds {'one class folder alone' if classes else 'no class folder with images'}"
                        f" ({_what_is_there(top)}), and no list or table says more; give the folder with a folder a "
                        "class with --data, or a table with --labels")
    class_names = sorted(classes, key=natural_key)
    train = [(path, label) for label, called in enumerate(class_names) for path in found[classes[called]]]
    if wanted.domains:
        domains = [domain_of(called) for called in class_names]
    else:
        domains = [classes[called][0] for called in class_names] if len(next(iter(found))) > 1 else \
            domains_of(class_names)
    said = f"no classes.txt and no train.txt in {root}: " \
           f"{count_of(len(class_names), 'class', 'classes')} named and numbered by the folders of {base}"
    return DataSet(root, class_names, domains, by_class(train), tuple(tests), name,
                   [said, *notes, *name_notes(class_names)],
                   lambda split: folder_split(root, top, split, class_names))


def _training_folder(top: Path, trains: list[str]) -> Path:
    """The folder that holds the class folders: the training folder, or `top` where there is none.

    Raises:
        UserError: two training folders; one whose images lie in no class folder.
    """
    sorted_ones = [name for name in trains if any(holds_images(top / name / one) for one in folders_of(top / name))]
    if len(sorted_ones) > 1:
        raise UserError(f"{top}: {' and '.join(sorted_ones)} both look like the training images; take one away, or "
                        "give its folder with --data")
    if sorted_ones:
        return inside_split(top / sorted_ones[0])
    flat = [name for name in trains if images_of(top / name)[0]]
    tests = splits_in(top)[1]
    if flat and not any(holds_images(top / name) for name in folders_of(top) if name not in trains + tests):
        _require_no_boxes(top)
        raise UserError(f"{top / flat[0]} holds images, but no class folders, and no table with their classes was "
                        "found: give it with --labels FILE (a .csv with a column of paths and one of classes)")
    return top


def _require_no_boxes(top: Path) -> None:
    """Raises UserError for YOLO's detection layout, labels/ with a file of boxes an image."""
    if any("labels" in (name.lower() for name in folders_of(folder)) for folder in
           (top, top.parent, *(top / name for name in folders_of(top)))):
        raise UserError(f"{top} has a folder labels beside its images, as YOLO keeps boxes of objects in: this program "
                        "learns one class an image, from a folder a class (YOLO's classification layout)")


def _what_is_there(folder: Path) -> str:
    folders = folders_of(folder)
    images, others = images_of(folder)
    said = ", ".join(folders[:5]) + (", …" if len(folders) > 5 else "")
    return f"folders: {said or 'none'}; {count_of(len(images), 'image')} ({IMAGE_SUFFIXES[0]}, …) and " \
           f"{count_of(len(others), 'other file')} beside them"
