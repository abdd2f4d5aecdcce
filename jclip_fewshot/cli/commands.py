"""What each `python -m jclip_fewshot COMMAND` does. Its settings are the annotation of its argument (config.py).

Imports stand inside the functions where they start Jittor or are heavy: `check` and `-h` should not wait for them.
"""

import contextlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from jclip_fewshot import config
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError, one_line
from jclip_fewshot.provenance import table_name
from jclip_fewshot.storage.files import atomic_write, require_writable, require_writable_folder, shipped_folder
from jclip_fewshot.storage.json_files import write_json

GAP = "{}: checked with ONNX Runtime, whose rows differ from ours by {:.0e} at most"


def call(name: str, arguments: list[str]) -> int:
    """Run a command of the table with the arguments behind its name. Return the exit status."""
    if name in SCRIPTS:  # beside the package in a checkout, and inside it when installed
        path = shipped_folder("scripts", ".") / f"{name}.py"
        sys.argv = [f"{table_name()} {name}", *arguments]
        return runpy.run_path(str(path))["main"]() or 0
    function = COMMANDS[name]
    hints = get_type_hints(function)
    settings, given = parse(hints["settings"], function.__doc__ or "", arguments, f"{table_name()} {name}")
    return (function(settings, given) if "given" in hints else function(settings)) or 0


def predict(settings: config.PredictConfig) -> int:
    """Answer any pictures with a run, one line each: files, folders, patterns, or names from a pipe."""
    if settings.json and settings.csv:
        raise UserError("--json and --csv: give one of them")
    if settings.reject > 1:
        raise UserError(f"--reject takes a probability, 0 to 1, not {settings.reject}")
    from jclip_fewshot.cli import predict as prediction
    pipeline, source, class_names, root = prediction.opened(settings)
    printer = prediction.Printer(class_names, settings.top, settings.reject,
                                 "json" if settings.json else "csv" if settings.csv else "text")
    return prediction.answer(pipeline, source, prediction.listed(settings.images), printer, root=root,
                             refine=settings.refine, views=settings.views)


def runs(settings: config.RunsConfig) -> None:
    """List the runs with their settings and scores; --compare A B tells whether two differ by more than chance."""
    from jclip_fewshot.cli import history
    print(history.comparison(*settings.compare, runs=settings.runs, split=settings.split) if settings.compare
          else history.runs_table(Path(settings.runs)))


def report(settings: config.ReportConfig) -> None:
    """Write one HTML page about a run: scores, mistakes, what each part adds, how to repeat it."""
    from jclip_fewshot.report.page import FOLDER, write_report
    from jclip_fewshot.report.reading import find_run
    run = find_run(settings.run, settings.runs)
    require_writable_folder(settings.out or run / FOLDER, "--out")
    print(write_report(run, settings.split, settings.out or None))


def export(settings: config.ExportConfig) -> None:
    """Write a run as one file: a linear classifier for NumPy, or with CLIP's tower as ONNX (docs/export.md)."""
    from jclip_fewshot import export as exporting
    from jclip_fewshot.run import Run
    exporting.require_export_name(settings.target)
    onnx = Path(settings.target).suffix == ".onnx"
    if settings.uint8 and not onnx:
        raise UserError(f"--uint8 is for a file that takes pixels, OUT.onnx, not {settings.target}")
    require_writable(settings.target)
    run = Run.open(settings.run, "RUN")
    command.set_up(settings)
    found = exporting.linear_export(run.pipeline, lambda name, _: tell(f"  {name}"))
    if onnx:
        source = run.source(settings, **{**settings.encoding, "precision": "float32"})
        gap = exporting.save_onnx(settings.target, found, run.record.classes, source, settings.uint8)
        print(GAP.format(settings.target, gap))
    else:
        exporting.save_export(settings.target, found, run.record.classes, run.record.encoder)
    classes, width = found.linear.weight.shape
    parts = ", ".join(f"{name} {weight:.2f}" for name, weight in found.heads.items())
    print(f"{settings.target}: {classes} classes x {width} numbers, from {parts}")
    print("no shot could be left out: nothing says how good it is" if found.held_out_top1 is None else
          f"held-out top-1: {found.held_out_top1:.1f}, the run's whole ensemble {found.ensemble_top1:.1f}")


