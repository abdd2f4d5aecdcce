"""A run's folder: record.json, which a person reads, model.npz, which test.py reads, and what test.py leaves there."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot import __version__
from jclip_fewshot.config import DEMO_SEED, MachineConfig, TrainConfig, checked
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data.shots import write_shot_list
from jclip_fewshot.data.submission import move_aside, write_result, write_table
from jclip_fewshot.errors import UserError, shown
from jclip_fewshot.storage import records
from jclip_fewshot.storage.arrays import save_arrays, save_json
from jclip_fewshot.storage.files import require_writable_folder

RECORD, MODEL, SHOTS = "record.json", "model.npz", "shots.txt"
_COMMAND_TABLE = "python -m jclip_fewshot ", "jclip-fewshot "  # as it names the scripts that it runs
# what other commands leave in a run's folder
LEFT_BEHIND = ("test_*.json", "test_*.npz", "result*.txt", "result*.zip", "result*.csv", "validate.json", "report")
DRAW = ("shots", "seed", "select", "pool", "shot_list", "data", "format", "labels", "board", "demo", "demo_seed",
        "skip_bad")


def require_new_run(runs: str | Path, name: str) -> None:
    """Finds out before the work whether a run of that name can be saved.

    Raises:
        UserError: no plain name, or no folder where runs could be made.
    """
    if name and not records.is_file_name(name):
        said = shown(name if len(name) <= 60 else name[:60] + "…")
        raise UserError(f"--name {said}: a plain name of at most 100 bytes, not a path; --runs says where runs lie")
    require_writable_folder(runs, "--runs")
    if name:
        require_writable_folder(Path(runs, name), "--name")


def new_run(runs: str | Path, name: str, board: str, prefix: str = "") -> Path:
    """The folder of a new run: `name`, or `prefix`, date, time and board, and a number where that is taken.

    Of an older run of the same name, what later commands have left there goes: old answers do not stay with a
    new model.
    """
    require_new_run(runs, name)
    stamp = prefix + time.strftime(f"%Y%m%d-%H%M%S-{board}")
    number = 1
    while not name:
        folder = Path(runs, stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run has ended in the same second
            number += 1
    folder = Path(runs, name)
    folder.mkdir(parents=True, exist_ok=True)
    left = sorted(path for pattern in (RECORD, *LEFT_BEHIND) for path in folder.glob(pattern))
    for path in left:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if left:
        tell(f"{folder} was there: the older run's {', '.join(path.name for path in left)} "
             f"{'is' if len(left) == 1 else 'are'} removed")
    return folder


def save_run(runs: str | Path, name: str, board: str, shots: Iterable[tuple[str, int]],
             arrays: dict[str, np.ndarray], record: dict[str, Any]) -> Path:
    """Writes a run whole, the record last, or nothing; returns its folder.

    record: see storage/records.py. How, when, where and by which versions it was made is added here.
    Raises:
        UserError: it cannot be written.
    """
    folder = new_run(runs, name, board)
    try:
        write_shot_list(folder / SHOTS, shots)
        save_arrays(folder / MODEL, arrays)
        save_record(folder, {**made_by(), **record})
    except BaseException as error:
        for part in (RECORD, MODEL, SHOTS):
            (folder / part).unlink() if (folder / part).exists() else None
        if not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"the run cannot be saved in {folder} ({error.strerror or error}); nothing of it is left "
                            "there, and what is encoded is kept in the cache") from error
        raise
    return folder


def made_by() -> dict[str, Any]:
    """How, when and where this process runs, for a record."""
    return {"command": command_line(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "folder": os.getcwd(),
            "versions": versions()}


def find_run(run: str | Path, runs: str | Path, demo: bool = False,
             demo_seed: int | None = None, flag: str = "--run") -> Path:
    """`run`, or the newest finished run under `runs`: of the built-in contest with `demo`, else of another.

    demo_seed: with `demo`, of the contest of that seed alone. flag: what named `run`.
    Raises:
        UserError: there is none, or it was not finished.
    """
    if run:
        folder = Path(run)
        if not (folder / RECORD).is_file():
            raise UserError(f"{flag} {run}: no finished run there ({RECORD} is missing); python train.py makes one")
        return folder
    finished = sorted(Path(runs).glob(f"*/{RECORD}"), key=lambda record: record.stat().st_mtime, reverse=True)
    for record in finished:
        try:
            config = load_record(record.parent)["config"]
        except UserError as error:
            warn(f"{error}; looking at the run before it")
            continue
        if config["demo"] == demo and (not demo or demo_seed in (None, config.get("demo_seed", demo_seed))):
            return record.parent
    raise UserError(f"no finished run under {runs}: python train.py{demo_flags(demo, demo_seed)} makes one")


def demo_flags(demo: bool, demo_seed: int | None) -> str:
    """" --demo" or " --demo-seed 7" for a command line."""
    return "" if not demo else " --demo" if demo_seed in (None, DEMO_SEED) else f" --demo-seed {demo_seed}"


def runs_flag(folder: str) -> str:
    """" --runs DIR" for a command line; nothing where it is the default."""
    return "" if folder == TrainConfig().runs else f" --runs {shlex.quote(folder)}"


def repeated(settings: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings of the run that `--from-run` names, with its very shots, but those that are `given` beside it.

    A given flag that decides on the shots draws them again. What is the machine's, and the new run's name, comes from
    `settings`; "auto" means what that run took: its precision and, where nothing else is given, its tuned members.
    Raises:
        UserError: no such run, or settings that this version does not know.
    """
    folder = find_run(settings.from_run, settings.runs, flag="--from-run")
    record = load_record(folder)
    saved = record["config"]
    own = {f.name for f in dataclasses.fields(MachineConfig)} | {"runs", "name", "from_run"}
    values = {name: value for name, value in saved.items() if name not in own}
    for name in ("data", "weights", "prompts", "names", "templates", "descriptions", "support", "unlabelled", "labels"):
        values[name] = where_now(folder, record, values[name]) if values.get(name) else values.get(name, "")
    for name in ("features", "features_extra", "model"):
        given_then = values.get(name) or []
        files = [given_then] if isinstance(given_then, str) else given_then
        values[name] = tuple(where_now(folder, record, file) for file in files)
    values.update({name: value for name, value in vars(settings).items() if name in own})
    precisions = {one["precision"] for one in records.encoders_of(record["encoder"]) if "precision" in one}
    if settings.precision == "auto" and len(precisions) == 1:
        values["precision"] = precisions.pop()
    changed = {name: value for name, value in given.items() if name not in own}
    if not changed and values.get("tune") == "auto":
        tuned = [name for name, chosen in record["settings"].items() if "in_ensemble" in chosen]
        values["tune"] = ",".join(tuned) or "off"
    values.update(changed)
    if not any(name in changed for name in DRAW):
        values["shot_list"] = str(folder / SHOTS) if values["shots"] or values.get("shot_list") else ""
    elif "shot_list" not in changed:
        values["shot_list"] = ""
    if changed:
        every = [(name.replace("_", "-"), one) for name, value in changed.items()
                 for one in (value if isinstance(value, (list, tuple)) else [value])]
        listed = " ".join(f"--{name}" + ("" if one is True else f" {shlex.quote(str(one))}") for name, one in every)
        tell(f"as {folder}, but {listed}")
    return checked(TrainConfig, values)


