"""What each `python -m jclip_fewshot COMMAND` does: its flags, and the one call that does the work.

Imports stand inside the functions where they start Jittor or are heavy: `check` and `-h` should not wait for them.
"""

from __future__ import annotations

import argparse
import contextlib
import runpy
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

from jclip_fewshot import console
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import Compact, add_flag, parse, whole
from jclip_fewshot.config import MachineConfig, ValidateConfig, checked
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import require_writable, require_writable_folder, shipped_folder

PROGRAM = "jclip-fewshot" if Path(sys.argv[0]).name == "jclip-fewshot" else "python -m jclip_fewshot"


def train(arguments: list[str]) -> int:
    """Learns from a few images a class: train.py."""
    return _script("train", arguments)


def test(arguments: list[str]) -> int:
    """Answers a test set with a trained run: test.py."""
    return _script("test", arguments)


def _script(name: str, arguments: list[str]) -> int:
    """Runs a script that lies beside the package in a checkout, and inside it when installed."""
    path = shipped_folder("scripts", ".") / f"{name}.py"
    sys.argv = [f"{PROGRAM} {name}", *arguments]
    return runpy.run_path(str(path))["main"]() or 0


def doctor(arguments: list[str]) -> int:
    """Looks whether the main job can run here; says what to do where it cannot."""
    parser = _parser("doctor", doctor.__doc__)
    parser.add_argument("--data", default="Dataset", metavar="DIR", help="the contest's folder [Dataset]")
    parser.add_argument("--model", action="append", metavar="NAME",
                        help="a released CLIP or a file; repeat for several [ViT-B/32]")
    parser.add_argument("--weights", default="weights", metavar="DIR", help="where checkpoints lie [weights]")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), metavar="auto|cpu|cuda",
                        help="where Jittor runs [auto]")
    parser.add_argument("--deep", action="store_true", help="read all of the checkpoint and compare its digest")
    given = _parsed(parser, arguments)
    from jclip_fewshot.cli.doctor import report as doctors_report
    return doctors_report(given.data, given.model or ["ViT-B/32"], given.weights, given.device, given.deep)


def check(arguments: list[str]) -> int:
    """Says whether a submission file is valid for a test set, and what is wrong with it."""
    parser = _parser("check", check.__doc__, "result.txt ")
    parser.add_argument("result", metavar="result.txt", help="a submission, .txt or the .zip around it")
    parser.add_argument("--data", default="Dataset", metavar="DIR", help="the contest's folder [Dataset]")
    parser.add_argument("--split", default="", metavar="A|B|DIR",
                        help="a test set, or a folder in the data folder [A; test of a plain tree]")
    given = _parsed(parser, arguments)
    from jclip_fewshot.data.formats import read_data_set
    from jclip_fewshot.data.formats.contest import CLASS_LISTS
    from jclip_fewshot.data.submission import check_result, require_names
    if given.result.endswith(".csv"):
        raise UserError(f"check {given.result}: only the contest's result.txt and result.zip have rules to check")
    data = read_data_set(given.data, given.split if given.split in CLASS_LISTS else "A", labelled=False)
    tests = data.split(given.split)
    require_names(tests.folder, tests.names)
    found = check_result(given.result, tests.names, len(data.class_names))
    for note in found.notes:
        print(f"note: {note}")
    if found.ok:
        print(f"{given.result} is valid: {found.lines} images, {len(data.class_names)} classes")
        return 0
    for other in data.splits:
        with contextlib.suppress(UserError):  # a board whose lists or images are not there
            there = read_data_set(given.data, other if other in CLASS_LISTS else "A", labelled=False)
            if check_result(given.result, there.split(other).names, len(there.class_names)).ok:
                print(f"error: {given.result} answers test set {other}, not {given.split or data.default_split}: "
                      f"for that it is valid; check it with --split {other}", file=sys.stderr)
                return 2
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def convert(arguments: list[str]) -> int:
    """Turns a CLIP checkpoint of any format into .safetensors with OpenAI's names."""
    parser = _parser("convert", convert.__doc__, "IN OUT.safetensors ")
    parser.add_argument("source", metavar="IN", help=".pt of OpenAI or torch.save, Jittor's .pkl, .safetensors")
    parser.add_argument("target", metavar="OUT.safetensors")
    given = _parsed(parser, arguments)
    require_writable(given.target)
    from jclip_fewshot.clip.checkpoint import convert as convert_checkpoint
    convert_checkpoint(given.source, given.target)
    print(f"{given.target}: {Path(given.target).stat().st_size / 1e6:.1f} MB")
    return 0


