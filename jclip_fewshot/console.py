"""What a person sees while waiting: progress, lines and warnings, all on standard error."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from typing import Any

from jclip_fewshot.errors import one_line

quiet = False  # set by --quiet: results and warnings alone
verbose = False  # set by --verbose: full error traces
LINE_SECONDS = 10.0  # between two lines where there is no terminal for a bar


def progress(iterable: Iterable | None = None, *, stage: str, unit: str, total: int | None = None,
             initial: int = 0) -> Any:
    """Return a bar with rate and time left, in a log lines; initial: how much of `total` was found in the cache."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    notebook = getattr(shell, "kernel", None) is not None
    if not quiet and not notebook and not sys.stderr.isatty():
        return _Lines(iterable, stage, unit, total, initial)
    from tqdm.auto import tqdm
    return tqdm(iterable, desc=stage, unit=f" {unit}", total=total, initial=initial, disable=quiet,
               dynamic_ncols=True, leave=False, mininterval=0.2)


class _Lines(AbstractContextManager):
    """What this package uses of tqdm, as lines of a log."""

    def __init__(self, iterable: Iterable | None, stage: str, unit: str, total: int | None, initial: int) -> None:
        self.n, self.total = initial, len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._iterable, self._stage, self._unit = iterable or (), stage, unit
        self._said = time.monotonic()
        self._since: tuple[float, int] | None = None  # when the rate is counted from, and what was done by then

    def __iter__(self) -> Iterator:
        for item in self._iterable:
            yield item
            self.update(1)

    def __exit__(self, *_: object) -> None:
        """There is no bar to take away."""

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if self._since is None and n:
            self._since = now, self.n  # the first took part in starting and compiling
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        line = f"{self._stage}: {self.n:,}{'' if self.total is None else f' of {self.total:,}'} {self._unit}"
        since, before = self._since or (now, self.n)
        if self.n > before and now > since:
            rate = (self.n - before) / (now - since)
            line += f", {rate:.3g} {self._unit}/s"
            line += "" if self.total is None else f", {duration((self.total - self.n) / rate)} left"
            self._since = now, self.n
        tell(line)


def duration(seconds: float) -> str:
    """Return seconds as 42 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def columns() -> int:
    """Return the width of the terminal, or what COLUMNS says; 80 without either."""
    return shutil.get_terminal_size().columns


def filled(text: str, indent: int = 0) -> str:
    """Return text as wide as the terminal; lines after the first are indented. Paths stay whole."""
    return textwrap.fill(text, max(columns(), indent + 20), subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False)


def tell(text: str = "") -> None:
    """Print a line, or lines, for the person who waits; none with --quiet."""
    if not quiet:
        print("\n".join(map(one_line, text.split("\n"))), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a line that must be seen, even with --quiet."""
    print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)
