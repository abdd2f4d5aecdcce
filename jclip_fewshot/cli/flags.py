"""Flags and TOML keys, made from the fields of the settings (config.py)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from dataclasses import fields
from typing import Any

from jclip_fewshot import console
from jclip_fewshot.config import Config, checked
from jclip_fewshot.errors import UserError, nearest

_GROUPS = ["run", "data", "shots", "features", "method", "output", "machine"]  # in the help's order


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """One flag a field, in groups, with its default in the help."""
    parser.add_argument("--config", metavar="FILE.toml", help="read settings; flags win over the file")
    parser.add_argument("--print-config", action="store_true", help="print the settings as TOML and leave")
    groups: dict[str, Any] = {}
    ordered = sorted(fields(config), key=lambda f: _GROUPS.index(f.metadata["group"]))
    for f in ordered:
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        add_flag(groups[group], f)


def add_flag(group: Any, f: dataclasses.Field, default: Any = None) -> None:
    """The flag of one field; what the parser gives where it is not used is `default`."""
    flag = "--" + f.name.replace("_", "-")
    text = f.metadata["help"]
    if isinstance(f.default, bool):
        group.add_argument(flag, dest=f.name, action="store_true", default=default, help=text)
        return
    if isinstance(f.default, tuple):
        shown = f" [{', '.join(f.default)}]" if f.default else ""
        group.add_argument(flag, dest=f.name, action="append", default=default, metavar=_metavar(f), help=text + shown)
        return
    shown = "" if f.default == "" else f" [{f.default}]"
    group.add_argument(flag, dest=f.name, type=whole if isinstance(f.default, int) else str, default=default,
                       choices=f.metadata["choices"], metavar=_metavar(f), help=text + shown)


def whole(text: str) -> int:
    """A whole number, as an argparse type."""
    if len(text) > 20:  # int() takes time squared in the digits, and refuses thousands
        raise argparse.ArgumentTypeError(f"a number of {len(text)} digits")
    return int(text)


whole.__name__ = "int"  # argparse names the type in its message


def _metavar(f: dataclasses.Field) -> str | None:
    if f.metadata["choices"] and not f.metadata["metavar"]:
        return "|".join(choice for choice in f.metadata["choices"] if choice)
    return f.metadata["metavar"]


def parse(config: type[Config], description: str, arguments: list[str] | None = None,
          program: str | None = None) -> Config:
    """Command line → frozen settings. program: what --help calls it; None: as it was started.

    Raises:
        UserError: a --config file with an unknown key, a wrong type or a bad value.
        SystemExit: --help and --print-config (0), a flag that argparse does not know (2).
    """
    return parse_given(config, description, arguments, program)[0]


def parse_given(config: type[Config], description: str, arguments: list[str] | None = None,
                program: str | None = None) -> tuple[Config, dict[str, Any]]:
    """The same, and those of the settings that were given, by flag or file, rather than left at their defaults."""
    parser = argparse.ArgumentParser(program, description=description, formatter_class=Compact,
                                     usage="%(prog)s [settings]")
    add_flags(parser, config)
    flags = vars(parser.parse_args(arguments))
    file, show = flags.pop("config"), flags.pop("print_config")
    given = read_toml(file, config) if file else {}
    given.update({name: value for name, value in flags.items() if value is not None})
    console.verbose = given.get("verbose") is True  # from here on a mistake may be shown with its trace
    for f in fields(config):
        implied = f.metadata["implies"]
        if f.name in given and implied and (flags.get(f.name) is not None or given.get(implied) is not False):
            given[implied] = True  # a file that says "demo = false" means it
    settings = checked(config, given)
    if show:
        print(to_toml(settings), end="")
        raise SystemExit(0)
    return settings, given


class Compact(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal (or as COLUMNS says), up to where each flag takes one line."""

    def __init__(self, prog: str) -> None:
        width = max(40, min(110, console.columns()))
        super().__init__(prog, max_help_position=28 if width >= 80 else 20, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled; indented lines, examples of commands, stay lines."""
        filled = []
        for paragraph in text.strip().split("\n\n"):
            if not paragraph.startswith(" "):
                filled.append(textwrap.fill(paragraph, width))
                continue
            filled.append("\n".join(textwrap.fill(line, width, subsequent_indent=" " * 8, break_on_hyphens=False)
                                    if len(line) > width else line for line in paragraph.split("\n")))
        return "\n\n".join(filled)


def read_toml(path: str, config: type) -> dict[str, Any]:
    """The settings of a flat TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown key.
    """
    try:
        import tomllib
    except ImportError:  # before Python 3.11
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}")
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, nesting
        raise UserError(f"--config {path}: not TOML ({str(error)[:200]})")
    known = {f.name for f in fields(config)}
    for name in values:
        if name not in known:
            raise UserError(f"--config {path}: unknown setting {name!r}{nearest(name, known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def to_toml(settings: Any) -> str:
    """The settings as TOML, each with what it is for; read_toml gives them back."""
    lines = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, tuple):
            text = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, str):
            # TOML's basic strings; JSON's escapes are a subset of theirs
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = repr(value)
        lines.append(f"# {_comment(f)}\n{f.name} = {text}\n")
    return "".join(lines)


def _comment(f: dataclasses.Field) -> str:
    """What a setting is for, and what it may be."""
    choices = f.metadata["choices"]
    return f.metadata["help"] + (f" ({', '.join(choice for choice in choices if choice)})" if choices else "")