def where_now(folder: Path, record: dict[str, Any], saved: str) -> str:
    """Where a file or folder that a run's record names lies now.

    A relative path is looked for below the working folder, below the project's that holds the run (runs/NAME) and
    below the one where train.py ran; an absolute one where it was, and then in the same places. Last comes its bare
    name in the run, here and in weights/. Where it is in none of them, `saved` itself.
    """
    was = record.get("folder") or os.getcwd()
    whole = Path(os.path.abspath(os.path.join(was, saved)))
    below = os.path.relpath(whole, was)
    project = folder.resolve().parent.parent
    places = [whole] if os.path.isabs(saved) else []
    places += [Path(below), project / below, whole, folder / whole.name, Path(whole.name), project / whole.name,
              Path("weights", whole.name), project / "weights" / whole.name]
    return next((str(place) for place in places if os.path.exists(place)), saved)


def sources_now(folder: Path, record: dict[str, Any], given: Any) -> dict[str, Any]:
    """{"model", "weights", "features"}: as `given` (flags of those names), or where the run's own lie now.

    Of several encoders, "others": a list of the same for those behind the first.
    Raises:
        UserError: flags that do not fit what the run was trained with.
    """
    encoders = records.encoders_of(record["encoder"])
    kinds = ["model" if "model" in one else "features" if one.get("has_text", True) else "features_extra"
             for one in encoders]
    _require_fitting_flags(folder, encoders, kinds, given)
    waiting = {kind: _given(given, kind) for kind in set(kinds)}
    found = []
    for one, kind in zip(encoders, kinds):
        name = "model" if kind == "model" else "features"
        now = waiting[kind].pop(0) if waiting[kind] else where_now(folder, record, one[name])
        weights = given.weights or (where_now(folder, record, one["weights"]) if one.get("weights") else "")
        found.append({"model": "", "weights": weights, "features": "", name: now})
    first, *others = found
    return {**first, "others": others} if others else first


