"""What lies in folders and stands in list files: images in natural order, lines of `text id`."""

import json
import math
import os
import posixpath
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jclip_fewshot.errors import UserError, shown

PathLike = str | Path
LabelledPath = tuple[str, int]  # path below the data folder, with "/", and class id
Label = TypeVar("Label", int, str)  # a class by its id or its name

# the images of every command and format, in any case
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
OTHER_IMAGES = (".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng")
JUNK_FOLDERS = ("$recycle.bin", "@eadir", "lost+found", "system volume information")  # and . and __ at the start
CLASS_ID = re.compile("0|[1-9][0-9]{0,8}")  # int() takes time squared in the digits, and refuses thousands
MAX_LINE = 4096  # letters of a line of a list


def natural_key(name: str) -> tuple:
    """Sorts digits by their value: image_2.jpg before image_10.jpg; a total order."""
    pieces: list = re.split(r"([0-9]+)", name)
    values = [digits.lstrip("0") for digits in pieces[1::2]]
    pieces[1::2] = [(len(value), value) for value in values]  # orders as the numbers do, however long they are
    return pieces, name


def count_of(number: int, word: str, words: str | None = None) -> str:
    """"1 image", "2 images"."""
    return f"{number} {word if number == 1 else words or word + 's'}"


def some(texts: Sequence[str], most: int = 5) -> str:
    """The first few of texts, for a message."""
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def brief(text: str) -> str:
    """Of a long text begin and end, for a message."""
    return text if len(text) <= 100 else text[:60] + "…" + text[-20:]


def kinds_of(names: Iterable[str]) -> str:
    """".txt (3), .db" of file names: their endings with counts, for a message."""
    counts = Counter(posixpath.splitext(name)[1].lower() or name for name in names)
    found = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    return some([kind if count == 1 else f"{kind} ({count})" for kind, count in found])


def same_text(text: str) -> str:
    """Text in Unicode's composed form: é is one sign in lists and two in folders that macOS has packed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_utf8(name: str) -> bool:
    """False for a file name whose bytes are no UTF-8: Python shows those as lone surrogates."""
    return not re.search("[\ud800-\udfff]", name)


def require_plain_name(path: str) -> None:
    """Raise UserError if a path cannot stand in a list file or a record: a line break, or no UTF-8."""
    if "\n" in path or "\r" in path:
        raise UserError(f"the name {shown(path)} holds a line break, and no list can hold that; rename it")
    if not is_utf8(path):
        raise UserError(f"the name {shown(path)} is no UTF-8 text; rename it")


def entries_of(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return names in a folder: files, folders, and what is neither (pipes, devices, which would hang a reader).

    A link that leads nowhere counts as a file, which then cannot be read.
    Raise UserError if an entry cannot be looked at, or this Python reads a name in another encoding than UTF-8.
    """
    files, folders, others, name = list[str](), list[str](), list[str](), ""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if not name.isascii() and sys.getfilesystemencoding() != "utf-8":
                    raise UserError(f"{folder} holds the name {name!r}, and this Python takes file names for "
                                    f"{sys.getfilesystemencoding()}, not UTF-8: set PYTHONUTF8=1 before it starts")
                regular = entry.is_file() or not os.path.exists(entry.path)
                (folders if entry.is_dir() else files if regular else others).append(name)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot look at {shown(str(folder / name))} ({getattr(error, 'strerror', None) or error}); "
                        "repair it or take it away") from error
    return files, folders, others


