"""What lies in folders and stands in list files: images in natural order, lines of `text id`.

Mistakes in them are the user's: each raises UserError and says where it is.
"""

import json
import os
import posixpath
import re
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Union

from jclip_fewshot.errors import UserError, shown

PathLike = Union[str, Path]
LabelledPath = tuple[str, int]  # path below the data folder, with "/", and class id

# the images of every command and format, in any case
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
OTHER_IMAGES = (".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng")
JUNK_FOLDERS = ("$recycle.bin", "@eadir", "lost+found", "system volume information")  # and . and __ at the start
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


def is_image(name: str) -> bool:
    """An image by its ending, of any case; no hidden file (macOS leaves `._image_1.jpg` in archives)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def kinds_of(names: Iterable[str]) -> str:
    """".txt (3), .db" of file names: their endings with counts, for a message."""
    counts = Counter(posixpath.splitext(name)[1].lower() or name for name in names)
    found = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    said = [kind if count == 1 else f"{kind} ({count})" for kind, count in found]
    return ", ".join(said[:5]) + (", …" if len(said) > 5 else "")


def same_text(text: str) -> str:
    """Text in Unicode's composed form: é is one sign in lists and two in folders that macOS has packed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def entries_of(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Names in a folder: files, folders, and what is neither (pipes, sockets, devices, which would hang a reader).

    Links count as what they lead to; one that leads nowhere counts as a file, which then cannot be read.
    Raises:
        UserError: the folder, or an entry of it, cannot be looked at; a link that leads to itself; a name that this
            Python reads in another encoding than UTF-8.
    """
    files: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    entry = None
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.isascii() and sys.getfilesystemencoding() != "utf-8":
                    raise UserError(f"{folder} holds the name {entry.name!r}, and this Python takes file names for "
                                    f"{sys.getfilesystemencoding()}, not UTF-8: set PYTHONUTF8=1 before it starts")
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


def folders_of(folder: Path) -> list[str]:
    """Names of the folders in one, in natural order, but hidden ones and those that systems leave behind."""
    return sorted((name for name in entries_of(folder)[1] if not _is_junk(name)), key=natural_key)


def _is_junk(name: str) -> bool:
    return name.startswith((".", "__")) or name.lower() in JUNK_FOLDERS


def images_of(folder: Path) -> tuple[list[str], list[str]]:
    """(image names in natural order, names of what else is there but folders) of one folder."""
    files, _, others = entries_of(folder)
    return _parted(files, others)


def _parted(files: list[str], others: list[str]) -> tuple[list[str], list[str]]:
    images = {name for name in files if is_image(name)}
    return sorted(images, key=natural_key), [name for name in files if name not in images] + others


def walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, image names, names of other files) of every folder from top down, but hidden and left-over ones.

    Raises:
        UserError: what cannot be looked at; a link to a folder above itself, which would go round forever.
    """
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        files, folders, others = entries_of(folder)
        yield (folder, *_parted(files, others))
        status = os.stat(folder)
        above = (*above, (status.st_dev, status.st_ino))
        for name in sorted(folders, key=natural_key, reverse=True):
            inner = folder / name
            if _is_junk(name):
                continue
            if inner.is_symlink():
                status = os.stat(inner)
                if (status.st_dev, status.st_ino) in above:
                    raise UserError(f"{shown(str(inner))} is a link to a folder above itself; remove the link")
            waiting.append((inner, above))


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


