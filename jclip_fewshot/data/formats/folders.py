"""What folders mean that hold images: training and test sets by their names, classes by what lies in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from jclip_fewshot.data import listing
from jclip_fewshot.data.data_set import HELD_OUT, TestSet, known_answers
from jclip_fewshot.data.listing import count_of, folders_of, images_of, kinds_of, natural_key, same_text, walk
from jclip_fewshot.data.prompts import known_domains
from jclip_fewshot.errors import UserError, shown

# by the letters of a name alone, capitals aside: TrainSet, Training, seg_train, test_images, TestSetA, valid
ROLES = {"train": "train|training", "test": "test|testing|evaluation", "val": "val|valid|validation|dev",
         "pred": "pred|predict|prediction"}
_ROLE = re.compile("(?:seg|img|imgs|image|images)?(?:" + "|".join(f"(?P<{role}>{words})" for role, words in
                   ROLES.items()) + ")(?:set|sets|data|dataset|image|images|imgs|labels|split)?[ab]?")
PLAIN = ("images", "image", "imgs", "data", "dataset")  # names of folders that name no class
WRAPPERS = 4  # folders around a data set that hold nothing else: an archive unpacked twice
Classes = dict[tuple[str, ...], list[str]]  # a class's folder below the training folder: its images


def role_of(name: str) -> str:
    """"train", "test", "val" or "pred" (images to answer) by the name of a folder, file or column value; else ""."""
    match = _ROLE.fullmatch(re.sub("[^a-z]", "", name.lower()))
    return match.lastgroup or "" if match else ""


def holds_images(folder: Path) -> bool:
    """Whether there is any image in a folder or below."""
    return any(images for _, images, _ in walk(folder))


def unwrapped(folder: Path) -> Path:
    """Return the data set inside folders that hold one folder of images each: archive/dataset/dataset/."""
    for _ in range(WRAPPERS):
        inner = folders_of(folder)
        if images_of(folder)[0] or any(role_of(name) for name in inner):
            break
        inner = [name for name in inner if holds_images(folder / name)] if 1 < len(inner) < 20 else inner
        if len(inner) != 1 or inner[0] in known_domains() or images_of(folder / inner[0])[0]:
            break
        folder = folder / inner[0]
    return folder


def inside_split(folder: Path) -> Path:
    """Return the images' folder in a training or test folder: seg_train/seg_train/, test/images/."""
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


def class_folders(root: Path, top: Path, skip: Collection[str] = ()) -> tuple[Classes, list[str]]:
    """Return ({class: its images}, notes) of a tree with a folder a class, or a folder a domain with its classes in it.

    A class is its folder's path below `top`, an image its path below `root`; what lies deeper in a class's folder is of
    that class. skip: folders of `top` that are no classes. Raise UserError if folders leave open what is a class.
    """
    found: Classes = {}
    loose, ignored, empty, inner = 0, [], [], 0
    for folder, images, others in walk(top):
        parts = folder.relative_to(top).parts
        if not parts:
            loose = len(images)
        elif parts[0] not in skip:
            ignored += others
            if images:
                owner = next((parts[:depth] for depth in range(1, len(parts)) if parts[:depth] in found), parts)
                found.setdefault(owner, []).extend(below(folder, root) + image for image in images)
                inner += len(images) if owner != parts else 0
            elif not others and not folders_of(folder):
                empty.append("/".join(parts))
    if len(found) > 1 and all(len(parts) > 1 for parts in found) and len({parts[1:] for parts in found}) == 1:
        found = {parts[:1]: images for parts, images in found.items()}  # dog/images/, cat/images/
    _require_one_depth(top, found)
    notes = {f"{count_of(inner, 'image')} in folders inside class folders of {top} count as that class's": inner,
             f"{count_of(loose, 'image')} beside the class folders of {top} ignored: of no class": loose,
             f"{count_of(len(ignored), 'file')} in {top} ignored, which are no images: {kinds_of(ignored)}": ignored,
             f"empty folders make no class: {listing.some(empty)}": empty}
    return found, [note for note, there in notes.items() if there]


