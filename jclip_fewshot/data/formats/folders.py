"""What folders mean that hold images: training and test sets by their names, classes by what lies in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from jclip_fewshot.data.data_set import HELD_OUT, TestSet, known_answers
from jclip_fewshot.data.listing import (
    IMAGE_SUFFIXES,
    OTHER_IMAGES,
    count_of,
    folders_of,
    images_of,
    kinds_of,
    natural_key,
    read_labelled,
    same_text,
    walk,
)
from jclip_fewshot.data.prompts import known_domains
from jclip_fewshot.errors import UserError, shown

# by the letters of a name alone, capitals aside: TrainSet, Training, seg_train, test_images, TestSetA, valid
ROLES = {"train": "train|training", "test": "test|testing|evaluation", "val": "val|valid|validation|dev",
         "pred": "pred|predict|prediction"}
_ROLE = re.compile("(?:seg|img|imgs|image|images)?(?:" + "|".join(f"(?P<{role}>{words})" for role, words in
                   ROLES.items()) + ")(?:set|sets|data|dataset|image|images|imgs|labels|split)?[ab]?")
PLAIN = ("images", "image", "imgs", "data", "dataset")  # names of folders that name no class
WRAPPERS = 4  # folders around a data set that hold nothing else: an archive unpacked twice


def role_of(name: str) -> str:
    """"train", "test", "val" or "pred" (images to answer) by the name of a folder, file or column value; else ""."""
    match = _ROLE.fullmatch(re.sub("[^a-z]", "", name.lower()))
    return match.lastgroup or "" if match else ""


def holds_images(folder: Path) -> bool:
    """Whether there is any image in a folder or below."""
    return any(images for _, images, _ in walk(folder))


def unwrapped(folder: Path) -> Path:
    """The data set inside folders that hold one folder of images each: archive/dataset/dataset/."""
    for _ in range(WRAPPERS):
        images, _ = images_of(folder)
        inner = folders_of(folder)
        if images or any(role_of(name) for name in inner):
            break
        inner = [name for name in inner if holds_images(folder / name)] if 1 < len(inner) < 20 else inner
        if len(inner) != 1 or inner[0] in known_domains() or images_of(folder / inner[0])[0]:
            break
        folder = folder / inner[0]
    return folder


def inside_split(folder: Path) -> Path:
    """The images' folder in a training or test folder: seg_train/seg_train/, test/images/."""
    while not images_of(folder)[0]:
        inner = folders_of(folder)
        if len(inner) != 1 or not (role_of(inner[0]) or inner[0].casefold() in (*PLAIN, folder.name.casefold())):
            break
        folder = folder / inner[0]
    return folder


def below(folder: Path, root: Path) -> str:
    """A folder's path below the data folder with a "/" behind; "" for the data folder itself."""
    path = folder.relative_to(root).as_posix()
    return "" if path == "." else path + "/"


def splits_in(top: Path) -> tuple[list[str], list[str]]:
    """(training folders, test folders) in a folder, the test set that is meant first."""
    roles = {name: role_of(name) for name in folders_of(top)}
    order = list(ROLES)
    tests = sorted((name for name, role in roles.items() if role not in ("", "train")),
                   key=lambda name: (order.index(roles[name]), natural_key(name)))
    return [name for name, role in roles.items() if role == "train"], tests