def _require_fitting_flags(folder: Path, encoders: list[dict[str, Any]], kinds: list[str], given: Any) -> None:
    saved = encoders[0]
    if len(encoders) > 1:
        for kind in ("model", "features", "features_extra"):
            if len(_given(given, kind)) not in (0, kinds.count(kind)):
                flag = "--" + kind.replace("_", "-")
                names = [one.get("model") or one["features"] for one, mine in zip(encoders, kinds) if mine == kind]
                raise UserError(f"{flag}: {len(_given(given, kind))} given, but {folder} has {len(names)} such "
                                f"encoders ({', '.join(names)}): one for each, in this order, or none")
        return
    for kind in ("model", "features", "features_extra"):
        if len(_given(given, kind)) > 1:
            raise UserError(f"{folder} was trained with one encoder; give --{kind.replace('_', '-')} once")
    if _given(given, "features_extra"):
        raise UserError(f"{folder} was trained without extra features; leave --features-extra out")
    if given.features and "features" not in saved:
        raise UserError(f"{folder} was trained with the checkpoint {saved['model']}, not with a feature file; "
                        "give --model or --weights instead of --features")
    if (given.model or given.weights) and "features" in saved:
        raise UserError(f"{folder} was trained with the feature file {saved['features']}; give --features instead of "
                        "--model or --weights")


def _given(given: Any, name: str) -> list[str]:
    """What a flag that may be given several times says; a command may lack it."""
    value = getattr(given, name, "")
    return [value] if isinstance(value, str) and value else list(value)


def require_same_classes(folder: Path, record: dict, class_names: Sequence[str]) -> None:
    """Raises UserError where a data set's classes are not those that the run learned."""
    if record["classes"] != list(class_names):
        raise UserError(f"{folder} learned {len(record['classes'])} classes that are not the {len(class_names)} of "
                        "this data set, or in another order: train again, or give the right --run or --data")


def save_result(result: Path, folder: Path, split: str, own_split: str, names: Sequence[str], best: np.ndarray,
                num_classes: int) -> Path:
    """Writes the submission and the run's own copy of it; returns the archive to submit.

    A file that stands at `result` and that none of these runs has written is moved aside first, with a line.
    """
    for path in (result, result.with_suffix(".zip")):
        _keep_foreign(path, folder)
    archive = write_result(result, names, best, num_classes)
    write_result(own_result(folder, split, own_split), names, best, num_classes)
    return archive


