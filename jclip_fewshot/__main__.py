"""python -m jclip_fewshot COMMAND: the table of commands; cli/commands.py holds what each does."""

from __future__ import annotations

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

import sys
import textwrap

from jclip_fewshot.cli import command, commands
from jclip_fewshot.console import columns
from jclip_fewshot.errors import UserError, nearest

COMMANDS = {
    "train": commands.train, "test": commands.test, "predict": commands.predict, "runs": commands.history,
    "report": commands.report, "export": commands.export, "check": commands.check, "validate": commands.validate,
    "evaluate": commands.evaluate, "convert": commands.convert, "cache": commands.cache, "doctor": commands.doctor,
    "build": commands.build}


def main() -> int:
    width = min(110, columns())
    names = "\n".join(textwrap.fill(f"  {name:10} {function.__doc__}", width, subsequent_indent=" " * 13)
                      for name, function in COMMANDS.items())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: {commands.PROGRAM} COMMAND [-h]\n\n{names}\n\nThe main job: train, then test.")
        return 0 if len(sys.argv) > 1 else 2
    if sys.argv[1] not in COMMANDS:
        raise UserError(f"no command {sys.argv[1]!r}{nearest(sys.argv[1], COMMANDS)}; there are {', '.join(COMMANDS)}")
    return COMMANDS[sys.argv[1]](sys.argv[2:])


def console() -> None:
    """The console script jclip-fewshot."""
    command.run(main)


if __name__ == "__main__":
    console()
