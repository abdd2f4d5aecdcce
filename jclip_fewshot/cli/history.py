"""python -m jclip_fewshot runs: what has been trained, how good it is, and whether two runs differ."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from jclip_fewshot.config import MachineConfig, TrainConfig, ValidateConfig
from jclip_fewshot.console import filled
from jclip_fewshot.data.data_set import UNKNOWN
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.evaluate import Z95, mcnemar
from jclip_fewshot.evaluation.scores import percent, table
from jclip_fewshot.evaluation.validate import mean_and_spread
from jclip_fewshot.provenance import next_command
from jclip_fewshot.records import VALIDATE, read_validation
from jclip_fewshot.run import Run, readable
from jclip_fewshot.storage.arrays import Field

# said in a column, or of no weight
SAID_ELSEWHERE = {"runs", "name", "shots", "seed", "seeds", "data", "board", "demo", "demo_seed", "from_run", "weights",
                  *(f.name for f in fields(MachineConfig))} - {"precision"}
_ANSWERED = {"names": Field("text", "N"), "best": Field("whole", "N T", low=0),
             "truth": Field("whole", "N", low=UNKNOWN, needed=False)}


def runs_table(folder: Path) -> str:
    """Return a row a run or validation under `folder`, the newest first, with date and changed settings below it."""
    runs = Run.all(folder)
    found: list[tuple] = []
    for run in runs:
        known = ", ".join(f"{split} {top1:.2f}" for split, top1 in known_scores(run).items())
        found.append((run.record.date, run.folder.name, run.record.config, str(run.record.held_out() or ""), known))
    folders = [path.parent for path in folder.glob(f"*/{VALIDATE}")]
    for name, record in readable(lambda path: (path.name, read_validation(path)), folders):
        finals = [list(methods.values())[-1]["top1"] for methods in record.curve.values()]
        found.append((record.date, name, record.config, ", ".join(map(mean_and_spread, finals)), ""))
    if not found:
        raise UserError(f"no finished run under {folder}: {next_command('train')} makes one")
    found.sort(key=lambda row: row[0], reverse=True)
    header = ["run", "data", "shots", "seed", "held out", "known top-1"]
    lines = table(header, [[name, *_learned_from(config), *scores] for _, name, config, *scores in found]).split("\n")
    shown = lines[:-len(found)]
    for line, (date, _, config, *_) in zip(lines[-len(found):], found):
        shown += [line, filled(f"    {date[:16]}  {_changed(config)}".rstrip(), 4)]
    return "\n".join([*shown, *filter(None, ["", advice(runs)])])


def _learned_from(config: TrainConfig | ValidateConfig) -> list[str]:
    """Data and board, shots a class, seed or how many seeds."""
    name = f"demo {config.demo_seed}" if config.demo else Path(config.data).name
    return [name + ("" if config.board == "A" else f" {config.board}"),
            "list" if config.shot_list else str(config.shots),
            f"{config.seeds} drawn" if isinstance(config, ValidateConfig) else str(config.seed)]


def _changed(config: TrainConfig | ValidateConfig) -> str:
    """The settings that are not the defaults: of paths their names, of lists all items."""
    said = []
    for f in fields(config):
        value = getattr(config, f.name)
        if value != f.default and f.name not in SAID_ELSEWHERE and not (config.demo and f.name == "model"):
            several = value if isinstance(value, tuple) else [value]
            shown = [Path(one).name if isinstance(one, str) and Path(one).suffix else str(one) for one in several]
            said.append(f"{f.name} {'+'.join(shown)}")
    return ", ".join(said)


def known_scores(run: Run) -> dict[str, float]:
    """Return {test set: top-1 of what went into result.txt}, of those whose answers are known."""
    tested = readable(lambda split: (split, run.tested(split).scores), sorted(run.splits()), "its scores are")
    return {split: list(scores.values())[-1]["top1"] for split, scores in tested if scores}


def advice(runs: Sequence[Run]) -> str:
    """Return a sentence on which of the runs on the newest one's data to submit, and why; "" where nothing says."""
    def of(run: Run) -> tuple:
        config = run.record.config
        return config.demo_seed if config.demo else run.where(config.data), config.board

    # shots that were chosen to lie apart are pessimistic (docs/notes/selection.md): not to be compared with drawn ones
    found = {run.folder.name: held for run in runs for held in [run.record.held_out()]
             if held is not None and of(run) == of(runs[0]) and run.record.config.select == "random"}
    if len(found) < 2:
        return ""
    best = max(found, key=lambda name: found[name].top1)
    alike = [name for name, held in found.items() if name != best and held.top1 > found[best].top1 - held.error]
    why = (f"{', '.join(alike[:3])}{', …' if len(alike) > 3 else ''} {'are' if len(alike) > 1 else 'is'} within one "
           "standard error of it, so that chance may be all the difference" if alike
           else "no other comes within one standard error of it")
    return filled(f"Submit {best}: its held-out top-1 is the highest ({found[best]}) of the {len(found)} runs on the "
                  f"newest one's data; {why}. Test answers play no part in this.")


def comparison(ours: str | Path, theirs: str | Path, *, runs: str | Path = "runs", split: str = "") -> str:
    """Return how two runs' answers to one test set differ: top-1, McNemar's p; UserError if they cannot be compared."""
    both = [Run.open(folder, "--compare", runs) for folder in (ours, theirs)]
    if both[0].record.classes != both[1].record.classes:
        raise UserError(f"--compare: {ours} and {theirs} have learned other classes")
    common = [split for split in both[0].splits() if split in both[1].splits()]
    if not split and not common:
        behind = both[1] if both[0].splits() else both[0]
        raise UserError(f"--compare: there is no test set that both have answered: {next_command('test')} --run "
                        f"{shlex.quote(str(behind.folder))}")
    split = split or common[-1]  # of several the one that the first has answered last
    a, b = (run.answers(split, _ANSWERED) for run in both)
    order, other = np.argsort(a["names"]), np.argsort(b["names"])
    if not np.array_equal(a["names"][order], b["names"][other]):
        raise UserError(f"--compare: the two runs have answered other images as test set {split}: test both again")
    mine, others = a["best"][order, 0], b["best"][other, 0]
    said = f"{len(order)} images of test set {split}; {percent(mine != others):.1f} % are answered otherwise"
    if "truth" not in a:
        return filled(f"{said}; no answers are known, so nothing says which is better")
    truth = a["truth"][order]
    hits = [(best == truth)[truth != UNKNOWN] for best in (mine, others)]
    wins, losses, p = mcnemar(*("".join(map(str, hit.astype(int))) for hit in hits))
    gain = hits[0].astype(float) - hits[1]
    half = Z95 * 100 * gain.std() / math.sqrt(len(gain))
    rows = [[str(name), f"{percent(hit):.2f}", str(alone)]
            for name, hit, alone in zip((ours, theirs), hits, (wins, losses))]
    verdict = "more than chance explains" if p < 0.05 else "chance alone may do that"
    return "\n\n".join([filled(said), table(["run", "top-1", "right alone"], rows),
                        filled(f"difference {100 * gain.mean():+.2f} ± {half:.2f} (95 %); McNemar's exact "
                               f"p = {p:.3g}: {verdict}")])
