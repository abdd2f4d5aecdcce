"""Flags and TOML keys, made from the fields of the settings (config.py)."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import fields
from typing import Any, Dict, List, Optional, Type

from jclip_fewshot.config import Config, checked
from jclip_fewshot.errors import UserError, nearest

_GROUPS = ["run", "data", "shots", "features", "method", "output", "machine"]  # in the help's order


def add_flags(parser: argparse.ArgumentParser, config: Type) -> None:
    """One flag a field, in groups, with its default in the help."""
    parser.add_argument("--config", metavar="FILE.toml", help="read settings; flags win over the file")
    parser.add_argument("--print-config", action="store_true", help="print the settings as TOML and leave")
    groups: Dict[str, Any] = {}
    ordered = sorted(fields(config), key=lambda f: _GROUPS.index(f.metadata["group"]))
    for f in ordered:
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        flag = "--" + f.name.replace("_", "-")
        text = f.metadata["help"]
        if isinstance(f.default, bool):
            groups[group].add_argument(flag, dest=f.name, action="store_true", default=None, help=text)
            continue
        shown = "" if f.default == "" else f" [{f.default}]"
        groups[group].add_argument(flag, dest=f.name, type=type(f.default), default=None,
                                   choices=f.metadata["choices"], metavar=_metavar(f), help=text + shown)


def _metavar(f: dataclasses.Field) -> Optional[str]:
    if f.metadata["choices"]:
        return "|".join(choice for choice in f.metadata["choices"] if choice)
    return f.metadata["metavar"]


def parse(config: Type[Config], description: str, arguments: Optional[List[str]] = None, **fixed: Any) -> Config:
    """Command line → frozen settings. `fixed` overrides the defaults below file and flags.

    Raises:
        UserError: a --config file with an unknown key, a wrong type or a bad value.
        SystemExit: --help and --print-config (0), a flag that argparse does not know (2).
    """
    parser = argparse.ArgumentParser(usage="%(prog)s [FLAG VALUE ...]", description=description,
                                     formatter_class=_Compact)
    add_flags(parser, config)
    given = vars(parser.parse_args(arguments))
    file, show = given.pop("config"), given.pop("print_config")
    values = dict(fixed)
    if file:
        values.update(read_toml(file, config))
    values.update({name: value for name, value in given.items() if value is not None})
    settings = checked(config, values)
    if show:
        print(to_toml(settings), end="")
        raise SystemExit(0)
    return settings


class _Compact(argparse.RawDescriptionHelpFormatter):
    """Wide enough that each flag takes one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def read_toml(path: str, config: Type) -> Dict[str, Any]:
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
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--config {path}: not TOML ({error})")
    known = {f.name for f in fields(config)}
    for name in values:
        if name not in known:
            raise UserError(f"--config {path}: unknown setting {name!r}{nearest(name, known)}")
    return values


def to_toml(settings: Any) -> str:
    """The settings as TOML; read_toml gives them back."""
    lines = []
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, str):
            # TOML's basic strings; JSON's escapes are a subset of theirs
            import json
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = repr(value)
        lines.append(f"{name} = {text}\n")
    return "".join(lines)
