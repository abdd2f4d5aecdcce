"""The contest's files, read: classes, training list, test images, known answers.

A data set is a folder in the contest's layout

    classes.txt  classes_b.txt      `Animal_Bear 0`: <Domain>_<name> and the class's id, boards A and B
    train.txt                       `TrainSet/Animal/Bear/1.jpg 0`: path below the data folder, class id
    TrainSet/  TestSetA/  TestSetB/ photographs, .jpg or .jpeg in any case
    labels_TestSetA.txt             `image_1.jpg 14`: the known answers, where somebody has them

or, with no lists at all, a plain tree with a folder a class (TrainSet/, train/ or the folder itself;
`Animal/Bear/1.jpg` makes the class Animal_Bear of the domain Animal, `bear/1.jpg` a class without a domain) and
test images in test/, val/ or any other folder; there, PNG, WebP and BMP files are images too.

Mistakes in the files are the user's: each raises UserError and says where it is.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from jclip_fewshot.data.listing import (
    CONTEST_SUFFIXES,
    TREE_SUFFIXES,
    LabelledPath,
    PathLike,
    count_of,
    entries_of,
    images_of,
    kinds_of,
    natural_key,
    read_labelled,
    read_pairs,
    require_plain_name,
    require_present,
    walk,
)
from jclip_fewshot.data.prompts import known_domains
from jclip_fewshot.errors import UserError

CLASS_LISTS = {"A": "classes.txt", "B": "classes_b.txt"}
TRAIN_LIST = "train.txt"
TRAIN_FOLDERS = ("TrainSet", "train")
TEST_FOLDERS = ("test", "val", "valid", "TestSetA", "TestSetB")  # never class folders of a plain tree


@dataclass(frozen=True)
class Contest:
    """A data set's classes and training images, sorted by class and natural order of the path.

    Attributes:
        root: the data folder.
        class_names: raw names ("Animal_Bear"), by id.
        domains: each class's domain ("Animal"; "" where it has none), by id.
        train: (path below root, class id) of every training image. Classes without any are normal.
        notes: what a person should hear about, a sentence each.
        plain: a plain tree, without the contest's lists and rules.
    """

    root: Path
    class_names: list[str]
    domains: list[str]
    train: list[LabelledPath]
    notes: list[str] = field(default_factory=list)
    plain: bool = False


@dataclass(frozen=True)
class TestSet:
    """Test images in natural order: image_2.jpg before image_10.jpg.

    Attributes:
        folder: where they lie.
        names: what result.txt calls them.
        files: their paths below the data folder, in the order of names.
        ignored: how many files there are no images.
    """

    __test__ = False  # pytest: no test class

    folder: Path
    names: list[str]
    files: list[str]
    ignored: int

    @property
    def paths(self) -> list[Path]:
        """Where each one is."""
        return [self.folder / name for name in self.names]


def domain_of(class_name: str) -> str:
    """The part before the first underscore, "" where there is none: Animal_Polar_bear is of Animal."""
    domain, underscore, _ = class_name.partition("_")
    return domain if underscore else ""


def domains_of(class_names: Sequence[str]) -> list[str]:
    """The domain of each class where nothing but the names is known (a feature suite, a list of names).

    The part before the first underscore, where for *every* class that is a domain which prompts/ has templates for:
    Animal_Bear and Thu-dog_pug. Otherwise none has a domain: polar_bear is no bear of the domain polar.
    """
    domains = [domain_of(name) for name in class_names]
    return domains if set(domains) <= known_domains() else [""] * len(domains)


def _listed_domains(class_names: Sequence[str], train: Sequence[LabelledPath]) -> list[str]:
    """The domains in the contest's layout: Animal_Bear is of Animal where its images lie in Animal/Bear/.

    Classes without an image go by their names, if the layout shows domains for all others, or for one of that name.
    """
    domains = domains_of(class_names)
    if any(domains):
        return domains
    first_image = dict((label, path) for path, label in reversed(train))
    by_layout = {label: _domain_in(path, class_names[label]) for label, path in first_image.items()}
    shown = set(by_layout.values())
    by_name = [domain_of(name) if shown and "" not in shown or domain_of(name) in shown else "" for name in class_names]
    return [by_layout.get(label) or by_name[label] for label in range(len(class_names))]


def _domain_in(path: str, class_name: str) -> str:
    """"Sea life" of "TrainSet/Sea life/Sea_lion/1.jpg" for the class "Sea life_Sea_lion"; "" for any other class."""
    folders = path.split("/")[:-1]
    for above in range(2, len(folders) + 1):
        if "_".join(folders[-above:]) == class_name:
            return folders[-above]
    return ""


def read_contest(root: PathLike, board: str = "A", domains: bool = False,
                 labelled: bool = True) -> Contest:
    """Reads a data set's classes and training images; opens no image.

    Args:
        root: data folder in the contest's layout, or a plain tree with a folder a class.
        board: "A" (classes.txt) or "B" (classes_b.txt); a plain tree has one list of classes for both.
        domains: the part of each class's name before the first underscore is its domain, whatever the layout.
        labelled: False where no training image is asked for: a data set with lists then needs none, nor train.txt.

    Raises:
        UserError: no such folder or list; a list line that does not parse; ids that are not 0..K-1; a class
            twice; an image twice with different classes; an image that is listed but absent; no image at all.
    """
    root = _data_folder(root)
    if not has_lists(root):
        return _read_tree(root, domains)
    class_names = read_classes(root, board)
    asked = labelled or (root / TRAIN_LIST).is_file()
    listed = read_labelled(root / TRAIN_LIST, len(class_names)) if asked else []
    train, lines, notes = [], {}, []
    for number, path, label in listed:
        if path not in lines:
            lines[path] = number, label
            train.append((path, label))
        elif lines[path][1] != label:
            raise UserError(f"{root / TRAIN_LIST}, line {number}: {path} has class {label} here "
                            f"and {lines[path][1]} on line {lines[path][0]}; keep the right one")
    if len(train) < len(listed):
        notes.append(f"{TRAIN_LIST} lists {count_of(len(listed) - len(train), 'image')} more than once")
    if labelled:
        require_present(root, root / TRAIN_LIST, [(lines[path][0], path) for path, _ in train])
    without = len(class_names) - len({label for _, label in train})
    if without and labelled:
        notes.append(f"{without} of {len(class_names)} classes have no training image; text alone knows them")
    train = by_class(train)
    named = [domain_of(name) for name in class_names] if domains else _listed_domains(class_names, train)
    return Contest(root, class_names, named, train, notes)


def read_classes(root: PathLike, board: str = "A") -> list[str]:
    """The raw class names by id: from the board's class list, or the folders of a plain tree.

    Raises:
        UserError: no such folder or list; a line that does not parse; ids not 0..K-1; a class twice.
    """
    root = _data_folder(root)
    if not has_lists(root):
        return _read_tree(root).class_names
    path = root / CLASS_LISTS[board]
    if not path.is_file():
        raise UserError(f"no {path.name} in {root}: board {board} takes its classes from there; "
                        "put it there or choose another board or --data")
    by_id, line_of = {}, {}
    for number, name, label in read_pairs(path, "<class name> <id>"):
        if name in line_of:
            raise UserError(f"{path}, line {number}: class {name} is on line {line_of[name]} too; remove one")
        if label in by_id:
            raise UserError(f"{path}, line {number}: id {label} of {name} belongs to {by_id[label]} "
                            f"(line {line_of[by_id[label]]}); each class needs its own")
        by_id[label], line_of[name] = name, number
    if not by_id:
        raise UserError(f"{path} holds no class; it needs lines like `Animal_Bear 0`")
    if max(by_id) != len(by_id) - 1:
        missing = next(label for label in range(len(by_id)) if label not in by_id)
        largest = max(by_id)
        raise UserError(f"{path}: {count_of(len(by_id), 'class needs', 'classes need')} the ids "
                        f"0..{len(by_id) - 1}, but {missing} is missing and {largest} is there "
                        f"(line {line_of[by_id[largest]]})")
    return [by_id[label] for label in range(len(by_id))]


def default_split(root: PathLike, board: str = "A") -> str:
    """The test set that is meant where none is named: the board's, or the first test folder of a plain tree."""
    root = _data_folder(root)
    if has_lists(root) or (root / _split_folder(board)).is_dir():
        return board
    return next((name for name in TEST_FOLDERS if (root / name).is_dir()), TEST_FOLDERS[0])