def check(settings: config.CheckConfig) -> int:
    """Say whether a submission file is valid for a test set, and what is wrong with it."""
    from jclip_fewshot.data.data_set import DataSet
    from jclip_fewshot.data.formats import read_data_set
    from jclip_fewshot.data.formats.contest import CLASS_LISTS
    from jclip_fewshot.data.submission import ResultCheck, check_result, require_names
    if settings.result.endswith(".csv"):
        raise UserError(f"check {settings.result}: only the contest's result.txt and result.zip have rules to check")

    def looked(split: str) -> tuple[DataSet, ResultCheck]:
        data = read_data_set(settings.data, split if split in CLASS_LISTS else "A", labelled=False,
                             format=settings.format, labels=settings.labels)
        tests = data.split(split)
        require_names(tests.folder, tests.names)
        return data, check_result(settings.result, tests.names, len(data.class_names))
    data, found = looked(settings.split)
    for note in found.notes:
        print(f"note: {note}")
    if not found.problems:
        print(f"{settings.result} is valid: {found.lines} images, {len(data.class_names)} classes")
        return 0
    problems = found.problems
    for other in data.splits:
        with contextlib.suppress(UserError):  # a board whose lists or images are not there
            if not looked(other)[1].problems:
                problems = [f"{settings.result} answers test set {other}: check it with --split {other}"]
    for problem in problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    return 2


def validate(settings: config.ValidateConfig, given: dict[str, Any]) -> None:
    """Score the whole pipeline on held-out labelled training images: the local leaderboard."""
    from jclip_fewshot.data import demo
    from jclip_fewshot.evaluation import validate as validation
    from jclip_fewshot.report.page import report_line
    from jclip_fewshot.run import require_new, validated
    if settings.run:
        settings = validated(settings, given)
    validation.parse_shots(settings.shots)
    require_new(settings.runs, settings.name)
    command.set_up(settings)
    if settings.demo:
        settings = demo.settings(settings)
    results = validation.validate(settings)
    if results is None:  # under mpirun the first process does the rest
        return
    for count, methods in results["curve"].items():
        mix = ", domains weighed as on board A" if settings.board_mix else ""
        print(f"\n{count} shots, {settings.seeds} seeds, {results['n']} held-out images{mix}")
        print(f"{validation.leaderboard(methods)}\n{validation.spread_note(settings.seeds)}")
    if len(results["curve"]) > 1:
        print(f"\n{validation.shot_curve(results['curve'])}")
    folder = validation.save(settings, results)
    print(f"\nsaved: {folder}\n{report_line(folder)}")


def evaluate(settings: config.EvaluateConfig) -> None:
    """Score every method on a labelled feature suite, with the pipeline and the defaults of train.py and test.py."""
    if settings.json:
        require_writable(settings.json, "--json")
    if settings.seeds > 1 and settings.compare:
        raise UserError("--compare looks at the rows of one seed: leave --seeds out")
    from jclip_fewshot.evaluation import evaluate as evaluation
    from jclip_fewshot.evaluation.scores import score_table
    from jclip_fewshot.evaluation.suites import load_suite, with_shots
    from jclip_fewshot.methods.plan import choose
    from jclip_fewshot.pipeline import Pipeline
    whole, choice, found = load_suite(settings.suite), choose(settings.methods), []
    suites = {seed: whole if settings.shots < 0 else with_shots(whole, settings.shots, seed)
              for seed in range(settings.seed, settings.seed + settings.seeds)}
    other = evaluation.read_results(Path(settings.compare), bool(settings.tasks)) if settings.compare else None
    command.set_up(settings)
    for seed, suite in suites.items():
        sizes = f"{len(suite.labels)} test rows, {len(suite.task)} shots, {len(suite.classes)} classes"
        tell(f"{suite.name}, seed {seed}: {sizes}")
        pipeline, tell_name = Pipeline(choice, seed), lambda name: tell(f"  {name}")
        found.append(evaluation.evaluate_tasks(suite, pipeline, settings.tasks, settings.task_classes,
                                               settings.task_queries, seed, tell_name) if settings.tasks
                     else evaluation.evaluate(suite, pipeline, tell_name))
    results = found[0]
    if len(found) > 1:
        results["top1_by_seed"] = evaluation.by_seed(found)
        print(evaluation.seeds_table(results["top1_by_seed"]))
    else:
        print(score_table(results["methods"]))
    if other:
        print("\n" + evaluation.comparison(results, other))
    if settings.json:
        write_json(settings.json, results)


