"""The answers as files: the contest's result.txt, the archive around it and the check of both; a CSV for the rest.

In result.txt a line a test image, `image_1.jpg 3 17 88 5 240`: the ids of its five most likely classes, best first.
"""

import csv
import io
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jclip_fewshot.data.listing import CLASS_ID, PathLike, brief, count_of, natural_key, some
from jclip_fewshot.errors import UserError, shown
from jclip_fewshot.storage.arrays import open_zip
from jclip_fewshot.storage.files import atomic_write, require_writable, write_text

TOP = 5
MAX_BYTES = 64 << 20  # of a result.txt or the archive around it; a million images take about 40 MB
# what a name in a line `name id id id id id` cannot have
REFUSED = {"[\ud800-\udfff]": "bytes that are no UTF-8", ",": "a comma", "\t": "a tab", "[\n\r]": "a line break",
           "[\x00-\x1f\x7f-\x9f]|^\ufeff": "a control character",
           r"^\s|\s$|\s\s|[^\S ]": "a space at an end, two in a row, or one that is not the plain space"}


@dataclass(frozen=True)
class ResultCheck:
    """What is wrong with a submission file, what is unusual but harmless, and how many images have a line."""

    problems: list[str]
    notes: list[str]
    lines: int


def require_target(path: PathLike) -> None:
    """Raise UserError if a result cannot be written to `path`, or its archive beside it."""
    path = Path(path)
    require_writable(path, "--result")
    if path.suffix == ".zip":
        raise UserError(f"--result {path}: the result is a .txt file; the .zip is written beside it")
    if path.suffix != ".csv":
        require_writable(path.with_suffix(".zip"), "--result")


def answers_file(given: str, form: str, plain: bool, folder: PathLike = "") -> Path:
    """Return where the answers go: as `given`, or result.txt in `folder` for the contest, result.csv for the rest.

    form: "txt", "csv", or "auto". Raise UserError if the name does not end as the form says.
    """
    if not given:
        return Path(folder, "result.csv" if form == "csv" or form == "auto" and plain else "result.txt")
    if form != "auto" and (form == "csv") != (Path(given).suffix == ".csv"):
        raise UserError(f"--result {given} and --out {form}: only a CSV ends in .csv, and it always does")
    return Path(given)


def require_names(folder: PathLike, names: Sequence[str]) -> None:
    """Raise UserError if result.txt cannot hold the names of the test images: the first such, and why."""
    wrong = [(name, what) for name in names for sign, what in REFUSED.items() if re.search(sign, name)]
    if wrong:
        name, what = wrong[0]
        others = len({name for name, _ in wrong}) - 1
        more = f" ({others} more such names)" if others else ""
        raise UserError(f"{folder}: result.txt cannot hold the name {name!r}, which has {what}; rename it{more}")


def move_aside(path: PathLike, ours: Iterable[Path]) -> Path | None:
    """Move a file that equals none of `ours` to result.previous.txt, or such a name with a number; return its place."""
    path = Path(path)
    if not path.is_file():
        return None
    content = path.read_bytes()
    if any(other.is_file() and other.read_bytes() == content for other in ours):
        return None
    number, aside = 1, path.with_name(f"{path.stem}.previous{path.suffix}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.stem}.previous-{number}{path.suffix}")
    os.replace(path, aside)
    return aside


