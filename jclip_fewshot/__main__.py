"""python -m jclip_fewshot COMMAND: the table of commands; cli/commands.py holds what each does."""

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

import sys
import textwrap

from jclip_fewshot.cli import command, commands
from jclip_fewshot.console import columns
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.provenance import table_name

STARTS = """\
Few-shot image classification with CLIP, in Jittor. Three ways to start:

the contest         {name} train --data Dataset
                    {name} test
your own pictures   {name} train --data pictures  (a folder for each class)
                    {name} predict runs/NAME new_pictures
Python              from jclip_fewshot import FewShotClassifier
                    model = FewShotClassifier().fit(paths, labels)
                    model.predict(new_paths)

Without any data, train --demo and test --demo run the built-in small contest.
"""


def main() -> int:
    about = commands.SCRIPTS | {name: function.__doc__ or "" for name, function in commands.COMMANDS.items()}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"{STARTS.format(name=table_name())}\nusage: {table_name()} COMMAND [-h]\n")
        for name, said in about.items():
            print(textwrap.fill(f"  {name:10} {said}", min(110, columns()), subsequent_indent=" " * 13))
        return 0
    if sys.argv[1] not in about:
        raise UserError(f"no command {sys.argv[1]!r}{nearest(sys.argv[1], about)}; there are {', '.join(about)}")
    return commands.call(sys.argv[1], sys.argv[2:])


def console() -> None:
    """The console script jclip-fewshot."""
    command.run(main)


if __name__ == "__main__":
    console()