def class_folders(root: Path, top: Path, skip: Collection[str] = ()
                  ) -> tuple[dict[tuple[str, ...], list[str]], list[str]]:
    """({class: its images}, notes) of a tree with a folder a class, or a folder a domain with its classes in it.

    A class is its folder's path below `top`, an image its path below `root`; images in folders inside a class's folder
    are of that class. skip: folders of `top` that are no classes.
    Raises:
        UserError: folders that leave open what is a class: some one deep and some two, or deeper.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    loose, ignored, empty, inner = 0, [], [], 0
    for folder, images, others in walk(top):
        parts = folder.relative_to(top).parts
        if parts and parts[0] in skip:
            continue
        owner = next((parts[:depth] for depth in range(1, len(parts)) if parts[:depth] in found), parts)
        ignored += others if parts else []
        if not parts:
            loose = len(images)
        elif images:
            prefix = below(folder, root)
            found.setdefault(owner, []).extend(prefix + image for image in images)
            inner += len(images) if owner != parts else 0
        elif not others and not folders_of(folder):
            empty.append("/".join(parts))
    if len(found) > 1 and all(len(parts) > 1 for parts in found) and len({parts[1:] for parts in found}) == 1:
        found = {parts[:1]: images for parts, images in found.items()}  # dog/images/, cat/images/
    depths = {len(parts): "/".join(parts) for parts in reversed(list(found))}
    if len(depths) > 1 or max(depths, default=1) > 2:
        said = " and ".join(f"{shown(depths[depth])} ({count_of(depth, 'folder')} deep)" for depth in sorted(depths))
        raise UserError(f"{top}: which folders are the classes? Images lie in {said}; put every class's images into "
                        "one folder, all at the same depth: one, or two for DOMAIN/CLASS")
    leaves = {parts[-1] for parts in found}
    if max(depths, default=1) == 2 and len(found) > 2 and 2 * len(leaves) <= len(found):
        raise UserError(f"{top}: the folders {', '.join(sorted(leaves, key=natural_key)[:3])} lie in several others, "
                        "so which are the classes? Put every class's images into one folder")
    notes = []
    if inner:
        notes.append(f"{count_of(inner, 'image')} in folders inside class folders of {top} count as that class's")
    if loose:
        notes.append(f"{count_of(loose, 'image')} beside the class folders of {top} ignored: of no class")
    if ignored:
        notes.append(f"{count_of(len(ignored), 'file')} in {top} ignored, which are no images: {kinds_of(ignored)}")
    if empty:
        notes.append(f"empty folders make no class: {', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}")
    return found, notes


def read_folder(root: Path, folder: Path, class_names: Sequence[str], flat: bool = False) -> TestSet:
    """The images of a test folder, with their classes where they lie in class folders or labels_<folder>.txt has them.

    flat: the contest's, whose images lie in the folder itself and are called by their file's name.
    Raises:
        UserError: no image; images that nothing here can read, or that `flat` does not see.
    """
    top = folder if flat else inside_split(folder)
    named: dict[str, str] = {}
    other: list[str] = []
    ids = {name.casefold(): name for name in class_names}
    for parent, images, others in walk(top):
        parts = parent.relative_to(top).parts
        if flat and parts and images:
            raise UserError(f"{parent}: {count_of(len(images), 'image')} in a folder inside {folder.name}, and "
                            f"result.txt has no line for them; move them up into {folder.name} or out of it")
        names = [same_text("_".join(parts[:depth])) for depth in range(len(parts), 0, -1)]
        owner = next((name for name in names if name.casefold() in ids), names[0] if names else "")
        named.update({"/".join((*parts, image)): owner for image in images})
        other += [] if flat and parts else others
    unread = [name for name in other if name.lower().endswith(OTHER_IMAGES) and not name.startswith(".")]
    if unread:
        raise UserError(f"{folder}: {count_of(len(unread), 'image')} of a kind that cannot be read "
                        f"({kinds_of(unread)}: {shown(unread[0])}, …); save as PNG or JPEG, or take them away")
    if not named:
        raise UserError(f"no image in {folder} ({', '.join(IMAGE_SUFFIXES)}), but {count_of(len(other), 'other file')}")
    names = sorted(named, key=natural_key)
    labels, notes = _listed_answers(root, folder.name, names, class_names)
    if labels is None and not flat:
        labels, notes = known_answers(named, class_names, f"the test set {folder.name}")
    if other:
        notes.append(f"{folder}: {count_of(len(other), 'file')} left out, no images: {kinds_of(other)}")
    prefix = below(top, root)
    return TestSet(top, names, [prefix + name for name in names], labels, notes, len(other))


def _listed_answers(root: Path, folder: str, names: Sequence[str],
                    class_names: Sequence[str]) -> tuple[dict[str, int] | None, list[str]]:
    """The answers in labels_<folder>.txt, by the names that the images have on the disk; None without that file."""
    path = root / f"labels_{folder}.txt"
    if not path.is_file():
        return None, []
    there = {same_text(name): name for name in names}
    labels: dict[str, int] = {}
    for number, name, label in read_labelled(path, len(class_names)):
        plain = same_text(name.replace("\\", "/"))
        name = name if name in labels else there.get(plain, plain)
        if name in labels:
            raise UserError(f"{path}, line {number}: {name} stands there twice; remove one")
        labels[name] = label
    return labels, []


def folder_split(root: Path, top: Path, name: str, class_names: Sequence[str]) -> TestSet:
    """The test set in a folder of `top`, or of the data folder.

    Raises:
        UserError: no such folder; see `read_folder`.
    """
    if name != Path(name).name or name in ("", ".", ".."):
        raise UserError(f"--split {name}: {HELD_OUT}, or the plain name of a folder in {root}")
    folder = next((place / name for place in (top, root) if (place / name).is_dir()), None)
    if folder is None:
        others = [one for one in splits_in(top)[1]]
        raise UserError(f"no folder {top / name}: the test images of split {name} belong there; " + (
            f"there are {', '.join(islice(others, 5))}" if others else "give another --split or --data"))
    return read_folder(root, folder, class_names)