def _require_one_depth(top: Path, found: Classes) -> None:
    """Raise UserError where class folders lie at several depths or below two, or their own names repeat."""
    depths = {len(parts): "/".join(parts) for parts in reversed(list(found))}
    if len(depths) > 1 or max(depths, default=1) > 2:
        said = " and ".join(f"{shown(depths[depth])} ({count_of(depth, 'folder')} deep)" for depth in sorted(depths))
        raise UserError(f"{top}: which folders are the classes? Images lie in {said}; put every class's images into "
                        "one folder, all at the same depth: one, or two for DOMAIN/CLASS")
    leaves = {parts[-1] for parts in found}
    if max(depths, default=1) == 2 and len(found) > 2 and 2 * len(leaves) <= len(found):
        raise UserError(f"{top}: the folders {', '.join(sorted(leaves, key=natural_key)[:3])} lie in several others, "
                        "so which are the classes? Put every class's images into one folder")


def _read_folder(root: Path, folder: Path, class_names: Sequence[str], flat: bool) -> TestSet:
    """The images of a test folder, with their classes by class folders or labels_<folder>.txt where these exist."""
    top = folder if flat else inside_split(folder)
    named: dict[str, str] = {}
    other: list[str] = []
    known = {name.casefold() for name in class_names}
    for parent, images, others in walk(top):
        parts = parent.relative_to(top).parts
        if flat and parts and images:
            raise UserError(f"{parent}: {count_of(len(images), 'image')} in a folder inside {folder.name}, and "
                            f"result.txt has no line for them; move them up into {folder.name} or out of it")
        names = [same_text("_".join(parts[:depth])) for depth in range(len(parts), 0, -1)]
        owner = next((name for name in names if name.casefold() in known), names[0] if names else "")
        named.update({"/".join((*parts, image)): owner for image in images})
        other += [] if flat and parts else others
    unread = [name for name in other if name.lower().endswith(listing.OTHER_IMAGES) and not name.startswith(".")]
    if unread:
        raise UserError(f"{folder}: {count_of(len(unread), 'image')} of a kind that cannot be read "
                        f"({kinds_of(unread)}: {shown(unread[0])}, …); save as PNG or JPEG, or take them away")
    if not named:
        raise UserError(f"no image in {folder} ({', '.join(listing.IMAGE_SUFFIXES)}), but "
                        f"{count_of(len(other), 'other file')}")
    names, answers = sorted(named, key=natural_key), root / f"labels_{folder.name}.txt"
    labels: dict[str, int] | None = None
    notes: list[str] = []
    if answers.is_file():
        labels = _listed_answers(answers, names, len(class_names))
    elif not flat:
        labels, notes = known_answers(named, class_names, f"the test set {folder.name}")
    if other:
        notes.append(f"{folder}: {count_of(len(other), 'file')} left out, no images: {kinds_of(other)}")
    return TestSet(top, names, [below(top, root) + name for name in names], labels, notes)


def _listed_answers(path: Path, names: Sequence[str], num_classes: int) -> dict[str, int]:
    """The answers in a list, by the names that the images have on the disk."""
    there = {same_text(name): name for name in names}
    labels: dict[str, int] = {}
    for number, name, label in listing.read_pairs(path, num_classes=num_classes):
        plain = same_text(name.replace("\\", "/"))
        name = there.get(plain, plain)
        if name in labels:
            raise UserError(f"{path}, line {number}: {name} stands there twice; remove one")
        labels[name] = label
    return labels


def folder_split(root: Path, top: Path, name: str, class_names: Sequence[str], flat: bool = False) -> TestSet:
    """Return the test set in a folder of `top`, or of the data folder.

    flat: the contest's, in TestSet<name>, whose images lie in the folder itself and are called by their file's name.
    Raise UserError if there is no such folder, no image, or one that nothing here can read, or that `flat` leaves out.
    """
    if name != Path(name).name or name in ("", ".", ".."):
        raise UserError(f"--split {name}: {HELD_OUT}, or the plain name of a folder in {root}")
    called = f"TestSet{name}" if flat else name
    folder = next((place / called for place in (top, root) if (place / called).is_dir()), None)
    if folder is None:
        others = splits_in(top)[1]
        raise UserError(f"--split {name}: no folder {top / called}: the test images of split {name} belong there; "
                        + (f"there are {listing.some(others)}" if others else "give another --split or --data"))
    return _read_folder(root, folder, class_names, flat)
