"""One progress bar a stage, with rate and time left; silent where nobody looks."""

import sys
from typing import Iterable, Optional

from tqdm import tqdm

quiet = False  # set by --quiet


def progress(iterable: Optional[Iterable] = None, *, stage: str, unit: str, total: Optional[int] = None) -> tqdm:
    """A tqdm bar on standard error, hidden with --quiet or when that is no terminal."""
    hidden = quiet or not sys.stderr.isatty()
    return tqdm(iterable, desc=stage, unit=f" {unit}", total=total, disable=hidden,
                dynamic_ncols=True, leave=False, mininterval=0.2)