def read_text(path: Path, what: str = "") -> str:
    """The text of a UTF-8 file. what: it needs, for the message where it is absent.

    Raises:
        UserError: no such file, or no UTF-8 text.
    """
    try:
        if not path.is_file():  # a pipe would hang
            raise FileNotFoundError
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no {path.name} in {path.parent}" + (f"; it needs {what}" if what else "")) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; save it as such") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_json(text: str, where: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What a JSON text holds; `pairs` makes an object of its keys and values.

    Raises:
        UserError: no JSON; nested or numbered beyond what Python takes.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, line {error.lineno}: no JSON ({error.msg})") from error
    except RecursionError:
        raise UserError(f"{where}: lists inside lists, too deep to read") from None
    except ValueError:
        raise UserError(f"{where}: holds a number of thousands of digits") from None


def read_pairs(path: Path, form: str) -> list[tuple[int, str, int]]:
    """(line number, text, id) of each line `text id`; the text may hold spaces; empty lines are skipped.

    Raises:
        UserError: no such file, no UTF-8 text, a line that is not of this form.
    """
    rows = []
    for number, line in enumerate(read_text(path, f"lines of the form {form}").split("\n"), 1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(None, 1)
        if len(fields) != 2 or not CLASS_ID.fullmatch(fields[1]) or len(fields[1]) > MAX_DIGITS or "\0" in line \
                or len(line) > MAX_LINE:
            raise UserError(f"{path}, line {number}: {brief(repr(line.strip()))} is not of the form {form}")
        rows.append((number, fields[0], int(fields[1])))
    return rows


def read_labelled(path: Path, num_classes: int) -> list[tuple[int, str, int]]:
    """(line number, image path, class id) of each line of a list; ids checked against K."""
    rows = read_pairs(path, "<image path> <class id>")
    for number, _, label in rows:
        if label >= num_classes:
            raise UserError(f"{path}, line {number}: class id {label} is outside 0..{num_classes - 1}")
    return rows


class Files:
    """The files below a folder, by the paths that lists have for them; each folder is looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[tuple[str, bool], dict[str, str] | None] = {}

    def find(self, listed: str, any_ending: bool = False) -> str | None:
        """The path of a file as it is on the disk, with "/"; None where there is none.

        Backslashes may stand for "/", composed letters for others. any_ending: the list may leave ".jpg" out.
        """
        for path in dict.fromkeys((listed, listed.replace("\\", "/"))):
            *parents, name = [part for part in path.split("/") if part not in ("", ".")] or [""]
            folder = self._folder("/".join(parents))
            if folder is None:
                folder = self._folder("/".join(self._as_they_are(parents)))
            names = None if folder is None else self._there(folder, files=True)
            if names is None:
                continue
            found = names.get(name) or names.get(same_text(name))
            if found is None and any_ending:
                endings = [name + end for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper())]
                matches = [names[one] for one in endings if one in names]
                found = matches[0] if len(matches) == 1 else None
            if found is not None:
                return f"{folder}/{found}" if folder else found
        return None

    def _folder(self, path: str) -> str | None:
        return path if self._there(path, files=True) is not None else None

    def _as_they_are(self, parents: list[str]) -> list[str]:
        """The folders' names as they are on the disk, each found by its composed form."""
        found: list[str] = []
        for name in parents:
            there = self._there("/".join(found), files=False) or {}
            found.append(there.get(name) or there.get(same_text(name)) or name)
        return found

    def _there(self, folder: str, files: bool) -> dict[str, str] | None:
        """Names of the files or folders in one, by themselves and by their composed form; None: no such folder."""
        if (folder, files) not in self._names:
            there = None
            if _is_folder(self.root / folder):
                names = entries_of(self.root / folder)[0 if files else 1]
                there = {**{same_text(name): name for name in names}, **{name: name for name in names}}
            self._names[folder, files] = there
        return self._names[folder, files]


def locate(files: Files, source: Path, listed: Iterable[tuple[int, str]], base: str = "",
           any_ending: bool = False) -> list[str]:
    """The path below the data folder of every image that a list names, as it is on the disk.

    listed: (line number, path below `base`). any_ending: as for `Files.find`.
    Raises:
        UserError: one that lies elsewhere, or is absent.
    """
    listed = list(listed)
    for _, path in listed:
        require_plain_name(path)
    rows = [(number, path, inside(files.root, f"{base}/{path}" if base and not path.startswith("/") else path,
                                  f"{source}, line {number}")) for number, path in listed]
    found = [files.find(path, any_ending) for _, _, path in rows]
    absent = [row for row, path in zip(rows, found) if path is None]
    if absent:
        number, path, _ = absent[0]
        parent = files.root / path.rpartition("/")[0]
        reason = f"no file {files.root / path}" if _is_folder(parent) else f"no folder {parent}"
        reason = shown(reason if len(reason) < MAX_LINE else brief(reason))
        more = f" ({len(absent) - 1} more are listed but absent)" if len(absent) > 1 else ""
        raise UserError(f"{source}, line {number}: {shown(brief(path))} is listed but absent: {reason}{more}; "
                        "complete the data set or take the line out")
    return [path for path in found if path is not None]


def inside(root: Path, path: str, where: str) -> str:
    """A listed path as one below the data folder: absolute ones shortened, `a/../b` resolved.

    Raises:
        UserError: it leads out of the folder; a run's record could not name it.
    """
    plain = path.replace("\\", "/")
    if plain.startswith("/"):
        plain = os.path.relpath(plain, root)
    elif ".." not in plain.split("/") and not re.match("[A-Za-z]:/", plain):
        return path
    plain = posixpath.normpath(plain)
    if plain.startswith("..") or re.match("[A-Za-z]:/", plain):
        raise UserError(f"{where}: {shown(brief(path))} is not below {root}; list images by their path below the data "
                        "folder, and move or link there what lies elsewhere")
    return plain


def brief(text: str) -> str:
    """Of a long text begin and end, for a message."""
    return text if len(text) <= 100 else text[:60] + "…" + text[-20:]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a link that leads to itself
        return False
