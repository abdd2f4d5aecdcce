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

import hashlib
import io
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

from .errors import UserError
from .files import atomic_write, write_text

PathLike = Union[str, Path]
LabelledPath = Tuple[str, int]  # path below the data folder, with "/", and class id

CLASS_LISTS = {"A": "classes.txt", "B": "classes_b.txt"}
TRAIN_LIST = "train.txt"
TRAIN_FOLDERS = ("TrainSet", "train")
TEST_FOLDERS = ("TestSetA", "TestSetB", "test", "val", "valid")  # never class folders of a plain tree
IMAGE_SUFFIXES = (".jpg", ".jpeg")
TOP = 5
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


@dataclass(frozen=True)
class ResultCheck:
    """What is wrong with a submission file, what is unusual but harmless, and how many lines it has."""

    problems: List[str]
    notes: List[str]
    lines: int

    @property
    def ok(self) -> bool:
        return not self.problems


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


def read_contest(root: PathLike, board: str = "A") -> Contest:
    """Reads a data set's classes and training images; opens no image.

    Args:
        root: data folder in the contest's layout, or a plain tree with a folder a class.
        board: "A" (classes.txt) or "B" (classes_b.txt); a plain tree has one list of classes for both.

    Raises:
        UserError: no such folder or list; a list line that does not parse; ids that are not 0..K-1; a class
            twice; an image twice with different classes; an image that is listed but absent; no image at all.
    """
    root = _data_folder(root)
    if not _has_lists(root):
        return _read_tree(root)
    class_names = read_classes(root, board)
    listed = _read_labelled(root / TRAIN_LIST, len(class_names))
    train, lines, notes = [], {}, []
    for number, path, label in listed:
        if path not in lines:
            lines[path] = number, label
            train.append((path, label))
        elif lines[path][1] != label:
            raise UserError(f"{root / TRAIN_LIST}, line {number}: {path} has class {label} here "
                            f"and {lines[path][1]} on line {lines[path][0]}; keep the right one")
    if len(train) < len(listed):
        notes.append(f"{TRAIN_LIST} lists {_count(len(listed) - len(train), 'image')} more than once")
    _require_present(root, root / TRAIN_LIST, [(lines[path][0], path) for path, _ in train])
    without = len(class_names) - len({label for _, label in train})
    if without:
        notes.append(f"{without} of {len(class_names)} classes have no training image; text alone knows them")
    return Contest(root, class_names, domains_of(class_names), _by_class(train), notes)


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
        raise UserError(f"{path}: {_count(len(by_id), 'class needs', 'classes need')} the ids "
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
        raise UserError(f"no .jpg or .jpeg image in {folder} ({_count(ignored, 'other file')} there)")
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
        for number, name, label in _read_labelled(path, len(contest.class_names)):
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


def choose_shots(contest: Contest, shots: int = 4, seed: int = 0,
                 shot_list: Optional[PathLike] = None) -> List[LabelledPath]:
    """The training images to learn from: `shots` of every class that has any, sorted by class.

    A class's images are ordered by the SHA-256 of seed and path, and the first ones taken: the same on every
    machine and Python, whatever the other classes are; fewer shots are always a part of more.

    Args:
        contest: from read_contest.
        shots: images a class; 0 for none at all.
        seed: another seed, another choice.
        shot_list: a file of `path label` lines that makes the choice instead (see write_shot_list).

    Raises:
        UserError: a class has fewer images than shots (but some); what is wrong with the shot list.
    """
    if shot_list is not None:
        return read_shot_list(shot_list, contest)
    if shots < 0:
        raise UserError(f"--shots is {shots}; it must be 0 or more")
    by_class = _paths_by_class(contest)
    for label, paths in enumerate(by_class):
        if 0 < len(paths) < shots:
            fewest = min(len(others) for others in by_class if others)
            raise UserError(f"class {contest.class_names[label]} has {_count(len(paths), 'training image')}, "
                            f"fewer than the {shots} shots asked for; use --shots {fewest} or a --shot-list")
    return draw_pool(contest, shots, seed)


def draw_pool(contest: Contest, most: int, seed: int = 0) -> List[LabelledPath]:
    """Up to `most` training images of every class, by choose_shots' seeded order, sorted by class."""
    drawn = []
    for label, paths in enumerate(_paths_by_class(contest)):
        paths = sorted(paths, key=lambda path: hashlib.sha256(f"{seed} {path}".encode()).digest())[:most]
        drawn += [(path, label) for path in sorted(paths, key=natural_key)]
    return drawn


def _paths_by_class(contest: Contest) -> List[List[str]]:
    by_class: List[List[str]] = [[] for _ in contest.class_names]
    for path, label in contest.train:
        by_class[label].append(path)
    return by_class


def read_shot_list(path: PathLike, contest: Contest) -> List[LabelledPath]:
    """Reads chosen training images, `path label` a line, the path below the data folder.

    Raises:
        UserError: no such file; a line that does not parse; an id out of range or other than train.txt's; an
            image twice or absent; no line at all.
    """
    path = Path(path)
    listed = _read_labelled(path, len(contest.class_names))
    if not listed:
        raise UserError(f"{path} lists no image; it needs lines like `TrainSet/Animal/Bear/1.jpg 0`")
    known, seen = dict(contest.train), {}
    for number, image, label in listed:
        if image in seen:
            raise UserError(f"{path}, line {number}: {image} is on line {seen[image]} too; remove one")
        if known.get(image, label) != label:
            raise UserError(f"{path}, line {number}: {image} has class {label} here, "
                            f"but {known[image]} in the data set; was the list made for another board?")
        seen[image] = number
    _require_present(contest.root, path, [(number, image) for number, image, _ in listed])
    return _by_class((image, label) for _, image, label in listed)


def write_shot_list(path: PathLike, shots: Iterable[LabelledPath]) -> None:
    """Writes chosen training images in the format that read_shot_list reads."""
    write_text(path, "".join(f"{image} {label}\n" for image, label in shots))


def write_result(path: PathLike, names: Sequence[str], top5: Sequence[Sequence[int]],
                 num_classes: Optional[int] = None) -> Path:
    """Writes a submission in natural order, reads it back and checks it, and zips it beside.

    Both files are written whole or not at all, and the same result makes the same bytes. The archive holds
    `result.txt` whatever `path` is called; one that stood there before is removed first, so that it never
    disagrees with the text beside it.

    Args:
        path: result.txt.
        names: the N test images.
        top5: (N, min(5, K)) class ids, best first.
        num_classes: K, where known; the ids are then checked against it.

    Returns:
        the archive's path, `path` with the suffix .zip.

    Raises:
        ValueError: names and ids that make no valid submission.
        UserError: the file cannot be written or does not read back.
    """
    path = Path(path)
    archive = path.with_suffix(".zip")
    if path == archive:
        raise UserError(f"{path}: the result is a .txt file; the .zip is written beside it")
    rows = [[int(label) for label in row] for row in top5]
    if len(rows) != len(names):
        raise ValueError(f"{len(names)} test images, but {len(rows)} rows of ids")
    if num_classes is None:
        num_classes = max((max(row) for row in rows if row), default=-1) + 1
    lines = sorted(zip(names, rows), key=lambda line: natural_key(line[0]))
    text = "".join(" ".join([name, *map(str, row)]) + "\n" for name, row in lines).encode("utf-8")
    check = _check_bytes(text, names, num_classes)
    if not check.ok:
        raise ValueError("no valid submission: " + "; ".join(check.problems))
    try:
        if archive.exists():
            archive.unlink()
        with atomic_write(path) as file:
            file.write(text)
        if path.read_bytes() != text:
            raise UserError(f"{path} does not read back as it was written; is the disk full or failing?")
        with atomic_write(archive) as file:
            file.write(_zipped(text))
    except OSError as error:
        raise UserError(f"cannot write {path} or {archive.name}: {error.strerror or error}") from error
    return archive


def check_result(path: PathLike, names: Sequence[str], num_classes: int) -> ResultCheck:
    """Finds everything that is wrong with a submission file (.txt, or the .zip around it).

    Problems: a line that is not `name id id id id id` with single spaces and LF (byte-order mark, CR LF,
    tabs, commas, header, empty line); other than min(5, K) ids, an id twice, no id, out of 0..K-1; an image
    twice, unknown, or without a line. Notes: an order other than the natural one, no newline at the end.

    Args:
        path: the file.
        names: the N test images (TestSet.names).
        num_classes: K.

    Raises:
        UserError: no such file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not data.startswith(b"PK\x03\x04"):
        return _check_bytes(data, names, num_classes)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = archive.namelist()
            if inside != ["result.txt"]:
                return ResultCheck([f"the archive holds {', '.join(inside) or 'nothing'}; "
                                    "it must hold result.txt and nothing else"], [], 0)
            return _check_bytes(archive.read("result.txt"), names, num_classes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        return ResultCheck([f"the archive cannot be read: {error}"], [], 0)


def _check_bytes(data: bytes, names: Sequence[str], num_classes: int) -> ResultCheck:
    count = min(TOP, num_classes)
    found: Dict[str, List[str]] = {}  # kind of problem -> its messages, in the order of the kinds' first one

    def problem(kind: str, message: str) -> None:
        found.setdefault(kind, []).append(message)

    notes = []
    if data.startswith(b"\xef\xbb\xbf"):
        problem("bom", "the file begins with a byte-order mark; save it as UTF-8 without one")
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        return ResultCheck([*found.get("bom", []), f"line {line}: not UTF-8 text"], [], 0)
    if "\r" in text:
        problem("crlf", "lines end in CR LF (Windows); they must end in LF alone")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and not text.endswith("\n"):
        notes.append("no newline at the end of the last line")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return ResultCheck(["the file is empty"], [], 0)

    known = set(names)
    first: Dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            problem("empty", f"line {number} is empty")
            continue
        for sign, word in (("\t", "tab"), (",", "comma")):
            if sign in line:
                problem(word, f"line {number}: a {word}; one space goes between name and ids")
        line = line.replace("\t", " ").replace(",", " ")
        if line != " ".join(line.split()):
            problem("spaces", f"line {number}: exactly one space goes between name and ids, none at the ends")
        name, *ids = line.rsplit(None, count)
        if name not in known:  # too many ids, or no such image: only known names may hold spaces
            name, *ids = line.split()
        if number == 1 and name not in known and not any(CLASS_ID.fullmatch(text) for text in ids):
            problem("header", f"line 1 looks like a header ({line!r}); the file has none")
            continue
        if name in first:
            problem("again", f"line {number}: {name} is on line {first[name]} already")
        elif name not in known:
            alone = PurePosixPath(name.replace("\\", "/")).name
            problem("unknown", f"line {number}: {name} has a folder; {alone} alone is right"
                    if alone in known else f"line {number}: {name} is no test image")
        first.setdefault(name, number)
        if len(ids) != count:
            problem("count", f"line {number}: {_count(len(ids), 'id')} instead of {count}")
        wrong = [text for text in ids if not CLASS_ID.fullmatch(text)]
        if wrong:
            problem("no id", f"line {number}: {wrong[0]!r} is no class id")
        outside = [text for text in ids if CLASS_ID.fullmatch(text) and int(text) >= num_classes]
        if outside:
            problem("range", f"line {number}: id {outside[0]} is outside 0..{num_classes - 1}")
        double = [text for place, text in enumerate(ids) if text in ids[:place]]
        if double:
            problem("double", f"line {number}: id {double[0]} stands there more than once")
    missing = sorted((name for name in known if name not in first), key=natural_key)
    for name in missing:
        problem("missing", f"no line for {name}")
    if not missing and list(first) != sorted(first, key=natural_key):
        notes.append("the images are not in natural order (image_2.jpg before image_10.jpg)")
    problems = []
    for messages in found.values():
        problems += messages[:3]
        if len(messages) > 3:
            problems[-1] += f" (and {len(messages) - 3} more of this kind)"
    return ResultCheck(problems, notes, len(lines))


def _zipped(text: bytes) -> bytes:
    """A zip archive with result.txt, its date fixed: the same text makes the same bytes."""
    entry = zipfile.ZipInfo("result.txt", date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix, on every platform
    entry.external_attr = 0o644 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, text)
    return buffer.getvalue()


def _by_class(rows: Iterable[LabelledPath]) -> List[LabelledPath]:
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
    train = _by_class((path, ids[name]) for path, name in rows)
    notes = [f"no classes.txt and no train.txt in {root}: "
             f"{_count(len(class_names), 'class', 'classes')} named and numbered by their folders"]
    if ignored:
        notes.append(f"{_count(ignored, 'file')} in {top} ignored: no .jpg or .jpeg in a class folder")
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


def _read_labelled(path: Path, num_classes: int) -> List[Tuple[int, str, int]]:
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


def _require_present(root: Path, source: Path, listed: Iterable[Tuple[int, str]]) -> None:
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


def _count(number: int, word: str, words: Optional[str] = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"
