"""The contest's files: classes, training list and test images in; result.txt and result.zip out.

A data set is a folder in the contest's layout

    classes.txt  classes_b.txt      `Animal_Bear 0`: <Domain>_<name> and the class's id, boards A and B
    train.txt                       `TrainSet/Animal/Bear/1.jpg 0`: path below the data folder, class id
    TrainSet/  TestSetA/  TestSetB/ photographs, .jpg or .jpeg in any case
    labels_TestSetA.txt             `image_1.jpg 14`: the known answers, where somebody has them

or, with no lists at all, a plain tree with a folder a class (TrainSet/, train/ or the folder itself;
`Animal/Bear/1.jpg` makes the class Animal_Bear of the domain Animal, `bear/1.jpg` a class without a domain).

A result has a line a test image, `image_1.jpg 3 17 88 5 240`: the ids of its five likeliest classes, best
first.

Mistakes in the files are the user's to mend: each raises UserError and says where it is.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

from jclip_fewshot.errors import UserError

PathLike = Union[str, Path]
LabelledPath = Tuple[str, int]  # path below the data folder, with "/", and class id

CLASS_LISTS = {"A": "classes.txt", "B": "classes_b.txt"}
TRAIN_LIST = "train.txt"
TRAIN_FOLDERS = ("TrainSet", "train")
TEST_FOLDERS = ("TestSetA", "TestSetB", "test", "val", "valid")  # never class folders of a plain tree
IMAGE_SUFFIXES = (".jpg", ".jpeg")
CLASS_ID = re.compile(r"0|[1-9][0-9]*")


@dataclass(frozen=True)
class Contest:
    """A data set's classes and training images, sorted by class and natural order of the path.

    Attributes:
        root: the data folder.
        class_names: raw names ("Animal_Bear"), by id.
        domains: each class's domain ("Animal"; "" where it has none), by id.
        train: (path below root, class id) of every training image. Classes without any are normal.
        notes: what a person should hear about, a sentence each.
    """

    root: Path
    class_names: List[str]
    domains: List[str]
    train: List[LabelledPath]
    notes: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class TestSet:
    """Test images in natural order: image_2.jpg before image_10.jpg.

    Attributes:
        folder: where they lie.
        names: what result.txt calls them.
        paths: where each one is, in the order of names.
        ignored: how many files there are no .jpg or .jpeg images.
    """

    __test__ = False  # pytest: no test class

    folder: Path
    names: List[str]
    paths: List[Path]
    ignored: int


def natural_key(name: str) -> tuple:
    """Sorts digits by their value: image_2.jpg before image_10.jpg; a total order."""
    pieces = re.split(r"([0-9]+)", name)
    pieces[1::2] = map(int, pieces[1::2])
    return pieces, name


def is_image(name: str) -> bool:
    """A .jpg or .jpeg file of any case; no hidden one (macOS leaves `._image_1.jpg` in archives)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def domain_of(class_name: str) -> str:
    """The part before the first underscore, "" where there is none: Animal_Polar_bear is of Animal."""
    domain, underscore, _ = class_name.partition("_")
    return domain if underscore else ""


def domains_of(class_names: Sequence[str]) -> List[str]:
    """The domain of each class of one list.

    A list in which some name has no underscore has no domains: there, golden_retriever is a retriever
    beside the beagle, not a retriever of the domain golden.
    """
    domains = [domain_of(name) for name in class_names]
    return domains if all(domains) else [""] * len(domains)


def read_contest(root: PathLike, board: str = "A", labelled: bool = True) -> Contest:
    """Reads a data set's classes and training images; opens no image.

    Args:
        root: data folder in the contest's layout, or a plain tree with a folder a class.
        board: "A" (classes.txt) or "B" (classes_b.txt); a plain tree has one list of classes for both.
        labelled: False where no training image is asked for: a data set with lists then needs no train.txt.

    Raises:
        UserError: no such folder or list; a list line that does not parse; ids that are not 0..K-1; a class
            twice; an image twice with different classes; an image that is listed but absent; no image at all.
    """
    root = _data_folder(root)
    if not _has_lists(root):
        return _read_tree(root)
    class_names = read_classes(root, board)
    if not labelled:
        return Contest(root, class_names, domains_of(class_names), [])
    listed = read_labelled(root / TRAIN_LIST, len(class_names))
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
    require_present(root, root / TRAIN_LIST, [(lines[path][0], path) for path, _ in train])
    without = len(class_names) - len({label for _, label in train})
    if without:
        notes.append(f"{without} of {len(class_names)} classes have no training image; text alone knows them")
    return Contest(root, class_names, domains_of(class_names), by_class(train), notes)


def read_classes(root: PathLike, board: str = "A") -> List[str]:
    """The raw class names by id: from the board's class list, or the folders of a plain tree.

    Raises:
        UserError: no such folder or list; a line that does not parse; ids not 0..K-1; a class twice.
    """
    root = _data_folder(root)
    if not _has_lists(root):
        return _read_tree(root).class_names
    path = root / CLASS_LISTS[board]
    if not path.is_file():
        raise UserError(f"no {path.name} in {root}: board {board} takes its classes from there; "
                        "put it there or choose another board or --data")
    by_id, line_of = {}, {}
    for number, name, label in _read_pairs(path, "<class name> <id>"):
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


