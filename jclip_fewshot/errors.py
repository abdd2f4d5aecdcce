"""A mistake that the user can correct: one line, no traceback, exit status 2."""

import difflib
from typing import Any

flags = False  # whether the command line runs, whose users know a parameter by its flag


class UserError(Exception):
    """A line that says what is wrong, where, and what to do; the scripts print it and leave with status 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """Return a text as one line that a terminal shows as it is: white space is one space, the rest escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                   for letter in " ".join(text.split()))


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def parameter(name: str) -> str:
    """Return what the user calls a parameter: `head_width` in Python, `--head-width` on the command line."""
    return flag_of(name) if flags else name


def nearest(name: str, known: Any) -> str:
    """Return `; did you mean 'shots'?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(name: str) -> str:
    """Return a name for a message: as it is where it prints, else with escapes."""
    return name if name.isprintable() else repr(name)
