"""What a format is asked for, and how sure one is of a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Sure(NamedTuple):
    """How well a folder fits a format: 3 by files that no other has, 2 by what they hold, 1 by its folders; and why."""

    much: int
    why: str


@dataclass(frozen=True)
class Wanted:
    """board: "A" or "B" of the contest. domains: a class name's part before the first underscore is its domain,
    whatever the layout. labelled: training images are asked for. labels: the file of the labels, where it is named."""

    board: str = "A"
    domains: bool = False
    labelled: bool = True
    labels: Path | None = None