def evaluate(arguments: list[str]) -> int:
    """Scores every method on a labelled feature suite: with the pipeline and the defaults of train.py and test.py."""
    parser = _parser("evaluate", evaluate.__doc__, "--suite FILE.npz ")
    parser.add_argument("--suite", required=True, metavar="FILE.npz",
                        help="train_x, train_y, test_x, test_y, text, classes")
    parser.add_argument("--json", metavar="OUT", help="write the numbers there")
    parser.add_argument("--heads", default="", metavar="LIST",
                        help="all, default (train.py's), fast, or names with commas [all]")
    parser.add_argument("--shots", type=whole, default=None, metavar="N",
                        help="shots a class, at most; 0 for class names alone [all that the suite has]")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of training and of the tasks' draw [0]")
    parser.add_argument("--seeds", type=whole, default=0, metavar="N",
                        help="95 %% interval of top-1 from N bootstrap samples of the test rows, or of the tasks")
    parser.add_argument("--compare", metavar="OTHER.json", help="paired comparison with another --json")
    parser.add_argument("--tasks", type=whole, default=0, metavar="N",
                        help="N tasks of few classes instead of all rows")
    parser.add_argument("--task-classes", type=whole, default=5, metavar="N", help="classes a task [5]")
    parser.add_argument("--task-queries", type=whole, default=75, metavar="N", help="test rows a task, at most [75]")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), metavar="auto|cpu|cuda",
                        help="where Jittor runs [auto]")
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    given = _parsed(parser, arguments)
    numbers = {"seed": 0, "seeds": 0, "tasks": 0, "task_classes": 1, "task_queries": 1}
    for flag, least in {**numbers, **({} if given.shots is None else {"shots": 0})}.items():
        if not least <= getattr(given, flag) < 2**31:
            raise UserError(f"--{flag.replace('_', '-')} takes a number from {least} up, not {getattr(given, flag)}")
    if given.json:
        require_writable(given.json, "--json")

    from jclip_fewshot.evaluation import evaluate as evaluation
    from jclip_fewshot.evaluation.suites import load_suite, with_shots
    from jclip_fewshot.pipeline import Pipeline, head_names
    suite, names = load_suite(given.suite), head_names(given.heads or "all")
    if given.shots is not None:
        suite = with_shots(suite, given.shots)
    other = evaluation.read_results(Path(given.compare), bool(given.tasks)) if given.compare else None
    command.set_up(MachineConfig(device=given.device, quiet=given.quiet))
    pipeline = Pipeline(names, given.seed)
    tell(f"{suite.name}: {len(suite.labels)} test rows, {len(suite.task)} shots, {len(suite.classes)} classes")

    def on_method(name: str) -> None:
        tell(f"  {name}")

    if given.tasks:
        results = evaluation.evaluate_tasks(suite, pipeline, given.tasks, given.task_classes, given.task_queries,
                                            given.seed, on_method)
        print(evaluation.tasks_table(results, given.seeds))
    else:
        results = evaluation.evaluate(suite, pipeline, on_method)
        print(evaluation.results_table(results, given.seeds))
    if given.seeds:
        results["intervals"] = evaluation.intervals(results, given.seeds)
    if other:
        compared = evaluation.tasks_comparison if given.tasks else evaluation.comparison_table
        print("\n" + compared(results, other))
    if given.json:
        evaluation.save_results(Path(given.json), results)
    return 0


