"""The answers as files: the contest's result.txt, the archive around it and the check of both; a CSV for the rest.

In result.txt a line a test image, `image_1.jpg 3 17 88 5 240`: the ids of its five most likely classes, best first.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jclip_fewshot.data.listing import CLASS_ID, MAX_DIGITS, PathLike, count_of, is_utf8, natural_key
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import open_zip
from jclip_fewshot.storage.files import atomic_write, require_writable, write_text

TOP = 5
_METHODS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA"}
MAX_BYTES = 64 << 20  # of a result.txt or the archive around it; a million images take about 40 MB


@dataclass(frozen=True)
class ResultCheck:
    """What is wrong with a submission file, what is unusual but harmless, and how many lines it has."""

    problems: list[str]
    notes: list[str]
    lines: int

    @property
    def ok(self) -> bool:
        return not self.problems


def require_target(path: PathLike, flag: str = "--result") -> None:
    """Finds out before the work whether a result can be written to `path`, and its archive beside it.

    Raises:
        UserError: no regular file's name, no writable folder, or the name of the archive itself.
    """
    path = Path(path)
    require_writable(path, flag)
    if path.suffix == ".zip":
        raise UserError(f"{flag} {path}: the result is a .txt file; the .zip is written beside it".lstrip())
    if path.suffix != ".csv":
        require_writable(path.with_suffix(".zip"), flag)


def answers_file(given: str, form: str, plain: bool, folder: PathLike = "") -> Path:
    """Where the answers go: as `given`, or result.txt for the contest and result.csv for other data sets.

    form: "txt", "csv", or "auto": by the name that is given, or else by the data set. folder: of a name not given.
    Raises:
        UserError: a name that does not end as the form says.
    """
    if not given:
        return Path(folder, "result.csv" if form == "csv" or form == "auto" and plain else "result.txt")
    if form != "auto" and (form == "csv") != (Path(given).suffix == ".csv"):
        raise UserError(f"--result {given} and --out {form}: only a CSV ends in .csv, and it always does")
    return Path(given)


def require_names(folder: PathLike, names: Sequence[str]) -> None:
    """Finds out before the work whether result.txt can hold the names of the test images.

    Raises:
        UserError: names the first that it cannot, and says why.
    """
    wrong = [(name, why) for name, why in ((name, _why_not(name)) for name in names) if why]
    if wrong:
        name, why = wrong[0]
        more = f" ({len(wrong) - 1} more such names)" if len(wrong) > 1 else ""
        raise UserError(f"{folder}: result.txt cannot hold the name {name!r}, which has {why}; rename it{more}")


def _why_not(name: str) -> str:
    """What keeps a name out of a line `name id id id id id`; "" for nothing."""
    if not is_utf8(name):
        return "bytes that are no UTF-8"
    for sign, word in ((",", "a comma"), ("\t", "a tab"), ("\n", "a line break"), ("\r", "a line break")):
        if sign in name:
            return word
    if any(sign < " " or "\x7f" <= sign < "\xa0" for sign in name) or name.startswith("\ufeff"):
        return "a control character"
    if name != " ".join(name.split()):
        return "a space at an end, two in a row, or one that is not the plain space"
    return ""


def move_aside(path: PathLike, ours: Iterable[Path]) -> Path | None:
    """Moves a file that equals none of `ours` out of the way, to result.previous.txt; returns where it lies now.

    Nothing is lost: where that name is taken, a number is added to it.
    """
    path = Path(path)
    if not path.is_file():
        return None
    content = path.read_bytes()
    for other in ours:
        if other.is_file() and other.stat().st_size == len(content) and other.read_bytes() == content:
            return None
    number = 1
    while True:
        aside = path.with_name(f"{path.stem}.previous{'' if number == 1 else f'-{number}'}{path.suffix}")
        if not aside.exists():
            os.replace(path, aside)
            return aside
        number += 1


def write_table(path: PathLike, files: Sequence[str], labels: Sequence[str], probability: Sequence[float]) -> Path:
    """Writes answers as a CSV of path, label and probability, in natural order, whole or not at all.

    files: N paths below the data folder. labels: the likeliest class of each. probability: (N,), NaN for an image that
    could not be read, whose cell stays empty.
    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "probability"])
    for file, label, sure in sorted(zip(files, labels, probability), key=lambda row: natural_key(row[0])):
        table.writerow([file, label, "" if sure != sure else f"{sure:.6f}"])
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return Path(path)


