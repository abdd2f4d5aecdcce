"""The JSON records of a run, checked as they are read: nothing in them is trusted.

    record.json     train.py       load_record
    test_A.json     test.py        load_test_record
    validate.json   validate       load_validation

A checked record has every key that the program reads, each of the type, range and length that it needs. Keys that
are not named here may be there too, so that a newer run still reads. Whatever becomes a file name is one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jclip_fewshot.errors import UserError, shown

MAX_BYTES = 64 << 20  # a record of 374 classes has about 0.2 MB
MAX_DEPTH = 24  # lists and objects inside each other
MAX_DIGITS = 400  # of a number

Where = str
Check = Callable[[Any, Where], None]  # raises _Wrong


class _Wrong(Exception):
    """What stands where, and what is needed there."""

    def __init__(self, where: Where, needed: str):
        super().__init__(f"{shown(where) or 'the whole'} must be {needed}")


def encoders_of(encoder: dict) -> list[dict]:
    """What a record's "encoder" says of each: the first one's entries without the others in it, then theirs."""
    first = {key: value for key, value in encoder.items() if key != "others"}
    return [first, *encoder.get("others", [])]


def load_record(path: str | Path) -> dict:
    """A run's record.json, checked.

    Raises:
        UserError: absent, unreadable, not JSON, or a key is missing or odd.
    """
    return _load(Path(path), _RECORD, "train again")


def load_test_record(path: str | Path) -> dict:
    """A test run's test_A.json, checked.

    Raises:
        UserError: as `load_record`.
    """
    return _load(Path(path), _TEST, "run test.py again")


def load_validation(path: str | Path) -> dict:
    """A validate.json, checked; the keys of its curve stay text.

    Raises:
        UserError: as `load_record`.
    """
    return _load(Path(path), _VALIDATION, "validate again")


def is_file_name(name: str) -> bool:
    """Whether a text is safe as a part of a file's name: one component, printable, not too long."""
    return (0 < len(name.encode("utf-8", "surrogateescape")) <= 100 and name.isprintable()
            and not re.search(r'[/\\:*?"<>|]', name) and name.strip(" .") == name)


def read_json(path: Path) -> dict:
    """A JSON object of bounded size and depth, its texts valid, its numbers finite or NaN by name.

    Raises:
        UserError: absent, unreadable, not JSON, no object.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_BYTES:
            raise UserError(f"{path}: no record, but {size:,} bytes or no regular file")
        content = json.loads(path.read_bytes().decode("utf-8"), parse_int=_whole, parse_float=_real)
        _require_valid(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise UserError(f"{path}: lists inside lists, more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    except _Wrong as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no JSON object")
    return content


def _load(path: Path, check: Check, remedy: str) -> dict:
    content = read_json(path)
    try:
        check(content, "")
    except _Wrong as error:
        raise UserError(f"{path} is damaged or of another version: {error}; {remedy}") from None
    return content


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _require_valid(content: Any) -> None:
    """Not too deep, and every text such as can be printed, written, and used in a path."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _Wrong("its depth", f"{MAX_DEPTH} at most")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str):
            value.encode("utf-8")  # a lone surrogate raises ValueError
            if "\0" in value:
                raise _Wrong(repr(value[:20]), "free of NUL")


# What a value may be: each function checks one, or makes a check of what is inside.


def _text(value: Any, where: Where) -> None:
    if not isinstance(value, str):
        raise _Wrong(where, f"text, not {_shown(value)}")


def _flag(value: Any, where: Where) -> None:
    if not isinstance(value, bool):
        raise _Wrong(where, f"true or false, not {_shown(value)}")


def _file_name(value: Any, where: Where) -> None:
    _text(value, where)
    if not is_file_name(value):
        raise _Wrong(where, f"a plain name without folders, not {_shown(value)}")


def _path(value: Any, where: Where) -> None:
    """A path that the system can be asked about."""
    _text(value, where)
    if len(value.encode("utf-8")) > 4000 or any(len(part.encode("utf-8")) > 255 for part in value.split("/")):
        raise _Wrong(where, f"a path, not {_shown(value)}")


