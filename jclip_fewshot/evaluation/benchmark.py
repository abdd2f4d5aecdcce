"""The field's protocol: data sets × shots × random seeds, every method in each, a table like the papers'.

A cell is one data set with so many shots and one seed; it is written to disk as it ends, so that a later call
continues.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jclip_fewshot import __version__
from jclip_fewshot.backend import ranks
from jclip_fewshot.config import BenchmarkConfig, SourceConfig
from jclip_fewshot.console import duration, tell
from jclip_fewshot.data.data_set import UNKNOWN
from jclip_fewshot.data.formats import coop
from jclip_fewshot.data.shots import draw_pool
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.evaluate import evaluate
from jclip_fewshot.evaluation.suites import Suite, drawn, load_suite
from jclip_fewshot.evaluation.validate import parse_shots, shot_curve
from jclip_fewshot.features.sources import labelled_rows, test_rows
from jclip_fewshot.methods.base import SHOTS, TEXT, UNLABELLED
from jclip_fewshot.methods.plan import Choice, choose, require_possible
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.problem import read_problem
from jclip_fewshot.provenance import made_by
from jclip_fewshot.storage.files import content_digest, require_writable_folder
from jclip_fewshot.storage.json_files import read_json, write_json

RESULTS = "benchmark.json"


class Cell(msgspec.Struct, kw_only=True):
    """One data set with so many shots a class, drawn by one seed; fingerprint: of all that went into its numbers."""

    data: str
    shots: int
    seed: int
    n: int
    k: int
    fingerprint: str
    methods: dict[str, dict[str, Any]]  # as `evaluate` has them
    settings: dict[str, Any]


class Results(msgspec.Struct, kw_only=True):
    """What stands in benchmark.json. quoted: {data: [a row of published.json each]}, where the protocol is the same."""

    command: str
    date: str
    folder: str
    versions: dict[str, str]
    coop_seeds: bool
    cells: list[Cell]
    quoted: dict[str, list[dict[str, Any]]] = {}


@dataclass(frozen=True)
class Entry:
    """A data set, numbers of shots, (shots, seed) → the suite; CoOp's split and the CLIP where they are known."""

    name: str
    counts: list[int]
    suite: Callable[[int, int], Suite]
    split: str = ""
    encoder: tuple[str, ...] = ()


def coop_draw(labels: Sequence[int] | np.ndarray, shots: int, seed: int) -> list[int]:
    """Return the indices, in order, of the shots that CoOp's code draws of training images with `labels`.

    It seeds Python's generator, then samples class after class as they first appear. A class with fewer images is
    sampled with repetition there; here each image that comes up counts once.
    """
    of_class = defaultdict[int, list[int]](list)
    for index, label in enumerate(labels):
        of_class[int(label)].append(index)
    generator, chosen = random.Random(seed), set[int]()
    for images in of_class.values():
        draw = generator.sample if len(images) >= shots else generator.choices
        chosen.update(draw(images, k=shots))
    return sorted(chosen)


def possible(counts: Sequence[int], labels: Sequence[int] | np.ndarray, name: str) -> list[int]:
    """Return the numbers of shots that training `labels` can give; say what they cannot. Raise UserError for none."""
    if not len(labels):
        raise UserError(f"{name} has no labelled image to learn from")
    most = int(np.bincount(labels).max())
    found = sorted({min(count, most) for count in counts})
    if max(counts) > most:
        tell(f"{name} has {most} shots a class, fewer than {max(counts)}: it is run with {', '.join(map(str, found))}")
    return found


def _of_suite(path: str, settings: BenchmarkConfig) -> Entry:
    whole = load_suite(path)
    labels = whole.task.labels

    def suite(shots: int, seed: int) -> Suite:
        rows = coop_draw(labels, shots, seed) if settings.coop_seeds else np.flatnonzero(drawn(labels, shots, seed))
        return replace(whole, task=whole.task.take(np.asarray(rows, np.int64)))
    return Entry(whole.name, possible(parse_shots(settings.shots), labels, whole.name), suite)


