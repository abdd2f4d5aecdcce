"""python -m jclip_fewshot runs: what has been trained, how good it is, and whether two runs differ."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip_fewshot.config import TrainConfig
from jclip_fewshot.console import filled, warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.evaluate import Z95, mcnemar
from jclip_fewshot.evaluation.scores import percent, table
from jclip_fewshot.provenance import next_command
from jclip_fewshot.records import Validation
from jclip_fewshot.run import Run
from jclip_fewshot.storage.arrays import Field
from jclip_fewshot.storage.json_files import read_json

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
    rows = [_trained(run) for run in Run.all(folder)]
    for path in folder.glob(f"*/{VALIDATION}"):
        try:
            rows.append(_validated(path.parent.name, read_json(path, Validation, "validate again")))
        except UserError as error:
            warn(f"{error}; it is left out")
    if not rows:
        raise UserError(f"no finished run under {folder}: {next_command('train')} makes one")
    rows.sort(key=lambda row: row[-1], reverse=True)
    return table(["run", "data", "shots", "seed", "cv", "known top-1", "other settings", "date"], rows, keep=6)


def _trained(run: Run) -> list[str]:
    record = run.record
    return [run.folder.name, *_settings(vars(record.config)), str(record.held_out() or ""),
            ", ".join(f"{split} {top1:.2f}" for split, top1 in known_scores(run).items()),
            _changed(vars(record.config)), record.date]


def _validated(name: str, record: Validation) -> list[str]:
    finals = {str(count): list(methods.values())[-1]["top1"] for count, methods in record.curve.items()}
    data, _, _ = _settings(vars(record.config))
    seeds = len(next(iter(finals.values())))
    return [name, data, ",".join(finals), f"{seeds} drawn", "",
            ", ".join(f"held out {statistics.mean(values):.2f}" for values in finals.values()),
            _changed(vars(record.config)), record.date]


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


def known_scores(run: Run) -> dict[str, float]:
    """{test set: top-1 of what went into result.txt}, of those whose answers are known."""
    tested = {split: run.tested(split).scores for split in sorted(run.splits())}
    return {split: list(scores.values())[-1]["top1"] for split, scores in tested.items() if scores}


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
    both = [Run.open(folder, "--compare") for folder in (ours, theirs)]
    if both[0].record.classes != both[1].record.classes:
        raise UserError(f"--compare: {ours} and {theirs} have learned other classes")
    split = split or _common_split(both)
    a, b = (_answers(run, split) for run in both)
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


def _common_split(both: Sequence[Run]) -> str:
    """The test set that both have answered; of several the one that the first has answered last."""
    common = [split for split in both[0].splits() if split in both[1].splits()]
    if not common:
        behind = both[1] if both[0].splits() else both[0]
        raise UserError(f"--compare: there is no test set that both have answered: {next_command('test')} --run "
                        f"{shlex.quote(str(behind.folder))}")
    return common[-1]


def _answers(run: Run, split: str) -> Answered:
    arrays = run.answers(split, _ANSWERED)
    return Answered(arrays["names"], arrays["best"][:, 0].astype(np.int64),
                    arrays.get("truth", np.zeros(0)).astype(np.int64))
