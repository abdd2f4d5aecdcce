"""What a person sees while waiting: progress bars, lines and warnings, all on standard error."""

from __future__ import annotations

import sys
from typing import Iterable, Optional

from tqdm import tqdm

quiet = False  # set by --quiet: results and warnings alone
verbose = False  # set by --verbose: full error traces


def progress(iterable: Optional[Iterable] = None, *, stage: str, unit: str, total: Optional[int] = None) -> tqdm:
    """A tqdm bar with rate and time left, hidden with --quiet or where standard error is no terminal."""
    hidden = quiet or not sys.stderr.isatty()
    return tqdm(iterable, desc=stage, unit=f" {unit}", total=total, disable=hidden,
                dynamic_ncols=True, leave=False, mininterval=0.2)


def tell(text: str = "") -> None:
    """A line for the person who waits; none with --quiet."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line that must be seen, even with --quiet."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