def _of_folder(folder: str, settings: BenchmarkConfig, seeds: Sequence[int]) -> Entry:
    """A folder's test images are encoded once, its shots once a seed, and nothing again that is in the cache."""
    wanted = parse_shots(settings.shots)
    problem = read_problem(SourceConfig(
        data=folder, model=settings.model, weights=settings.weights, augment=settings.augment,
        prompt_set=settings.prompt_set, **settings.encoding), max(wanted))
    data, name = problem.data, problem.data.root.name
    if settings.coop_seeds and data.format != "coop":
        raise UserError(f"--coop-seeds: {folder} is read as {data.format}; CoOp draws in the order of its split file, "
                        f"{coop.NAME}….json, which is not there")
    pool = [label for _, label in data.train]
    counts = possible(wanted, pool, name)
    chosen = {(count, seed): [data.train[index] for index in coop_draw(pool, count, seed)] if settings.coop_seeds
              else draw_pool(data, count, seed) for count in counts for seed in seeds}
    tests = data.split(used={path for shots in chosen.values() for path, _ in shots})
    if tests.labels is None:
        raise UserError(f"{folder}: the classes of its test images are not known, so that nothing can be scored")
    encoded = problem.encode()
    rows, bad = test_rows(encoded.source, data.root, tests)
    truth = np.array([tests.labels.get(name, UNKNOWN) for name in tests.names], np.int64)
    kept = [index for index, label in enumerate(truth) if index not in bad and label != UNKNOWN]
    features, labels = rows[kept], truth[kept]
    row_of: dict[tuple[int, str], np.ndarray] = {}
    for seed in seeds:
        every = list(dict.fromkeys(shot for count in counts for shot in chosen[count, seed]))
        found, _, _ = labelled_rows(encoded.source, data.root, every, False, views=settings.augment, seed=seed,
                                    stage=f"shots, seed {seed}")
        row_of.update({(seed, path): row for row, (path, _) in zip(found, every)})

    def suite(shots: int, seed: int) -> Suite:
        some = chosen[shots, seed]
        task = encoded.task(np.stack([row_of[seed, path] for path, _ in some]), [label for _, label in some])
        return Suite(name, task, features, labels, data.class_names, data.domains)
    split = next((path.stem[len(coop.NAME):] for path in data.root.glob(f"{coop.NAME}*.json")), "")
    return Entry(name, counts, suite, split, settings.model)


def require_sound(settings: BenchmarkConfig) -> Choice:
    """Return the methods, and find out before the work what cannot be done. Raise UserError if something is amiss."""
    choice = choose(settings.methods)
    require_possible(choice, {TEXT, SHOTS, UNLABELLED})
    parse_shots(settings.shots)
    require_writable_folder(settings.out, "--out")
    names = [Path(data).stem if Path(data).is_file() else Path(data).resolve().name for data in settings.data]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two of the data sets are called {name}; rename one, so that the table tells them apart")
    return choice


