"""Flags and TOML keys, made from the fields of the settings (config.py)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from dataclasses import fields
from typing import Any

from jclip_fewshot import console
from jclip_fewshot.config import Config, checked, flag_of
from jclip_fewshot.errors import UserError, nearest

_GROUPS = ["arguments", "run", "data", "shots", "features", "method", "output", "machine"]  # in the help's order
OLD = ("heads", "tune", "label_free")  # flags before --methods; they go with the next version


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """Add one flag a field, in groups, with its default in the help."""
    parser.add_argument("--config", metavar="FILE.toml", help="read settings; flags win over the file")
    parser.add_argument("--print-config", action="store_true", help="print the settings as TOML and leave")
    groups: dict[str, Any] = {}
    for f in sorted(fields(config), key=lambda f: _GROUPS.index(f.metadata["group"])):
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add_flag(groups[group], f)
    if _takes_methods(config):
        for name in OLD:
            parser.add_argument(flag_of(name), help=argparse.SUPPRESS)


def _add_flag(group: Any, f: dataclasses.Field) -> None:
    """The flag of one field, or the argument without one; the parser gives None where it is not used."""
    about, default, text = f.metadata, f.default, f.metadata["help"].replace("%", "%%")
    named = {"dest": f.name}
    if isinstance(default, tuple):
        shown = f" [{', '.join(default)}]" if default else ""
        many = {"nargs": about["count"]} if about["count"] else {"action": "append"}
    else:
        shown = "" if default == "" or about["needed"] or isinstance(default, bool) else f" [{default}]"
        many = {}
    if about["group"] == "arguments":
        count = "?" if not about["needed"] else "+" if isinstance(default, tuple) else None
        group.add_argument(f.name, nargs=count, metavar=about["metavar"], help=text)
    elif isinstance(default, bool):
        group.add_argument(flag_of(f.name), **named, action="store_true", default=None, help=text)
    else:
        kind = {int: int, float: float}.get(type(default), str)
        group.add_argument(flag_of(f.name), **named, **many, type=kind, choices=about["choices"], metavar=_metavar(f),
                           help=text + shown)


def _metavar(f: dataclasses.Field) -> str | None:
    if f.metadata["choices"] and not f.metadata["metavar"]:
        return "|".join(choice for choice in f.metadata["choices"] if choice)
    return f.metadata["metavar"]


def parse(config: type[Config], description: str, arguments: list[str] | None = None,
          program: str | None = None) -> Config:
    """Return the settings of a command line. program: what --help calls it; None: as it was started.

    Raise UserError if a --config file has an unknown key, a wrong type or a bad value; SystemExit after --help and
    --print-config (0), and for a flag that argparse does not know (2).
    """
    return parse_given(config, description, arguments, program)[0]


def parse_given(config: type[Config], description: str, arguments: list[str] | None = None,
                program: str | None = None) -> tuple[Config, dict[str, Any]]:
    """Return the same, and those of the settings that were given, by flag or file, rather than left at defaults."""
    parser = argparse.ArgumentParser(program, description=description, formatter_class=Compact)
    parser.usage = _usage(parser.prog, config)
    add_flags(parser, config)
    flags = vars(parser.parse_args(arguments))
    file, show = flags.pop("config"), flags.pop("print_config")
    given = read_toml(file, config) if file else {}
    given.update({name: value for name, value in flags.items() if value is not None})
    console.verbose = given.get("verbose") is True  # from here on a mistake may be shown with its trace
    _rename_old(given)
    for f in fields(config):
        implied = f.metadata["implies"]
        if f.name in given and implied and (flags.get(f.name) is not None or given.get(implied) is not False):
            given[implied] = True  # a file that says "demo = false" means it
    settings = checked(config, given)
    if show:
        print(to_toml(settings), end="")
        raise SystemExit(0)
    missing = [_called(f) for f in fields(config) if f.metadata["needed"] and not getattr(settings, f.name)]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return settings, given


def _usage(program: str, config: type) -> str:
    """The line of usage: "RUN IMAGE... [settings]"."""
    shown = [f for f in fields(config) if f.metadata["needed"] or f.metadata["group"] == "arguments"]
    several = ["..." if isinstance(f.default, tuple) else "" for f in shown]
    said = [f"{_called(f)}{dots}" if f.metadata["needed"] else f"[{_called(f)}]" for f, dots in zip(shown, several)]
    return "\n    ".join(textwrap.wrap(" ".join([program, *said, "[settings]"]), 50)).replace("%", "%%")


def _called(f: dataclasses.Field) -> str:
    """A field as a line of usage has it: RUN, --suite FILE.npz."""
    metavar = f.metadata["metavar"] or f.name
    return metavar if f.metadata["group"] == "arguments" else f"{flag_of(f.name)} {metavar}"


def _takes_methods(config: type) -> bool:
    return any(f.name == "methods" for f in fields(config))


def _rename_old(given: dict[str, Any]) -> None:
    """Turn the older flags into `methods`, with a line that says what to type."""
    old = {name: given.pop(name) for name in OLD if name in given}
    if not old:
        return
    listed = " ".join(f"{flag_of(name)} {value}" for name, value in old.items())
    if "methods" in given:
        raise UserError(f"{listed}: --methods alone says which methods are fitted; leave the old flags out")
    given["methods"] = methods_of(**{name: str(value) for name, value in old.items()})
    console.warn(f"{listed} is now --methods: type --methods {given['methods']}")


def methods_of(heads: str = "", tune: str = "auto", label_free: str = "") -> str:
    """Return what `--methods` takes for `--heads`, `--tune` and `--label-free` of before."""
    from jclip_fewshot.methods import METHODS
    from jclip_fewshot.methods.plan import choose
    named = [word for word in heads.replace("default", "auto").split(",") if word] or ["auto"]
    if tune != "auto" and "auto" in named:  # the default ones without a tower
        rows = [name for name in choose("auto").names if not METHODS[name].asks_images]
        named = [name for word in named for name in (rows if word == "auto" else [word])]
    if tune not in ("auto", "off"):
        named += tune.split(",")
    return ",".join(dict.fromkeys([*named, *(word for word in label_free.split(",") if word)]))


class Compact(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal (or as COLUMNS says), up to where each flag takes one line."""

    def __init__(self, prog: str) -> None:
        width = max(40, min(110, console.columns()))
        super().__init__(prog, max_help_position=28 if width >= 80 else 20, width=width)

    def _fill_text(self, text: str, width: int, _: str) -> str:
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
    """Return the settings of a flat TOML file.

    Raise UserError if there is no such file, it is no TOML, or has an unknown key.
    """
    try:
        import tomllib
    except ImportError:  # before Python 3.11
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, nesting
        raise UserError(f"--config {path}: not TOML ({str(error)[:200]})") from None
    known = {f.name for f in fields(config)} | (set(OLD) if _takes_methods(config) else set())
    for name in values:
        if name not in known:
            raise UserError(f"--config {path}: unknown setting {name!r}{nearest(name, known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def to_toml(settings: Any) -> str:
    """Return the settings as TOML, each with what it is for; read_toml gives them back."""
    lines = []
    for f in fields(settings):
        choices = ", ".join(filter(None, f.metadata["choices"] or ()))
        value = json.dumps(getattr(settings, f.name), ensure_ascii=False)  # its scalars and lists are TOML's too
        lines.append(f"# {f.metadata['help']}{choices and f' ({choices})'}\n{f.name} = {value}\n")
    return "".join(lines)