def sorted_entries(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Names of images and folders in natural order, and of other files; no hidden or left-over folders."""
    files, folders, others = entries_of(folder)
    # macOS leaves `._image_1.jpg` in archives
    images = {name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")}
    folders = [name for name in folders if not name.startswith((".", "__")) and name.lower() not in JUNK_FOLDERS]
    return (sorted(images, key=natural_key), sorted(folders, key=natural_key),
            [name for name in files if name not in images] + others)


def folders_of(folder: Path) -> list[str]:
    """Names of the folders in one, in natural order, but hidden ones and those that systems leave behind."""
    return sorted_entries(folder)[1]


def walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, image names, names of other files) of every folder from top down, but hidden and left-over ones.

    Raise UserError for what cannot be looked at, and for a link to a folder above itself.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        images, folders, others = sorted_entries(folder)
        yield folder, images, others
        for inner in (folder / name for name in reversed(folders)):
            if inner.is_symlink() and inner.resolve() in map(Path.resolve, (folder, *folder.parents)):
                raise UserError(f"{shown(str(inner))} is a link to a folder above itself; remove the link")
            waiting.append(inner)


def read_text(path: Path, what: str = "") -> str:
    """Return the text of a UTF-8 file, or raise UserError. what: it needs, for the message where it is absent."""
    if not os.path.isfile(path):  # a pipe would hang
        raise UserError(f"no {path.name} in {path.parent}" + (f"; it needs {what}" if what else ""))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; save it as such") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_json(text: str, where: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what a JSON text holds; `pairs` makes an object of its keys and values. Raise UserError if it is none."""
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UserError(f"{where}: no JSON that can be read ({brief(str(error))})") from None


def read_pairs(path: Path, form: str = "<image path> <class id>", num_classes: float = math.inf
               ) -> list[tuple[int, str, int]]:
    """Return (line number, text, id) of each line `text id`; the text may hold spaces; empty lines are skipped.

    Raise UserError if there is no such file, it is no UTF-8 text, a line is not of this form, or an id is none of K.
    """
    rows = []
    for number, line in enumerate(read_text(path, f"lines of the form {form}").split("\n"), 1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(None, 1)
        if len(fields) != 2 or not CLASS_ID.fullmatch(fields[1]) or "\0" in line or len(line) > MAX_LINE:
            raise UserError(f"{path}, line {number}: {brief(repr(line.strip()))} is not of the form {form}")
        if int(fields[1]) >= num_classes:
            raise UserError(f"{path}, line {number}: class id {fields[1]} is outside 0..{num_classes - 1}")
        rows.append((number, fields[0], int(fields[1])))
    return rows


class Files:
    """The files below a folder, by the paths that lists have for them; each folder is looked at once.

    Backslashes may stand for "/", composed letters for others. any_ending: lists may leave ".jpg" out.
    """

    def __init__(self, root: Path, any_ending: bool = False) -> None:
        self.root, self.any_ending = root, any_ending
        self._known: dict[str, list[dict[str, str]]] = {}

    def find(self, listed: str) -> str | None:
        """Return the path of a file as it is on the disk, with "/"; None where there is none."""
        return self._find(listed) or self._find(listed.replace("\\", "/"))

    def most_in(self, places: Iterable[str], paths: Sequence[str]) -> tuple[str, int]:
        """Return in which of some folders most paths begin, the first of equals, and how many of them do."""
        hits = {place: sum(self.find(f"{place}/{path}") is not None for path in paths) for place in places}
        return max(hits.items(), key=lambda hit: hit[1])

    def _find(self, listed: str) -> str | None:
        *parents, name = [part for part in listed.split("/") if part not in ("", ".")] or [""]
        folder = ""
        for parent in parents:
            there = self._names(folder)[1]
            inner = there.get(parent) or there.get(same_text(parent))
            if inner is None:
                return None
            folder = f"{folder}{inner}/"
        names = self._names(folder)[0]
        found = names.get(name) or names.get(same_text(name))
        if found is None and self.any_ending:
            endings = [name + end for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper())]
            matches = [names[one] for one in endings if one in names]
            found = matches[0] if len(matches) == 1 else None
        return None if found is None else folder + found

    def _names(self, folder: str) -> list[dict[str, str]]:
        """Names of the files and of the folders in one, by themselves and by their composed form."""
        if folder not in self._known:
            self._known[folder] = [{**{same_text(name): name for name in names}, **{name: name for name in names}}
                                   for names in entries_of(self.root / folder)[:2]]
        return self._known[folder]


def locate(files: Files, source: Path, listed: Iterable[tuple[int, str, Label]], base: str = ""
           ) -> list[tuple[int, str, Label]]:
    """Return the images that a list names, (line number, path below `base`, class), with their paths below the data.

    Raise UserError if one is absent, lies elsewhere, or has a name that no list can hold.
    """
    found: list[tuple[int, str, Label]] = []
    absent: list[tuple[int, str, Path]] = []
    for number, path, label in listed:
        below = _inside(files.root, posixpath.join(base, path), f"{source}, line {number}")
        there = files.find(below)
        if there is None:
            absent.append((number, path, files.root / below))
        else:
            require_plain_name(there)
            found.append((number, there, label))
    if absent:
        number, path, where = absent[0]
        reason = f"no file {where}" if os.path.isdir(where.parent) else f"no folder {where.parent}"
        more = f" ({len(absent) - 1} more are listed but absent)" if len(absent) > 1 else ""
        raise UserError(f"{source}, line {number}: {shown(brief(path))} is listed but absent: "
                        f"{shown(reason if len(reason) < MAX_LINE else brief(reason))}{more}; complete the data set or "
                        "take the line out")
    return found


def _inside(root: Path, path: str, where: str) -> str:
    """A listed path as one below the data folder, or a run's record could not name it: absolute ones shortened."""
    plain = path.replace("\\", "/")
    if not re.match("/|[A-Za-z]:/", plain) and ".." not in plain.split("/"):
        return path
    plain = os.path.relpath(plain, root) if plain.startswith("/") else posixpath.normpath(plain)
    if re.match(r"\.\.|[A-Za-z]:/", plain):
        raise UserError(f"{where}: {shown(brief(path))} is not below {root}; list images by their path below the data "
                        "folder, and move or link there what lies elsewhere")
    return plain