def validate(arguments: list[str]) -> int:
    """Scores the whole pipeline on labelled training images that are no shots: the local leaderboard."""
    settings = parse(ValidateConfig, validate.__doc__, arguments, f"{PROGRAM} validate")
    from jclip_fewshot.evaluation import validate as validation
    validation.require_new(settings)
    command.set_up(settings)
    if settings.demo:
        from jclip_fewshot.data import demo
        settings = demo.settings(settings)
    results = validation.validate(settings)
    if results is None:  # under mpirun the first process does the rest
        return 0
    for count, methods in results["curve"].items():
        print(f"\n{count} shots, {settings.seeds} seeds, {results['n']} held-out images"
              + (", domains weighed as on board A" if settings.board_mix else ""))
        print(validation.leaderboard(methods))
        print(validation.spread_note(settings.seeds, count in results["same_shots"]))
    if len(results["curve"]) > 1:
        print("\n" + validation.shot_curve(results["curve"]))
    folder = validation.save(settings, results)
    from jclip_fewshot.report.page import report_line
    print(f"\nsaved: {folder}\n{report_line(folder)}")
    return 0


def report(arguments: list[str]) -> int:
    """Writes one HTML page about a run: scores, mistakes, what each part adds, how to repeat it."""
    parser = _parser("report", report.__doc__, "[RUN] ")
    parser.add_argument("run", nargs="?", default="", metavar="RUN", help="a run's folder [the newest]")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where the newest run is looked for [runs]")
    parser.add_argument("--split", default="", metavar="A|B|DIR", help="the test set [the one that was answered last]")
    parser.add_argument("--out", default="", metavar="DIR", help="where to write [the folder report in the run's]")
    given = _parsed(parser, arguments)
    from jclip_fewshot.report.page import FOLDER, write_report
    from jclip_fewshot.report.reading import find_run
    run = find_run(given.run, given.runs)
    require_writable_folder(given.out or run / FOLDER, "--out")
    print(write_report(run, given.split, given.out or None))
    return 0


def predict(arguments: list[str]) -> int:
    """Answers any pictures with a run, a line each as they come: files, folders, patterns, names from a pipe."""
    parser = _parser("predict", predict.__doc__, "RUN IMAGE... ")
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("images", nargs="+", metavar="IMAGE",
                        help="files, folders, patterns like 'a/*.jpg'; - reads names from standard input")
    parser.add_argument("--top", type=whole, default=5, metavar="N", help="classes a picture, best first [5]")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", default="text",
                      help="a JSON object a line")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="comma-separated, with a header")
    parser.add_argument("--refine", action="store_true", help="answer all pictures together, as test.py does")
    parser.add_argument("--views", type=whole, default=1, metavar="V",
                        help="views averaged a picture, as test.py's [1]")
    parser.add_argument("--reject", type=float, default=0.0, metavar="P",
                        help="say (none of these) where no class has a probability of P [0]")
    _add_machine(parser)
    given = _parsed(parser, arguments)
    if given.top < 1:
        raise UserError(f"--top takes a number from 1 up, not {given.top}")
    if given.views < 1:
        raise UserError(f"--views takes a number from 1 up, not {given.views}")
    if not 0 <= given.reject <= 1:
        raise UserError(f"--reject takes a probability, 0 to 1, not {given.reject}")
    from jclip_fewshot import runs
    from jclip_fewshot.cli import predict as prediction
    from jclip_fewshot.features.sources import reopen_source
    from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
    from jclip_fewshot.storage.arrays import load_arrays
    folder = runs.find_run(given.run, "", flag="RUN")
    record = runs.load_record(folder)
    machine = _machine(given)
    command.set_up(machine)
    pipeline = Pipeline.from_state(load_arrays(folder / runs.MODEL, STATE_SCHEMA))
    source = reopen_source(record["encoder"], runs.sources_now(folder, record, given), record["shots"]["files"],
                           record["classes"], pipeline.task_, **machine.encoding)
    return prediction.answer(pipeline, source, prediction.listed(given.images),
                             prediction.Printer(record["classes"], given.top, given.reject, given.form), given.refine,
                             runs.where_now(folder, record, record["config"]["data"]), given.views)