def benchmark(settings: config.BenchmarkConfig) -> None:
    """Scores every method on several data sets, numbers of shots and random seeds: the papers' table and picture."""
    from jclip_fewshot.evaluation import benchmark as field
    from jclip_fewshot.report import drawing, figures
    field.require_sound(settings)
    command.set_up(settings)
    results = field.benchmark(settings)
    if results is None:  # under mpirun the first process does the rest
        return
    print(f"{field.tables(results)}\n\nsaved: {Path(settings.out) / field.RESULTS}")
    if drawing.available():
        picture = Path(settings.out) / "benchmark.png"
        with atomic_write(picture) as file:
            file.write(figures.shot_curves(field.curves(results)).png)
        print(f"picture: {picture}")
    else:
        print("no picture: it needs matplotlib 3.7 or newer")


def convert(settings: config.ConvertConfig) -> None:
    """Turn a CLIP checkpoint of any format into .safetensors with OpenAI's names, or into an ONNX encoder's folder."""
    said: dict[str, Any] = {"activation": settings.activation, "head_width": settings.head_width}
    if Path(settings.target).suffix:
        require_writable(settings.target)
        from jclip_fewshot.clip.checkpoint import convert as convert_checkpoint
        convert_checkpoint(settings.source, settings.target, **said)
        print(f"{settings.target}: {Path(settings.target).stat().st_size / 1e6:.1f} MB")
    else:
        require_writable_folder(settings.target, "OUT")
        command.set_up(config.DeviceConfig())
        from jclip_fewshot.encoders import open_encoder
        from jclip_fewshot.export_onnx import save_towers
        print(GAP.format(settings.target, save_towers(settings.target, open_encoder(settings.source, **said))))


def cache(settings: config.CacheConfig) -> None:
    """Print the size of the feature cache, or empty it."""
    if settings.size == settings.clear:
        raise UserError("give --size, which prints how large the cache is, or --clear, which empties it")
    if not settings.cache or (Path(settings.cache).exists() and not Path(settings.cache).is_dir()):
        raise UserError(f"--cache {settings.cache}: no folder; give the one where features are kept")
    from jclip_fewshot.features.sources import size_text
    from jclip_fewshot.storage.feature_cache import FeatureCache
    with FeatureCache(settings.cache) as store:
        said = f"{size_text(store.clear())} deleted" if settings.clear else size_text(store.size())
    print(f"{settings.cache}: {said}")


def doctor(settings: config.DoctorConfig) -> int:
    """Check whether train.py and test.py can run here, and say what to do where they cannot."""
    from jclip_fewshot.cli.doctor import report as doctors_report
    return doctors_report(settings)


def build(settings: config.DeviceConfig) -> None:
    """Build Jittor now instead of at the first start, as for a container image."""
    print(f"{command.set_up(settings)}: built")


SCRIPTS = {"train": "Learn from a few images of each class: train.py.",
           "test": "Answer a test set with a trained run: test.py."}
COMMANDS: dict[str, Callable[..., int | None]] = {function.__name__: function for function in (
    predict, runs, report, export, check, validate, evaluate, benchmark, convert, cache, doctor, build)}