def _path_inside(value: Any, where: Where) -> None:
    """A path below the data folder."""
    _path(value, where)
    if not value or ".." in re.split(r"[/\\]", value) or value.startswith("/"):
        raise _Wrong(where, f"a path below the data folder, not {_shown(value)}")


def _number(value: Any, where: Where) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise _Wrong(where, f"a finite number, not {_shown(value)}")


def _at_least(low: float) -> Check:
    def check(value: Any, where: Where) -> None:
        _number(value, where)
        if value < low:
            raise _Wrong(where, f"a number from {low} up, not {_shown(value)}")
    return check


def _percent(value: Any, where: Where) -> None:
    _number(value, where)
    if not 0 <= value <= 100.0001:
        raise _Wrong(where, f"a percentage, not {_shown(value)}")


def _count(low: int = 0) -> Check:
    """A whole number that fits int64."""
    def check(value: Any, where: Where) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
            raise _Wrong(where, f"a whole number from {low} up, not {_shown(value)}")
    return check


def _or_null(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _either(*checks: Check) -> Check:
    """The first check that passes; the last one says what is wrong."""
    def check(value: Any, where: Where) -> None:
        for one in checks[:-1]:
            try:
                return one(value, where)
            except _Wrong:
                pass
        checks[-1](value, where)
    return check


def _listed(item: Check, least: int = 0) -> Check:
    def check(value: Any, where: Where) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise _Wrong(where, f"a list of {least} or more, not {_shown(value)}")
        for place, one in enumerate(value):
            item(one, f"{where}[{place}]")
    return check


def _mapped(item: Check, least: int = 0, key: Check = _text) -> Check:
    def check(value: Any, where: Where) -> None:
        if not isinstance(value, dict) or len(value) < least:
            raise _Wrong(where, f"an object of {least} or more entries, not {_shown(value)}")
        for name, one in value.items():
            key(name, f"a name in {where}")
            item(one, f"{where}.{name[:60]}")
    return check


def _fields(required: dict[str, Check], optional: dict[str, Check] | None = None,
            whole: Callable[[dict, Where], None] = lambda value, where: None) -> Check:
    """An object with these keys; `whole` compares them with each other."""
    def check(value: Any, where: Where) -> None:
        if not isinstance(value, dict):
            raise _Wrong(where, f"an object, not {_shown(value)}")
        for name in required:
            if name not in value:
                raise _Wrong(f"{where}.{name}".lstrip("."), "there")
        for name, one in {**required, **(optional or {})}.items():
            if name in value:
                one(value[name], f"{where}.{name}".lstrip("."))
        whole(value, where)
    return check


def _shown(value: Any) -> str:
    """A value, shortened; lists and objects by their kind alone."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# The three records.


def _shots_fit(record: dict, where: Where) -> None:
    classes, shots = len(record["classes"]), record["shots"]
    if len(record["domains"]) != classes:
        raise _Wrong("domains", f"a list of {classes}, one a class")
    if len(shots["files"]) != len(shots["labels"]):
        raise _Wrong("shots.labels", f"a list of {len(shots['files'])}, one a file")
    for place, label in enumerate(shots["labels"]):
        if label >= classes:
            raise _Wrong(f"shots.labels[{place}]", f"a class id below {classes}, not {label}")


def _opens_again(encoder: dict, where: Where) -> None:
    if "features" not in encoder and not {"model", "weights"} <= set(encoder):
        raise _Wrong(where, "a model and the folder of its weights, or a file of features")


def _curve_is_full(record: dict, where: Where) -> None:
    """The numbers of shots have methods in common (one shot tunes no towers), each with as many seeds."""
    curve = record["curve"]
    if not set.intersection(*map(set, curve.values())):
        raise _Wrong("curve", "of methods that every number of shots has")
    for count, methods in curve.items():
        for name, row in methods.items():
            if len(row["top5"]) != len(row["top1"]):
                raise _Wrong(f"curve.{count}.{name}.top5", f"a list of {len(row['top1'])}, one a seed")


def _shot_count(value: Any, where: Where) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise _Wrong(where, f"a number of shots, not {_shown(value)}")


_SETTING = _or_null(_either(_flag, _number, _listed(_either(_text, _number)), _text))
_SECONDS = _mapped(_at_least(0))
_REASONS = _mapped(_text)
_EPOCH = _fields({"epoch": _count()}, {name: _or_null(_number) for name in (
    "loss", "train_top1", "held_out_loss", "held_out_top1", "held_out_soft_top1")})
_CHOSEN = _fields({}, {"held_out_top1": _or_null(_percent), "epoch": _or_null(_count()),
                       "alpha": _either(_listed(_number, 1), _number), "beta": _number})
_SCORES = _fields({"top1": _percent, "top5": _percent, "macro": _percent,
                   "domains": _mapped(_fields({"n": _count(), "top1": _percent, "top5": _percent}))})
_ONE_ENCODER = {
    "features": _path, "features_digest": _text, "model": _path, "weights": _path, "fingerprint": _text,
    "weights_digest": _text, "precision": _text, "width": _count(1), "image_size": _count(1),
    "parameters": _or_null(_count()), "name": _text, "has_text": _flag}
_ENCODER = _fields({}, {**_ONE_ENCODER, "others": _listed(_fields({}, _ONE_ENCODER, _opens_again))}, _opens_again)
_RUN_BY = {"command": _text, "date": _text}


def _board(value: Any, where: Where) -> None:
    if value not in ("A", "B"):
        raise _Wrong(where, f"A or B, not {_shown(value)}")


# what is read of a run's settings, where it is there: other versions have others
_TEXTS = _either(_text, _listed(_text))
_READ = {**dict.fromkeys(("data", "weights", "prompts", "names", "templates", "descriptions", "support", "unlabelled",
                          "shot_list"), _path),
         **dict.fromkeys(("methods", "select", "prompt_set", "support_for"), _text),
         **dict.fromkeys(("features", "features_extra", "model"), _TEXTS),
         **dict.fromkeys(("seed", "demo_seed", "augment", "pool"), _count()), "board": _board, "board_mix": _flag,
         **dict.fromkeys(("demo", "domains", "skip_bad", "transductive"), _flag)}


def _configured(**required: Check) -> Check:
    """Settings as config.py has them: plain values by name, these keys and those of _READ as they are read."""
    optional = {name: one for name, one in _READ.items() if name not in required}
    plain, named = _mapped(_SETTING), _fields(required, optional)

    def check(value: Any, where: Where) -> None:
        plain(value, where)
        named(value, where)
    return check


_RECORD = _fields({
    **_RUN_BY, "device": _text, "versions": _mapped(_text), "encoder": _ENCODER,
    "config": _configured(data=_path, board=_board, demo=_flag, shots=_count()),
    "classes": _listed(_text, 1), "domains": _listed(_text, 1),
    "shots": _fields({"rule": _text, "files": _listed(_path_inside), "labels": _listed(_count())},
                     {"unreadable": _REASONS}),
    "settings": _mapped(_CHOSEN), "histories": _mapped(_listed(_EPOCH)), "seconds": _SECONDS},
    {"folder": _path}, _shots_fit)

_TEST = _fields({
    **_RUN_BY, "device": _text, "config": _configured(data=_path), "images": _count(1), "unreadable": _REASONS,
    "refinement": _or_null(_fields({}, {
        **{name: _count() for name in ("changed", "queries", "classes_present")},
        "class_balance": _listed(_number), "domain_balance": _listed(_number),
        "decisions": _mapped(_fields({}, {"why": _text}))})),
    "scores": _mapped(_SCORES), "seconds": _SECONDS})

_VALIDATION = _fields({
    **_RUN_BY, "versions": _mapped(_text), "config": _configured(), "n": _count(1), "k": _count(1),
    "curve": _mapped(_mapped(_fields({"top1": _listed(_percent, 1), "top5": _listed(_percent, 1),
                                      "domains": _mapped(_listed(_percent, 1))}), 1), 1, _shot_count)},
    {"held_out": _listed(_text)}, _curve_is_full)
