"""What lies in folders and stands in list files: images in natural order, lines of `text id`.

Mistakes in them are the user's: each raises UserError and says where it is.
"""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

from jclip_fewshot.errors import UserError, shown

PathLike = Union[str, Path]
LabelledPath = tuple[str, int]  # path below the data folder, with "/", and class id

CONTEST_SUFFIXES = (".jpg", ".jpeg")
TREE_SUFFIXES = (*CONTEST_SUFFIXES, ".png", ".webp", ".bmp")
CLASS_ID = re.compile(r"0|[1-9][0-9]*")
MAX_LINE = 4096  # letters of a line of a list
MAX_DIGITS = 9  # of a class id: int() takes time squared in the digits, and refuses thousands


def natural_key(name: str) -> tuple:
    """Sorts digits by their value: image_2.jpg before image_10.jpg; a total order."""
    pieces: list = re.split(r"([0-9]+)", name)
    for place in range(1, len(pieces), 2):
        digits = pieces[place].lstrip("0")
        pieces[place] = len(digits), digits  # orders as the number does, however long it is
    return pieces, name


def count_of(number: int, word: str, words: str | None = None) -> str:
    """"1 image", "2 images"."""
    return f"{number} {word if number == 1 else words or word + 's'}"


def is_image(name: str, suffixes: Sequence[str] = CONTEST_SUFFIXES) -> bool:
    """An image by its ending, of any case; no hidden file (macOS leaves `._image_1.jpg` in archives)."""
    return name.lower().endswith(tuple(suffixes)) and not name.startswith(".")


def kinds_of(suffixes: Sequence[str]) -> str:
    """".jpg or .jpeg" for a message."""
    return ", ".join(suffixes[:-1]) + " or " + suffixes[-1]


def entries_of(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Names in a folder: files, folders, and what is neither (pipes, sockets, devices, which would hang a reader).

    Links count as what they lead to; one that leads nowhere counts as a file, which then cannot be read.
    Raises:
        UserError: the folder, or an entry of it, cannot be looked at; a link that leads to itself.
    """
    files, folders, others = [], [], []
    entry = None
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    try:
                        mode = entry.stat().st_mode
                    except FileNotFoundError:
                        mode = stat.S_IFREG
                    regular, inner = stat.S_ISREG(mode), stat.S_ISDIR(mode)
                else:
                    regular, inner = entry.is_file(), entry.is_dir()
                (files if regular else folders if inner else others).append(entry.name)
    except (OSError, ValueError) as error:
        what = folder if entry is None else Path(folder, entry.name)
        raise UserError(f"cannot look at {shown(str(what))} ({getattr(error, 'strerror', None) or error}); "
                        "repair it or take it away") from error
    return files, folders, others


def images_of(folder: Path, suffixes: Sequence[str] = CONTEST_SUFFIXES) -> tuple[list[str], int]:
    """(image names in natural order, number of other files) of one folder."""
    files, _, others = entries_of(folder)
    images = [name for name in files if is_image(name, suffixes)]
    return sorted(images, key=natural_key), len(files) + len(others) - len(images)


def walk(top: Path, suffixes: Sequence[str], skip: Sequence[str] = (),
         above: tuple[tuple[int, int], ...] = ()) -> Iterable[tuple[Path, list[str], int]]:
    """(folder, image names, number of other files) of every folder from top down; hidden ones are left out.

    Raises:
        UserError: what cannot be looked at; a link to a folder above itself, which would go round forever.
    """
    files, folders, others = entries_of(top)
    images = sorted((name for name in files if is_image(name, suffixes)), key=natural_key)
    yield top, images, len(files) + len(others) - len(images)
    status = os.stat(top)
    above = (*above, (status.st_dev, status.st_ino))
    for name in sorted(folders, key=natural_key):
        if name.startswith((".", "__")) or name in skip:
            continue
        inner = top / name
        if inner.is_symlink():
            status = os.stat(inner)
            if (status.st_dev, status.st_ino) in above:
                raise UserError(f"{shown(str(inner))} is a link to a folder above itself; remove the link")
        yield from walk(inner, suffixes, skip, above)


def require_plain_name(path: str) -> None:
    """Raises UserError where a path cannot stand in a list file or a record: a line break, or no UTF-8."""
    if "\n" in path or "\r" in path:
        raise UserError(f"the name {shown(path)} holds a line break, and no list can hold that; rename it")
    if not is_utf8(path):
        raise UserError(f"the name {shown(path)} is no UTF-8 text; rename it")


def is_utf8(name: str) -> bool:
    """False for a file name whose bytes are no UTF-8 (Python shows those as lone surrogates)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_pairs(path: Path, form: str) -> list[tuple[int, str, int]]:
    """(line number, text, id) of each line `text id`; the text may hold spaces; empty lines are skipped.

    Raises:
        UserError: no such file, no UTF-8 text, a line that is not of this form.
    """
    try:
        if not path.is_file():  # a pipe would hang
            raise FileNotFoundError
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
        if len(fields) != 2 or not CLASS_ID.fullmatch(fields[1]) or len(fields[1]) > MAX_DIGITS or "\0" in line \
                or len(line) > MAX_LINE:
            raise UserError(f"{path}, line {number}: {_brief(repr(line.strip()))} is not of the form {form}")
        rows.append((number, fields[0], int(fields[1])))
    return rows


def read_labelled(path: Path, num_classes: int) -> list[tuple[int, str, int]]:
    """(line number, image path, class id) of each line of a list; ids checked against K."""
    rows = read_pairs(path, "<image path> <class id>")
    for number, _, label in rows:
        if label >= num_classes:
            raise UserError(f"{path}, line {number}: class id {label} is outside 0..{num_classes - 1}")
    return rows


def require_present(root: Path, source: Path, listed: Iterable[tuple[int, str]]) -> None:
    """Every listed image must be a file below root. Lists each folder once: 181,729 stats would be slow."""
    there: dict[str, set | None] = {}
    absent = []
    for number, path in listed:
        parent, _, name = path.rpartition("/")
        if parent not in there:
            folder = root / parent
            there[parent] = set(entries_of(folder)[0]) if _is_folder(folder) else None
        names = there[parent]
        if names is None or name not in names:
            absent.append((number, path, names is None))
    if absent:
        number, path, no_folder = absent[0]
        reason = f"no folder {root / path.rpartition('/')[0]}" if no_folder else f"no file {root / path}"
        more = f" ({len(absent) - 1} more are listed but absent)" if len(absent) > 1 else ""
        raise UserError(f"{source}, line {number}: {_brief(path)} is listed but absent: {reason}{more}; "
                        "complete the data set or take the line out")


def _brief(text: str) -> str:
    """Of a long text begin and end, for a message."""
    return text if len(text) <= 100 else text[:60] + "…" + text[-20:]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a link that leads to itself
        return False
