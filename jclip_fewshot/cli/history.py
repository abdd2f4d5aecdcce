"""python -m jclip_fewshot runs: what has been trained, how good it is, and whether two runs differ."""

from __future__ import annotations

import math
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip_fewshot import runs
from jclip_fewshot.config import TrainConfig
from jclip_fewshot.console import filled, warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.evaluate import Z95, mcnemar
from jclip_fewshot.evaluation.scores import percent, table
from jclip_fewshot.storage.arrays import Field, load_arrays
from jclip_fewshot.storage.records import load_test_record, load_validation

VALIDATION = "validate.json"
SAID_ELSEWHERE = ("runs", "name", "shots", "seed", "data", "board", "demo", "demo_seed", "from_run", "device",
                  "batch_size", "workers", "cache", "quiet", "verbose", "weights")  # in a column, or of no weight
_ANSWERED = {"names": Field("text", "N"), "best": Field("whole", "N T", low=0),
             "truth": Field("whole", "N", low=0, needed=False)}


def runs_table(folder: Path) -> str:
    """A row a run or validation under `folder`, the newest first: settings, held-out score, known scores, date.

    Raises:
        UserError: there is none.
    """
    rows: list[tuple[str, list[str]]] = []
    for path in [*folder.glob(f"*/{runs.RECORD}"), *folder.glob(f"*/{VALIDATION}")]:
        try:
            row = _trained(path.parent) if path.name == runs.RECORD else _validated(path.parent)
        except UserError as error:
            warn(f"{error}; left out")
            continue
        rows.append((row[-1], row))
    if not rows:
        raise UserError(f"no finished run under {folder}: python train.py makes one")
    rows.sort(key=lambda row: row[0], reverse=True)
    return table(["run", "data", "shots", "seed", "cv", "known top-1", "other settings", "date"],
                 [row for _, row in rows], keep=6)


def _trained(folder: Path) -> list[str]:
    record = runs.load_record(folder)
    held_out = record["settings"].get("ensemble", {}).get("held_out_top1")
    return [folder.name, *_settings(record["config"]), "" if held_out is None else f"{held_out:.1f}",
            ", ".join(f"{split} {top1:.2f}" for split, top1 in known_scores(folder).items()),
            _changed(record["config"]), record["date"]]


def _validated(folder: Path) -> list[str]:
    record = load_validation(folder / VALIDATION)
    finals = {count: list(methods.values())[-1]["top1"] for count, methods in record["curve"].items()}
    data, _, _ = _settings(record["config"])
    seeds = len(next(iter(finals.values())))
    return [folder.name, data, ",".join(finals), f"{seeds} drawn", "",
            ", ".join(f"held out {statistics.mean(values):.2f}" for values in finals.values()),
            _changed(record["config"]), record["date"]]


def _settings(config: dict) -> list[str]:
    """What a run learned from: data and board, shots a class, seed."""
    name = f"demo {config.get('demo_seed', '')}".strip() if config.get("demo") else Path(config.get("data", "")).name
    board = "" if config.get("board", "A") == "A" else f" {config['board']}"
    return [name + board, "list" if config.get("shot_list") else str(config.get("shots", "")),
            str(config.get("seed", ""))]


def _changed(config: dict) -> str:
    """The settings that are not the defaults."""
    defaults = vars(TrainConfig())
    changed = {name: value for name, value in config.items()
               if name in defaults and name not in SAID_ELSEWHERE and _plain(value) != _plain(defaults[name])}
    if config.get("demo"):
        changed.pop("model", None)
    return ", ".join(f"{name} {_shown(value)}"
                     for name, value in changed.items())


def _plain(value: object) -> object:
    """JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    """A setting in a table: of paths their names, of lists all items."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(_shown, value))
    return Path(value).name if isinstance(value, str) and Path(value).suffix else str(value)


def known_scores(folder: Path) -> dict[str, float]:
    """{test set: top-1 of what went into result.txt}, of those whose answers are known."""
    found = {}
    for path in sorted(folder.glob("test_*.json")):
        scores = load_test_record(path)["scores"]
        if scores:
            found[path.stem[len("test_"):]] = list(scores.values())[-1]["top1"]
    return found


class Answered(NamedTuple):
    """What a run said of a test set: names (N,), first classes (N,), and the truth (N,) where it is known."""

    names: np.ndarray
    first: np.ndarray
    truth: np.ndarray


def comparison(ours: Path, theirs: Path, split: str = "") -> str:
    """How the answers of two runs to one test set differ: top-1, rows won and lost, McNemar's p.

    Raises:
        UserError: no such run, no test set that both have answered, other images or classes.
    """
    folders = [runs.find_run(folder, "", flag="--compare") for folder in (ours, theirs)]
    if runs.load_record(folders[0])["classes"] != runs.load_record(folders[1])["classes"]:
        raise UserError(f"--compare: {ours} and {theirs} have learned other classes")
    split = split or _common_split(folders)
    a, b = (_answers(folder, split) for folder in folders)
    places = {name: place for place, name in enumerate(b.names.tolist())}
    if len(places) != len(a.names) or any(name not in places for name in a.names.tolist()):
        raise UserError(f"--compare: the two runs have answered other images as test set {split}: test both again")
    order = np.array([places[name] for name in a.names.tolist()])
    said = f"{len(order)} images of test set {split}; {percent(a.first != b.first[order]):.1f} % are answered otherwise"
    if not len(a.truth):
        return filled(f"{said}; no answers are known, so nothing says which is better")
    right, other = a.first == a.truth, b.first[order] == a.truth
    wins, losses, p = mcnemar(*("".join(map(str, hits.astype(int))) for hits in (right, other)))
    gain = right.astype(float) - other
    half = Z95 * 100 * gain.std() / math.sqrt(len(gain))
    rows = [[str(ours), f"{percent(right):.2f}", str(wins)], [str(theirs), f"{percent(other):.2f}", str(losses)]]
    verdict = "more than chance explains" if p < 0.05 else "chance alone may do that"
    return "\n\n".join([filled(said), table(["run", "top-1", "right alone"], rows),
                        filled(f"difference {100 * gain.mean():+.2f} ± {half:.2f} (95 %); McNemar's exact "
                               f"p = {p:.3g}: {verdict}")])


def _common_split(folders: list[Path]) -> str:
    """The test set that both have answered; of several the newest."""
    files = [{path.stem[len("test_"):]: path.stat().st_mtime for path in folder.glob("test_*.npz")}
             for folder in folders]
    common = sorted(set(files[0]) & set(files[1]), key=lambda split: files[0][split])
    if not common:
        raise UserError(f"--compare: there is no test set that both have answered: python test.py --run "
                        f"{shlex.quote(str(folders[0] if not files[0] else folders[1]))}")
    return common[-1]


def _answers(folder: Path, split: str) -> Answered:
    arrays = load_arrays(folder / f"test_{split}.npz", _ANSWERED, others=None)
    return Answered(arrays["names"], arrays["best"][:, 0].astype(np.int64),
                    arrays.get("truth", np.zeros(0)).astype(np.int64))