def test_images(root: PathLike, split: str = "A") -> TestSet:
    """The test images of split "A" (TestSetA/) or "B" (TestSetB/).

    Any other split is the name of a folder in the data folder, read with all its subfolders; an image's name
    is then its path below that folder.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = _data_folder(root)
    folder = root / _split_folder(split)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: the test images of split {split} belong there; "
                        "give another --split or --data")
    if split in CLASS_LISTS:
        names, ignored = _images_of(folder)
    else:
        names, ignored = [], 0
        for parent, images, others in _walk(folder):
            below = parent.relative_to(folder).as_posix()
            names += images if below == "." else [f"{below}/{name}" for name in images]
            ignored += others
    if not names:
        raise UserError(f"no .jpg or .jpeg image in {folder} ({count_of(ignored, 'other file')} there)")
    names.sort(key=natural_key)
    return TestSet(folder, names, [folder / name for name in names], ignored)


test_images.__test__ = False  # pytest: no test function


def read_labels(contest: Contest, split: str = "A") -> Optional[Dict[str, int]]:
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


def by_class(rows: Iterable[LabelledPath]) -> List[LabelledPath]:
    """Sorted by class id, then by natural order of the path."""
    return sorted(rows, key=lambda row: (row[1], natural_key(row[0])))


def _data_folder(root: PathLike) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder {root}: give the data set's folder with --data")
    return root


def _has_lists(root: Path) -> bool:
    return any((root / name).is_file() for name in (*CLASS_LISTS.values(), TRAIN_LIST))


def _split_folder(split: str) -> str:
    return f"TestSet{split}" if split in CLASS_LISTS else split


def _read_tree(root: Path) -> Contest:
    """A plain tree: every folder that holds images is a class, numbered in natural order."""
    inner = next((root / name for name in _subfolders(root) if _has_lists(root / name)), None)
    if inner:
        raise UserError(f"{root} holds no classes.txt, but {inner} has lists; did you mean --data {inner}?")
    top = next((root / name for name in TRAIN_FOLDERS if (root / name).is_dir()), root)
    rows, domains, ignored = [], {}, 0
    for parent, images, others in _walk(top, TEST_FOLDERS if top == root else ()):
        parts = parent.relative_to(top).parts
        if not parts:  # images beside the class folders belong to no class
            ignored += len(images) + others
            continue
        ignored += others
        if images:
            name = "_".join(parts)
            if name in domains:
                raise UserError(f"{parent}: another folder makes the class {name} too; rename one")
            domains[name] = parts[0] if len(parts) > 1 else ""
            below = parent.relative_to(root).as_posix()
            rows += [(f"{below}/{image}", name) for image in images]
    if not domains:
        raise UserError(f"{root} holds neither classes.txt and train.txt nor class folders with .jpg or "
                        ".jpeg images; give the data set's folder with --data")
    class_names = sorted(domains, key=natural_key)
    ids = {name: label for label, name in enumerate(class_names)}
    train = by_class((path, ids[name]) for path, name in rows)
    notes = [f"no classes.txt and no train.txt in {root}: "
             f"{count_of(len(class_names), 'class', 'classes')} named and numbered by their folders"]
    if ignored:
        notes.append(f"{count_of(ignored, 'file')} in {top} ignored: no .jpg or .jpeg in a class folder")
    return Contest(root, class_names, [domains[name] for name in class_names], train, notes)


def _walk(top: Path, skip: Sequence[str] = ()) -> Iterable[Tuple[Path, List[str], int]]:
    """(folder, image names, number of other files) of every folder from top down, hidden ones left out."""
    images, others = _images_of(top)
    yield top, images, others
    for name in _subfolders(top):
        if name not in skip:
            yield from _walk(top / name)


def _images_of(folder: Path) -> Tuple[List[str], int]:
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if not entry.is_dir()]
    images = [name for name in files if is_image(name)]
    return sorted(images, key=natural_key), len(files) - len(images)


def _subfolders(folder: Path) -> List[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted((name for name in names if not name.startswith((".", "__"))), key=natural_key)


def read_labelled(path: Path, num_classes: int) -> List[Tuple[int, str, int]]:
    """(line number, image path, class id) of each line of a list; ids checked against K."""
    rows = _read_pairs(path, "<image path> <class id>")
    for number, _, label in rows:
        if label >= num_classes:
            raise UserError(f"{path}, line {number}: class id {label} is outside 0..{num_classes - 1}")
    return rows


def _read_pairs(path: Path, form: str) -> List[Tuple[int, str, int]]:
    """(line number, text, id) of each line `text id`; the text may hold spaces; empty lines are skipped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no {path.name} in {path.parent}; it needs lines of the form {form}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; save it as such") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(None, 1)
        if len(fields) != 2 or not CLASS_ID.fullmatch(fields[1]):
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not of the form {form}")
        rows.append((number, fields[0], int(fields[1])))
    return rows


def require_present(root: Path, source: Path, listed: Iterable[Tuple[int, str]]) -> None:
    """Every listed image must be a file below root. Lists each folder once: 181,729 stats would be slow."""
    there: Dict[str, Optional[set]] = {}
    absent = []
    for number, path in listed:
        parent, _, name = path.rpartition("/")
        if parent not in there:
            try:
                with os.scandir(root / parent) as entries:
                    there[parent] = {entry.name for entry in entries}
            except OSError:
                there[parent] = None
        names = there[parent]
        if names is None or name not in names:
            absent.append((number, path, names is None))
    if absent:
        number, path, no_folder = absent[0]
        reason = f"no folder {root / path.rpartition('/')[0]}" if no_folder else f"no file {root / path}"
        more = f" ({len(absent) - 1} more are listed but absent)" if len(absent) > 1 else ""
        raise UserError(f"{source}, line {number}: {path} is listed but absent: {reason}{more}; "
                        "complete the data set or take the line out")


def count_of(number: int, word: str, words: Optional[str] = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"