def export(arguments: list[str]) -> int:
    """Writes a run as one linear classifier that NumPy alone can use, given CLIP rows (docs/export.md)."""
    parser = _parser("export", export.__doc__, "RUN OUT ")
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("target", metavar="OUT", help="a file that ends in .npz or .safetensors")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), metavar="auto|cpu|cuda",
                        help="where Jittor runs [auto]")
    parser.add_argument("--quiet", action="store_true", help="the result alone")
    given = _parsed(parser, arguments)
    from jclip_fewshot import export as exporting
    from jclip_fewshot import runs
    from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
    from jclip_fewshot.storage.arrays import load_arrays
    exporting.require_export_name(given.target)
    require_writable(given.target)
    folder = runs.find_run(given.run, "", flag="RUN")
    record = runs.load_record(folder)
    command.set_up(MachineConfig(device=given.device, quiet=given.quiet))
    pipeline = Pipeline.from_state(load_arrays(folder / runs.MODEL, STATE_SCHEMA))
    pipeline.seed = int(record["config"].get("seed", 0))
    found = exporting.linear_export(pipeline, lambda name, seconds: tell(f"  {name}"))
    exporting.save_export(given.target, found, record["classes"], record["encoder"])
    classes, width = found.linear.weight.shape
    print(f"{given.target}: {classes} classes x {width} numbers, from "
          + ", ".join(f"{name} {weight:.2f}" for name, weight in found.heads.items()))
    if found.held_out_top1 is None:
        print("no shot could be left out: nothing says how good it is")
    else:
        print(f"held-out top-1: {found.held_out_top1:.1f}, the run's whole ensemble {found.ensemble_top1:.1f}")
    return 0


def history(arguments: list[str]) -> int:
    """Lists the runs with settings, held-out and known scores; --compare A B tells two apart."""
    parser = _parser("runs", history.__doc__)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs lie [runs]")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="answers of two runs to the same test set")
    parser.add_argument("--split", default="", metavar="A|B|DIR", help="the test set [one that both have answered]")
    given = _parsed(parser, arguments)
    from jclip_fewshot.cli import history as histories
    print(histories.comparison(*map(Path, given.compare), given.split) if given.compare
          else histories.runs_table(Path(given.runs)))
    return 0


def cache(arguments: list[str]) -> int:
    """Says how large the feature cache is, or empties it."""
    parser = _parser("cache", cache.__doc__, "--size|--clear ")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", action="store_true", help="print its size")
    what.add_argument("--clear", action="store_true", help="delete all that it keeps; it fills again by itself")
    parser.add_argument("--cache", default=".cache", metavar="DIR", help="its folder [.cache]")
    given = _parsed(parser, arguments)
    if not given.cache or (Path(given.cache).exists() and not Path(given.cache).is_dir()):
        raise UserError(f"--cache {given.cache}: no folder; give the one where features are kept")
    from jclip_fewshot.features.sources import size_text
    from jclip_fewshot.storage.feature_cache import FeatureCache
    with FeatureCache(given.cache) as store:
        if given.clear:
            print(f"{given.cache}: {size_text(store.clear())} deleted")
        else:
            print(f"{given.cache}: {size_text(store.size())}")
    return 0


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """Where the run's sources lie now, and the machine's settings, as test.py has them."""
    parser.add_argument("--model", action="append", default=[], metavar="FILE",
                        help="where the run's checkpoint lies now, if moved; repeat for several encoders")
    parser.add_argument("--weights", default="", metavar="DIR", help="where the run's released checkpoint lies now")
    parser.add_argument("--features", action="append", default=[], metavar="FILE",
                        help="where the run's feature file lies now")
    parser.add_argument("--features-extra", action="append", default=[], metavar="FILE",
                        help="the same for its extra feature files")
    for f in fields(MachineConfig):
        if f.name == "verbose":
            continue
        add_flag(parser, f, f.default)


def _machine(given: argparse.Namespace) -> MachineConfig:
    return checked(MachineConfig, {f.name: getattr(given, f.name) for f in fields(MachineConfig)})


def _parser(name: str, description: str, needed: str = "") -> argparse.ArgumentParser:
    prog = f"{PROGRAM} {name}"
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=Compact,
                                     usage=textwrap.fill(f"{prog} {needed}[settings]", 50, subsequent_indent="    "))
    parser.add_argument("--verbose", action="store_true", help="show full error traces")
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    given = parser.parse_args(arguments)
    console.verbose = given.verbose
    for name, value in vars(given).items():
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"--{name} holds a NUL byte, which no name may")
    return given
