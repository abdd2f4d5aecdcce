"""python -m jclip_fewshot predict: a run's answers to any pictures, as they come."""

from __future__ import annotations

import argparse
import csv
import glob
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Iterable, Iterator, List, Sequence, TextIO

import numpy as np

from jclip_fewshot.console import warn
from jclip_fewshot.data.decode import SUFFIXES
from jclip_fewshot.errors import UserError
from jclip_fewshot.tuning.plan import tuned_rows

AT_ONCE = 64  # pictures that are encoded together; from a pipe they are answered as soon as so many came
NONE_OF_THESE = "(none of these)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes beside the machine's flags."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("images", nargs="+", metavar="IMAGE",
                        help="files, folders, patterns like 'a/*.jpg'; - reads names from standard input")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes an image, best first [5]")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object a line")
    form.add_argument("--csv", action="store_true", help="comma-separated, with a header")
    parser.add_argument("--reject", type=float, default=0.0, metavar="P",
                        help=f"say {NONE_OF_THESE} where the first class has a probability below P [0]")
    parser.add_argument("--refine", action="store_true", help="answer all pictures together, at the end")


def listed(arguments: Sequence[str], names: TextIO = sys.stdin) -> Iterator[str]:
    """The pictures that the arguments name, one after the other; folders with all that is in them.

    Raises:
        UserError: a name or a pattern that leads to no file.
    """
    for argument in arguments:
        if argument == "-":
            yield from (line.rstrip("\r\n") for line in names if line.strip())
        elif Path(argument).is_dir():
            found = sorted(str(path) for path in Path(argument).rglob("*")
                           if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."))
            if not found:
                raise UserError(f"{argument}: no picture in this folder ({', '.join(SUFFIXES)})")
            yield from found
        elif Path(argument).exists():
            yield argument
        else:
            found = sorted(glob.glob(argument, recursive=True))
            if not found:
                raise UserError(f"{argument}: no such file, folder or pattern")
            yield from listed(found)


def chunks(paths: Iterable[str], size: int = AT_ONCE) -> Iterator[List[str]]:
    """Lists of `size` paths, the last one shorter."""
    paths = iter(paths)
    while True:
        chunk = list(islice(paths, size))
        if not chunk:
            return
        yield chunk


class Printer:
    """Writes answers to standard output, a line an image, in one of three forms."""

    def __init__(self, class_names: Sequence[str], top: int, reject: float, form: str) -> None:
        self.class_names, self.top, self.reject, self.form = class_names, min(top, len(class_names)), reject, form
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        if form == "csv":
            pairs = [f"{what}{place}" for place in range(1, self.top + 1) for what in ("class", "probability")]
            self._csv.writerow(["image", *pairs])

    def write(self, path: str, probs: np.ndarray) -> None:
        """probs (K,)."""
        best = np.argsort(-probs, kind="stable")[:self.top]
        answers = [(self.class_names[k], float(probs[k])) for k in best]
        if answers[0][1] < self.reject:
            answers.insert(0, (NONE_OF_THESE, 1 - answers[0][1]))
            answers = answers[:self.top]
        if self.form == "json":
            print(json.dumps({"image": path, "answers": [{"class": name, "probability": round(p, 6)}
                                                         for name, p in answers]}, ensure_ascii=False))
        elif self.form == "csv":
            self._csv.writerow([path, *(cell for name, p in answers for cell in (name, f"{p:.6f}"))])
        else:
            print(path, *(f"{name} {100 * p:.1f} %" for name, p in answers), sep="\t")
        sys.stdout.flush()


def answer(pipeline, source, paths: Iterable[str], printer: Printer, refine: bool) -> int:
    """Answers and prints every picture; names those that cannot be read.

    Returns:
        0; 1 where some could not be read.
    Raises:
        UserError: none could be read.
    """
    read, unreadable = 0, 0
    for chunk in chunks(paths, sys.maxsize if refine else AT_ONCE):
        rows, bad = source.images(Path(), chunk)
        for index, reason in bad.items():
            warn(f"{chunk[index]} cannot be read ({reason})")
        good = [index for index in range(len(chunk)) if index not in bad]
        read, unreadable = read + len(good), unreadable + len(bad)
        if not good:
            continue
        answers = pipeline.answer(rows[good], "auto" if refine else "off",
                                  tuned_rows(source, Path(), [chunk[index] for index in good]))
        for index, probs in zip(good, answers.final):
            printer.write(chunk[index], probs)
    if not read:
        raise UserError(f"none of the {unreadable} pictures could be read" if unreadable else "no picture was named")
    return 1 if unreadable else 0