def save_table(result: Path, folder: Path, split: str, own_split: str, files: Sequence[str], labels: Sequence[str],
               probability: Sequence[float]) -> None:
    """Writes the answers as a CSV and the run's own copy of it; see submission.write_table."""
    _keep_foreign(result, folder)
    for path in (result, own_result(folder, split, own_split, ".csv")):
        write_table(path, files, labels, probability)


def _keep_foreign(path: Path, folder: Path) -> None:
    aside = move_aside(path, kept_results(folder, path.suffix))
    if aside:
        tell(f"{path} was not written by these runs: it is moved to {aside}")


def own_result(folder: Path, split: str, own_split: str, suffix: str = ".txt") -> Path:
    """A run's own copy of its answers: result.txt, with the split in its name where that is not the run's own."""
    return folder / (f"result{suffix}" if split == own_split else f"result_{split}{suffix}")


def kept_results(folder: Path, suffix: str) -> list[Path]:
    """The copies of submissions that a run and its neighbours keep: what this program wrote, and may write over."""
    return sorted(folder.resolve().parent.glob(f"*/result*{suffix}"))


def require_writable_run(folder: Path) -> None:
    """Finds out before the work whether answers can be left in a run's folder."""
    require_writable_folder(folder, "--run")


def save_test(folder: Path, split: str, record: dict, arrays: dict[str, np.ndarray]) -> None:
    """What a test run leaves in its run's folder: test_A.json and test_A.npz for split A."""
    save_arrays(folder / f"test_{split}.npz", {name: np.asarray(value) for name, value in arrays.items()})
    save_json(folder / f"test_{split}.json", {**made_by(), **record})


class Stopwatch:
    """Seconds of each stage: `lap(stage)` counts from the lap before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def save_record(folder: Path, record: dict) -> None:
    """Writes the record as JSON, numbers and strings as a person reads them."""
    save_json(folder / RECORD, record)


def load_record(folder: Path) -> dict:
    """The record of a finished run, checked: see storage/records.py."""
    return records.load_record(folder / RECORD)


def versions() -> dict[str, str]:
    """What ran: versions of this package, Python and the libraries that touch a number."""
    found = {"jclip_fewshot": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in ("jittor", "numpy", "pillow", "instant-clip-tokenizer", "ftfy", "onednn-cpu-gomp"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return {**found, "git commit": git_commit(Path(__file__).parents[1])}


def git_commit(checkout: Path) -> str:
    """The commit that a checkout stands at, "absent" where it is none. Read from its files: a child process that
    fails would be taken by Jittor for one of its own."""
    try:
        folder = checkout / ".git"
        if folder.is_file():  # a worktree: "gitdir: PATH"
            folder = checkout / folder.read_text().split(":", 1)[1].strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name, common = head.split()[1], folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        if (shared / name).is_file():
            return (shared / name).read_text().strip()
        packed = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
        return next(parts[0] for parts in packed if parts[1:] == [name])
    except (OSError, ValueError, IndexError, StopIteration):
        return "absent"


def next_command(script: str) -> str:
    """Another script, called as this one was: `python test.py`."""
    program = sys.argv[0]
    if program.startswith(_COMMAND_TABLE):
        return f"{program.rpartition(' ')[0]} {script}"
    return f"python {shlex.quote(str(Path(program).with_name(script + '.py')))}"


def command_line() -> str:
    """How this process was called, as a line for the shell; `python -m` in place of the module's file."""
    program, *arguments = sys.argv
    python = Path(sys.executable).name
    if shutil.which(python) != sys.executable:  # an environment that is not active
        python = os.path.relpath(sys.executable) if Path.cwd() in Path(sys.executable).parents else sys.executable
    if program.startswith(_COMMAND_TABLE):
        words = shlex.split(program)
        return shlex.join([*([python, *words[1:]] if words[0] == "python" else words), *arguments])
    if Path(program).name == "__main__.py":
        arguments = ["-m", Path(program).parent.name, *arguments]
    else:
        arguments = [program, *arguments]
    return shlex.join([python, *arguments])