def benchmark(settings: BenchmarkConfig) -> Results | None:
    """Run all cells that are not in the output folder yet; return those asked for, None on all ranks but the first."""
    choice, file = require_sound(settings), Path(settings.out) / RESULTS
    before = read_json(file, Results, "take another folder with --out, or delete it").cells if file.exists() else []
    known = {(cell.data, cell.shots, cell.seed): cell for cell in before}
    first = int(settings.coop_seeds)  # CoOp's seeds begin with 1
    seeds = range(first, first + settings.seeds)
    entries = [_of_suite(data, settings) if Path(data).is_file() else _of_folder(data, settings, seeds)
               for data in settings.data]
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return None
    suites = {(entry.name, count, seed): entry.suite(count, seed)
              for entry in entries for count in entry.counts for seed in seeds}
    results = Results(**made_by(), coop_seeds=settings.coop_seeds, cells=list(known.values()),
                      quoted={entry.name: quoted(entry, settings.coop_seeds) for entry in entries})
    # what the time of a cell grows with, roughly
    cost = {key: (len(suite.features) + 10 * len(suite.task)) * suite.task.num_classes for key, suite in suites.items()}
    left, spent, paid = sum(cost.values()), 0.0, 0.0
    for number, (key, suite) in enumerate(suites.items(), 1):
        (name, count, seed), begun = key, time.perf_counter()
        said, mark = f"{number} of {len(suites)}: {name}, {count} shots, seed {seed}", _fingerprint(suite, choice, seed)
        left -= cost[key]
        if key in known and known[key].fingerprint == mark:
            tell(f"{said}: done before")
            continue
        found = evaluate(suite, Pipeline(choice, seed))
        known[key] = Cell(data=name, shots=count, seed=seed, n=found["n"], k=found["k"], fingerprint=mark,
                          methods=found["methods"], settings=found["settings"])
        results.cells = list(known.values())
        write_json(file, results)
        seconds = time.perf_counter() - begun
        spent, paid = spent + seconds, paid + cost[key]
        tell(f"{said}: {duration(seconds)}" + (f", about {duration(spent / paid * left)} left" if left else ""))
    write_json(file, results)
    results.cells = [cell for key, cell in known.items() if key in suites]
    return results


def _fingerprint(suite: Suite, choice: Choice, seed: int) -> str:
    task = suite.task
    parts = [np.ascontiguousarray(array).tobytes() for array in (
        task.features, task.labels, task.text, task.domains, suite.features, suite.labels)]
    said = f"{__version__} {choice.names} {choice.auto} {seed} {task.scale} {task.parts}"
    return content_digest(b"".join([said.encode(), *parts])).hex()


def quoted(entry: Entry, coop_seeds: bool) -> list[dict[str, Any]]:
    """Return the published numbers on the same split, by the same CLIP and, but for zero-shot, of CoOp's shots."""
    file = Path(__file__).with_name("published.json")
    return [row for row in read_json(file, list[dict[str, Any]])
            if entry.split == row["data"] and entry.encoder == (row["encoder"],)
            and (row["shots"] == 0 or coop_seeds and row["shots"] in entry.counts)]


def curves(results: Results) -> dict[str, dict[int, dict[str, dict]]]:
    """Return {data: {shots: {method: {"top1": [a seed each]}}}}; behind several data sets the mean of what all have."""
    found: dict[str, dict[int, dict[str, dict]]] = {}
    for cell in sorted(results.cells, key=lambda cell: (cell.shots, cell.seed)):
        here = found.setdefault(cell.data, {}).setdefault(cell.shots, {})
        for name, row in cell.methods.items():
            here.setdefault(name, {"top1": []})["top1"].append(row["top1"])
    every = list(found.values())
    for count in every[0] if len(every) > 1 else ():
        rows = [curve[count] for curve in every if count in curve]
        if len(rows) == len(every):
            found.setdefault(f"mean of {len(every)} data sets", {})[count] = {
                name: {"top1": [float(np.mean(one)) for one in zip(*(row[name]["top1"] for row in rows))]}
                for name in rows[0] if all(name in row for row in rows)}
    return found


def tables(results: Results) -> str:
    """Return a table a data set: a row a method, a column a number of shots, mean ± standard deviation over seeds."""
    said = []
    for name, curve in curves(results).items():
        sizes = next((f": {cell.k} classes, {cell.n} test images" for cell in results.cells if cell.data == name), "")
        rows = results.quoted.get(name, [])
        with_quoted = {count: {**methods, **{f"{row['method']} (quoted)": {"top1": [row["top1"]]} for row in rows
                                             if row["shots"] in (0, count)}} for count, methods in curve.items()}
        sources = "; ".join(dict.fromkeys(row["source"] for row in rows))
        said.append(f"{name}{sizes}\n{shot_curve(with_quoted)}" + (f"\nquoted from {sources}" if rows else ""))
    return "\n\n".join(said)