def write_result(path: PathLike, names: Sequence[str], top5: Sequence[Sequence[int]],
                 num_classes: int | None = None) -> Path:
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
    require_target(path, flag="")
    archive = path.with_suffix(".zip")
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
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
            raise UserError(f"cannot read {path}: no regular file, or more than {MAX_BYTES >> 20} MB")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not data.startswith(b"PK\x03\x04"):
        return _check_bytes(data, names, num_classes)
    try:
        with open_zip(io.BytesIO(data)) as archive:
            odd = next((_METHODS.get(one.compress_type, "a method of its own") for one in archive.infolist()
                        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), "")
            if odd:
                return ResultCheck([f"the archive is compressed by {odd}, which not every reader opens; make it with "
                                    "zip's own method, Deflate"], [], 0)
            inside = [_printable(name) for name in archive.namelist()[:100]]
            if inside != ["result.txt"]:
                return ResultCheck([f"the archive holds {', '.join(inside) or 'nothing'}; "
                                    "it must hold result.txt and nothing else"], [], 0)
            with archive.open("result.txt") as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                return ResultCheck([f"result.txt has more than {MAX_BYTES >> 20} MB"], [], 0)
            return _check_bytes(text, names, num_classes)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, NotImplementedError,
            RuntimeError, OSError) as error:
        return ResultCheck([f"the archive cannot be read: {_printable(str(error))}"], [], 0)


class _Problems:
    """What is wrong with a file, by kind, in the order of the kinds' first one; three of a kind are told."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, message: str) -> None:
        self.found.setdefault(kind, []).append(message)

    def told(self) -> list[str]:
        problems = []
        for messages in self.found.values():
            problems += messages[:3]
            if len(messages) > 3:
                problems[-1] += f" (and {len(messages) - 3} more of this kind)"
        return problems


def _check_bytes(data: bytes, names: Sequence[str], num_classes: int) -> ResultCheck:
    problems, notes = _Problems(), []
    if data.startswith(b"\xef\xbb\xbf"):
        problems.add("bom", "the file begins with a byte-order mark; save it as UTF-8 without one")
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = data[:error.start].count(b"\n") + 1
        return ResultCheck([*problems.told(), f"line {place}: not UTF-8 text"], [], 0)
    if "\r" in text:
        problems.add("crlf", "lines end in CR LF (Windows); they must end in LF alone")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and not text.endswith("\n"):
        notes.append("no newline at the end of the last line")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return ResultCheck(["the file is empty"], [], 0)
    known = set(names)
    first: dict[str, int] = {}  # the line of each image
    for number, line in enumerate(lines, 1):
        name, ids = _name_and_ids(line, number, known, min(TOP, num_classes), problems)
        if not name:
            continue
        if name in first:
            problems.add("again", f"line {number}: {_printable(name)} is on line {first[name]} already")
        elif name not in known:
            alone = PurePosixPath(name.replace("\\", "/")).name
            shown = _printable(name)
            problems.add("unknown", f"line {number}: {shown} has a folder; {alone} alone is right"
                         if alone in known else f"line {number}: {shown} is no test image")
        first.setdefault(name, number)
        _check_ids(ids, number, num_classes, problems)
    missing = sorted((name for name in known if name not in first), key=natural_key)
    for name in missing:
        problems.add("missing", f"no line for {name}")
    if not missing and "unknown" not in problems.found and list(first) != sorted(first, key=natural_key):
        notes.append("the images are not in natural order (image_2.jpg before image_10.jpg)")
    return ResultCheck(problems.told(), notes, len(lines))


def _name_and_ids(line: str, number: int, known: set[str], count: int, problems: _Problems) -> tuple[str, list[str]]:
    """An image's name and the ids behind it; "" for a line that holds none."""
    if not line.strip():
        problems.add("empty", f"line {number} is empty")
        return "", []
    for sign, word in (("\t", "tab"), (",", "comma")):
        if sign in line:
            problems.add(word, f"line {number}: a {word}; one space goes between name and ids")
    line = line.replace("\t", " ").replace(",", " ")
    if not line.strip():
        return "", []
    if line != " ".join(line.split()):
        problems.add("spaces", f"line {number}: exactly one space goes between name and ids, none at the ends")
    name, *ids = line.rsplit(None, count)
    if name not in known:  # too many ids, or no such image: only known names may hold spaces
        name, *ids = line.split()
    if number == 1 and name not in known and not any(CLASS_ID.fullmatch(text) for text in ids):
        problems.add("header", f"line 1 looks like a header ({_printable(line)!r}); the file has none")
        return "", []
    return name, ids


def _check_ids(ids: Sequence[str], number: int, num_classes: int, problems: _Problems) -> None:
    count = min(TOP, num_classes)
    if len(ids) != count:
        problems.add("count", f"line {number}: {count_of(len(ids), 'id')} instead of {count}")
    wrong = [text for text in ids if not CLASS_ID.fullmatch(text)]
    if wrong:
        problems.add("no id", f"line {number}: {_printable(wrong[0])!r} is no class id")
    outside = [text for text in ids if CLASS_ID.fullmatch(text)
               and (len(text) > MAX_DIGITS or int(text) >= num_classes)]
    if outside:
        problems.add("range", f"line {number}: id {_printable(outside[0])} is outside 0..{num_classes - 1}")
    double = [text for place, text in enumerate(ids) if text in ids[:place]]
    if double:
        problems.add("double", f"line {number}: id {_printable(double[0])} stands there more than once")


def _printable(text: str) -> str:
    """A text from outside for a message: no control characters, not too long."""
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text[:81])
    return text if len(text) <= 80 else text[:79] + "…"


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