def test_images(root: PathLike, split: str = "A") -> TestSet:
    """The test images of split "A" (TestSetA/) or "B" (TestSetB/).

    Any other split is the name of a folder in the data folder, read with all its subfolders; an image's name
    is then its path below that folder.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = _data_folder(root)
    suffixes = CONTEST_SUFFIXES if has_lists(root) else TREE_SUFFIXES
    if split != PurePosixPath(split).name or split in ("", ".", ".."):
        raise UserError(f"--split {split}: A, B, or the plain name of a folder in {root}")
    folder = root / _split_folder(split)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: the test images of split {split} belong there; "
                        "give another --split or --data")
    if split in CLASS_LISTS:
        names, ignored = images_of(folder, suffixes)
    else:
        names, ignored = [], 0
        for parent, images, others in walk(folder, suffixes):
            below = parent.relative_to(folder).as_posix()
            names += images if below == "." else [f"{below}/{name}" for name in images]
            ignored += others
    if not names:
        raise UserError(f"no {kinds_of(suffixes)} image in {folder} ({count_of(ignored, 'other file')} there)")
    names.sort(key=natural_key)
    return TestSet(folder, names, [f"{folder.name}/{name}" for name in names], ignored)


test_images.__test__ = False  # pytest: no test function


def read_labels(contest: Contest, split: str = "A") -> dict[str, int] | None:
    """The known answers of a split, test image to class id; None where there are none.

    They stand in labels_<folder>.txt in the data folder (`image_1.jpg 14`), or are given by the folders of a
    test set that is itself a folder-per-class tree.

    Raises:
        UserError: a line that does not parse, an id out of range, an image twice.
    """
    folder = _split_folder(split)
    path = contest.root / f"labels_{folder}.txt"
    if path.is_file():
        labels = {}
        for number, name, label in read_labelled(path, len(contest.class_names)):
            if name in labels:
                raise UserError(f"{path}, line {number}: {name} stands there twice; remove one")
            labels[name] = label
        return labels
    if split in CLASS_LISTS or not (contest.root / folder).is_dir():
        return None
    ids = {name: label for label, name in enumerate(contest.class_names)}
    names = test_images(contest.root, split).names
    labels = {name: ids.get("_".join(PurePosixPath(name).parent.parts)) for name in names}
    return None if None in labels.values() else labels


def by_class(rows: Iterable[LabelledPath]) -> list[LabelledPath]:
    """Sorted by class id, then by natural order of the path."""
    return sorted(rows, key=lambda row: (row[1], natural_key(row[0])))


def _data_folder(root: PathLike) -> Path:
    """The folder as an absolute path, so that a later change of the working directory changes nothing."""
    try:
        if Path(root).is_dir():
            return Path(os.path.abspath(root))
    except (OSError, ValueError):  # a name that is too long, a link that leads to itself
        pass
    raise UserError(f"no folder {root}: give the data set's folder with --data")


def has_lists(root: Path) -> bool:
    return any((root / name).is_file() for name in (*CLASS_LISTS.values(), TRAIN_LIST))


def _split_folder(split: str) -> str:
    return f"TestSet{split}" if split in CLASS_LISTS else split


def _read_tree(root: Path, by_name: bool = False) -> Contest:
    """A plain tree: every folder that holds images is a class, numbered in natural order."""
    folders = sorted(entries_of(root)[1], key=natural_key)
    inner = next((root / name for name in folders if has_lists(root / name)), None)
    if inner:
        raise UserError(f"{root} holds no classes.txt, but {inner} has lists; did you mean --data {inner}?")
    top = next((root / name for name in TRAIN_FOLDERS if (root / name).is_dir()), root)
    rows, domains, ignored, empty = [], {}, 0, []
    for parent, images, others in walk(top, TREE_SUFFIXES, TEST_FOLDERS if top == root else ()):
        parts = parent.relative_to(top).parts
        if not parts:  # images beside the class folders belong to no class
            ignored += len(images) + others
            continue
        ignored += others
        if images:
            name = "_".join(parts)
            if name in domains:
                raise UserError(f"{parent}: another folder makes the class {name} too; rename one")
            domains[name] = domain_of(name) if by_name else parts[0] if len(parts) > 1 else ""
            below = parent.relative_to(root).as_posix()
            rows += [(f"{below}/{image}", name) for image in images]
        elif not any(parent.iterdir()):
            empty.append(parent.relative_to(root).as_posix())
    if not domains:
        raise UserError(f"{root} holds neither classes.txt and train.txt nor class folders with "
                        f"{kinds_of(TREE_SUFFIXES)} images; give the data set's folder with --data")
    for path, _ in rows:
        require_plain_name(path)
    class_names = sorted(domains, key=natural_key)
    ids = {name: label for label, name in enumerate(class_names)}
    train = by_class((path, ids[name]) for path, name in rows)
    notes = [f"no classes.txt and no train.txt in {root}: "
             f"{count_of(len(class_names), 'class', 'classes')} named and numbered by their folders"]
    if ignored:
        notes.append(f"{count_of(ignored, 'file')} in {top} ignored: no {kinds_of(TREE_SUFFIXES)} in a class folder")
    if empty:
        notes.append(f"empty folders make no class: {', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}")
    return Contest(root, class_names, [domains[name] for name in class_names], train, notes, plain=True)
