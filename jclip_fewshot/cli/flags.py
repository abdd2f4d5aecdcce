"""Flags and TOML keys, made from the fields of the settings (config.py)."""

import argparse
import json
import re
import textwrap
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import msgspec

from jclip_fewshot import console
from jclip_fewshot.config import Config, checked
from jclip_fewshot.errors import UserError, flag_of, nearest

_GROUPS = ["arguments", "run", "data", "shots", "features", "method", "output", "machine"]  # in the help's order
OLD = ("heads", "tune", "label_free")  # flags before --methods; they go with the next version


def parse(config: type[Config], description: str, arguments: list[str] | None = None,
          program: str | None = None) -> tuple[Config, dict[str, Any]]:
    """Return the settings of a command line, and those of them that were given, by flag or file.

    program: what --help calls it; None: as it was started.
    Raise UserError if a --config file has an unknown key, a wrong type or a bad value; SystemExit after --help and
    --print-config (0), and for a flag that argparse does not know (2).
    """
    parser = _parser(config, description, program)
    flags = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    file, show = flags.pop("config", ""), flags.pop("print_config")
    given, names = {**(read_toml(file) if file else {}), **flags}, [f.name for f in fields(config)]
    console.verbose = given.get("verbose") is True  # from here on a mistake may be shown with its trace
    if "methods" in names:
        _rename_old(given)
    for name in given:
        if name not in names:
            raise UserError(f"--config {file}: unknown setting {name!r}{nearest(name, names)}")
    if "demo_seed" in given and ("demo_seed" in flags or "demo" not in given):  # a file's "demo = false" means it
        given["demo"] = True
    settings = checked(config, given)
    if show:
        print(to_toml(settings), end="")
        raise SystemExit(0)
    missing = [_called(f) for f in fields(config) if f.metadata["needed"] and not getattr(settings, f.name)]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return settings, given


def _parser(config: type, description: str, program: str | None) -> argparse.ArgumentParser:
    """A flag a field, in groups, with its default in the help; None where it is not used."""
    parser = argparse.ArgumentParser(program, description=description, formatter_class=Compact)
    parser.add_argument("--config", metavar="FILE.toml", help="read settings; flags win over the file")
    parser.add_argument("--print-config", action="store_true", help="print the settings as TOML and leave")
    for name in _GROUPS:
        inside = [f for f in fields(config) if f.metadata["group"] == name]
        group = parser.add_argument_group(name) if inside else parser
        for f in inside:
            _add_flag(group, f)
    for name in OLD if any(f.name == "methods" for f in fields(config)) else ():
        parser.add_argument(flag_of(name), help=argparse.SUPPRESS)
    named = [_called(f) for f in fields(config) if f.metadata["needed"] or f.metadata["group"] == "arguments"]
    usage = textwrap.fill(" ".join([parser.prog, *named, "[settings]"]), 50, subsequent_indent=" " * 4)
    parser.usage = usage.replace("%", "%%")
    return parser


def _add_flag(group: Any, f: Field) -> None:
    about, default, text = f.metadata, f.default, f.metadata["help"].replace("%", "%%")
    several, metavar = isinstance(default, tuple), about["metavar"]
    if about["group"] == "arguments":
        group.add_argument(f.name, nargs="?" if not about["needed"] else "+" if several else None, metavar=metavar,
                           help=text)
    elif isinstance(default, bool):
        group.add_argument(flag_of(f.name), action="store_true", default=None, help=text)
    else:
        shown = ", ".join(default) if isinstance(default, tuple) else str(default)
        many = {"nargs": about["count"]} if about["count"] else {"action": "append"} if several else {}
        group.add_argument(flag_of(f.name), **many, type=str if several else type(default), choices=about["choices"],
                           metavar=metavar, help=f"{text} [{shown}]" if shown else text)


def _called(f: Field) -> str:
    """A field as a line of usage has it: RUN, [RUN], IMAGE..., --suite FILE.npz."""
    name = f.metadata["metavar"] + ("..." if isinstance(f.default, tuple) else "")
    if f.metadata["group"] != "arguments":
        return f"{flag_of(f.name)} {name}"
    return name if f.metadata["needed"] else f"[{name}]"


def _rename_old(given: dict[str, Any]) -> None:
    """Turn the older flags into `methods`, with a line that says what to type."""
    old = {name: str(given.pop(name)) for name in OLD if name in given}
    if not old:
        return
    listed = " ".join(f"{flag_of(name)} {value}" for name, value in old.items())
    if "methods" in given:
        raise UserError(f"{listed}: --methods alone says which methods are fitted; leave the old flags out")
    from jclip_fewshot.methods import METHODS
    from jclip_fewshot.methods.plan import choose
    heads, tune, label_free = (old.get(name, "") for name in OLD)
    named = [word for word in heads.replace("default", "auto").split(",") if word] or ["auto"]
    if tune not in ("", "auto") and "auto" in named:  # the default ones without a tower
        rows = [name for name in choose("auto").names if not METHODS[name].asks_images]
        named = [name for word in named for name in (rows if word == "auto" else [word])]
    if tune not in ("auto", "off"):
        named += tune.split(",")
    given["methods"] = ",".join(filter(None, dict.fromkeys([*named, *label_free.split(",")])))
    console.warn(f"{listed} is now --methods: type --methods {given['methods']}")


class Compact(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal (or as COLUMNS says), up to where each flag takes one line."""

    def __init__(self, prog: str) -> None:
        width = max(40, min(110, console.columns()))
        super().__init__(prog, max_help_position=28 if width >= 80 else 20, width=width)

    def _fill_text(self, text: str, width: int, _: str) -> str:
        """Paragraphs are filled; indented lines, examples of commands, stay lines."""
        lines = re.sub(r"(?<=\S)\n(?=\S)", " ", text.strip()).split("\n")
        return "\n".join(textwrap.fill(line, width, subsequent_indent=" " * 8 if line.startswith(" ") else "",
                                       break_on_hyphens=False) for line in lines)


def read_toml(path: str) -> dict[str, Any]:
    """Return the settings of a flat TOML file. Raise UserError if it is absent, or no TOML."""
    try:
        return msgspec.toml.decode(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, nesting
        raise UserError(f"--config {path}: not TOML ({str(error)[:200]})") from None


def to_toml(settings: Any) -> str:
    """Return the settings as TOML, each with what it is for; read_toml gives them back."""
    lines = []
    for f in fields(settings):
        choices = ", ".join(filter(None, f.metadata["choices"] or ()))
        value = json.dumps(getattr(settings, f.name), ensure_ascii=False)  # its scalars and lists are TOML's too
        lines.append(f"# {f.metadata['help']}{choices and f' ({choices})'}\n{f.name} = {value}\n")
    return "".join(lines)