def write_csv(path: PathLike, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def write_table(path: PathLike, files: Sequence[str], labels: Sequence[str], probability: Sequence[float]) -> None:
    """Write N answers as a CSV of path, likeliest label and its probability (empty for NaN), in natural order."""
    rows = sorted(zip(files, labels, probability), key=lambda row: natural_key(row[0]))
    write_csv(path, ["path", "label", "probability"],
              [[file, label, "" if math.isnan(sure) else f"{sure:.6f}"] for file, label, sure in rows])


def write_result(path: PathLike, names: Sequence[str], top5: Sequence[Sequence[int]], num_classes: int) -> Path:
    """Write a submission in natural order, read it back and zip it beside, as result.txt; return the archive's path.

    Both are written whole or not at all, and the same result makes the same bytes. An archive that stood there is
    removed first, so that it never disagrees with the text. top5: (N, min(5, K)) class ids, best first. num_classes: K.
    Raise ValueError for names and ids that make no valid submission, OSError if a file cannot be written.
    """
    path = Path(path)
    require_target(path)
    archive = path.with_suffix(".zip")
    lines = sorted(zip(names, top5, strict=True), key=lambda line: natural_key(line[0]))
    text = "".join(" ".join([name, *map(str, row)]) + "\n" for name, row in lines).encode("utf-8")
    check = _check_bytes(text, names, num_classes)
    if check.problems:
        raise ValueError("no valid submission: " + "; ".join(check.problems))
    archive.unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(text)
    if path.read_bytes() != text:
        raise UserError(f"{path} does not read back as it was written; is the disk full or failing?")
    entry = zipfile.ZipInfo("result.txt")  # dated 1980: the same text makes the same bytes
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    with atomic_write(archive) as file, zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr(entry, text)
    return archive


def check_result(path: PathLike, names: Sequence[str], num_classes: int) -> ResultCheck:
    """Find everything that is wrong with a submission file (.txt, or the .zip around it) for the N test images.

    A line is `name id id id id id` with single spaces and LF, min(5, K) different ids of 0..K-1, one for each image.
    Notes: an order other than the natural one, no newline at the end. Raise UserError if the file is absent.
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
            there = archive.namelist()
            if there != ["result.txt"]:
                return ResultCheck([f"the archive holds {some([shown(brief(name)) for name in there]) or 'nothing'}; "
                                    "it must hold result.txt and nothing else"], [], 0)
            with archive.open("result.txt") as file:
                text = file.read(MAX_BYTES + 1)
                if len(text) > MAX_BYTES:
                    raise ValueError(f"result.txt has more than {MAX_BYTES >> 20} MB")
    except Exception as error:  # whatever zipfile and its decompressors raise on a damaged archive
        return ResultCheck([f"the archive cannot be read: {shown(brief(str(error)))}"], [], 0)
    return _check_bytes(text, names, num_classes)


def _check_bytes(data: bytes, names: Sequence[str], num_classes: int) -> ResultCheck:
    known = dict.fromkeys(names, 0)  # image: its line
    notes: list[str] = []
    problems: dict[str, list[str]] = {}  # by their kind, in the order of the kinds' first one
    for kind, said in _problems(data, known, num_classes):
        problems.setdefault(kind, []).append(said)
    for found in problems.values():  # three of a kind are told
        if len(found) > 3:
            found[2:] = [f"{found[2]} (and {len(found) - 3} more of this kind)"]
    if not data.endswith(b"\n"):
        notes.append("no newline at the end of the last line")
    order = sorted(known, key=known.__getitem__)
    if not problems and order != sorted(order, key=natural_key):
        notes.append("the images are not in natural order (image_2.jpg before image_10.jpg)")
    return ResultCheck([said for found in problems.values() for said in found], notes,
                       sum(number > 0 for number in known.values()))


def _problems(data: bytes, known: dict[str, int], num_classes: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong (its kind, and what to say), and note each image's line in `known`."""
    if data.startswith(b"\xef\xbb\xbf"):
        yield "bom", "the file begins with a byte-order mark; save it as UTF-8 without one"
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = data[:error.start].count(b"\n") + 1
        yield "text", f"line {place}: not UTF-8 text"
        return
    if not text:
        yield "empty", "the file is empty"
        return
    if "\r" in text:
        yield "crlf", "lines end in CR LF (Windows); they must end in LF alone"
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        for kind, said in _line_problems(line, number, known, num_classes):
            yield kind, f"line {number}{said}"
    for name in sorted((name for name, number in known.items() if not number), key=natural_key):
        yield "missing", f"no line for {name}"


def _line_problems(line: str, number: int, known: dict[str, int], num_classes: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a line (its kind, and what to say), and note its number in `known`."""
    for sign, word in (("\t", "tab"), (",", "comma")):
        if sign in line:
            yield word, f": a {word}; one space goes between name and ids"
    line = line.replace("\t", " ").replace(",", " ")
    if not line.strip():
        yield "empty", " is empty"
        return
    if line != " ".join(line.split()):
        yield "spaces", ": exactly one space goes between name and ids, none at the ends"
    count = min(TOP, num_classes)
    name, *ids = line.rsplit(None, count)
    if name not in known:  # too many ids, or no such image: only known names may hold spaces
        name, *ids = line.split()
    said = shown(brief(name))
    if name not in known and number == 1 and not any(map(CLASS_ID.fullmatch, ids)):
        yield "header", f" looks like a header ({brief(line)!r}); the file has none"
        return
    if name not in known:
        alone = PurePosixPath(name.replace("\\", "/")).name
        yield "unknown", f": {said} has a folder; {alone} alone is right" if alone in known else \
            f": {said} is no test image"
    elif known[name]:
        yield "again", f": {said} is on line {known[name]} already"
    else:
        known[name] = number
    if len(ids) != count:
        yield "count", f": {count_of(len(ids), 'id')} instead of {count}"
    wrong = [text for text in ids if not CLASS_ID.fullmatch(text)]
    if wrong:
        yield "no id", f": {brief(wrong[0])!r} is no class id"
    outside = [text for text in ids if text not in wrong and int(text) >= num_classes]
    if outside:
        yield "range", f": id {outside[0]} is outside 0..{num_classes - 1}"
    double = [text for place, text in enumerate(ids) if text in ids[:place]]
    if double:
        yield "double", f": id {shown(brief(double[0]))} stands there more than once"
