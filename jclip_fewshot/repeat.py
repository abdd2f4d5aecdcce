"""The settings of a saved run taken up again: `train.py --from-run`, `validate --run`."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from jclip_fewshot.config import MachineConfig, TrainConfig, ValidateConfig, checked
from jclip_fewshot.console import tell
from jclip_fewshot.errors import flag_of
from jclip_fewshot.features.sources import encoders_of
from jclip_fewshot.methods.plan import GROUPS, OF
from jclip_fewshot.run import SHOTS, Run

DRAW = ("shots", "seed", "select", "pool", "shot_list", "data", "board", "demo", "demo_seed", "skip_bad")
_PATHS = ("data", "weights", "prompts", "names", "templates", "descriptions", "support", "unlabelled", "shot_list")
_FILES = ("features", "features_extra", "model")
_OWN = {f.name for f in dataclasses.fields(MachineConfig)} | {"runs", "name", "from_run", "run"}


def repeated(settings: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Return the settings and shots of the run that `--from-run` names, overridden by flags given explicitly.

    A given flag that decides on the shots draws them again. What is the machine's, and the new run's name, comes from
    `settings`; "auto" means what that run took. Raise UserError if there is no such run.
    """
    run = Run.open(settings.from_run, "--from-run")
    values, changed = _taken(run, settings, given)
    if not changed and set(values["methods"].split(",")) & set(GROUPS):
        values["methods"] = ",".join(dict.fromkeys(name.partition(OF)[0] for name in run.record.settings
                                                   if name != "ensemble"))
    values.update(changed)
    if not any(name in changed for name in DRAW):
        values["shot_list"] = str(run.folder / SHOTS) if values["shots"] or values["shot_list"] else ""
    elif "shot_list" not in changed:
        values["shot_list"] = ""
    return checked(TrainConfig, values)


def validated(settings: ValidateConfig, given: dict[str, Any]) -> ValidateConfig:
    """Return the settings of the run that `--run` names as far as validate has them, overridden by flags given."""
    values, changed = _taken(Run.open(settings.run), settings, given)
    values["shots"] = str(values["shots"])
    known = {f.name: values[f.name] for f in dataclasses.fields(ValidateConfig) if f.name in values}
    return checked(ValidateConfig, {**known, **changed})


def _taken(run: Run, settings: MachineConfig, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's settings, its files where they lie now, with this command's own; and what was given beside it."""
    values = dict(vars(run.record.config))
    for name in _PATHS:
        values[name] = run.where(values[name]) if values[name] else ""
    for name in _FILES:
        values[name] = tuple(run.where(file) for file in values[name])
    values.update({name: value for name, value in vars(settings).items() if name in _OWN})
    precisions = {one["precision"] for one in encoders_of(run.record.encoder) if "precision" in one}
    if settings.precision == "auto" and len(precisions) == 1:
        values["precision"] = precisions.pop()
    changed = {name: value for name, value in given.items() if name not in _OWN}
    flags = [flag_of(name) + ("" if one is True else f" {shlex.quote(str(one))}") for name, value in changed.items()
             for one in (value if isinstance(value, (list, tuple)) else [value])]
    if flags:
        tell(f"Settings of {run.folder}, but {' '.join(flags)}")
    return values, changed
