"""The pipeline on a labelled feature suite, a row a method: `python -m jclip_fewshot evaluate --suite FILE.npz`.

Letters: N test rows, S shots, K classes, D feature width.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from jclip_fewshot.backend.numerics import blocks, softmax
from jclip_fewshot.combine.em_dirichlet import em_dirichlet
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, percent, score, table
from jclip_fewshot.evaluation.suites import Suite
from jclip_fewshot.methods.base import Given, Unlabelled
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.storage.json_files import read_json
from jclip_fewshot.task import Task, zero_shot_logits

OnMethod = Callable[[str], None]  # told of each method as it is done
Transductive = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (N, D), ensemble's probabilities (N, K) → (N, K)
EM_LARGEST = 10_000_000  # images times classes, at most
EM_TEMPERATURE = 30.0  # T of z = softmax(T x tᵀ): Martin et al. 2024
Z95 = 1.96  # half of a normal 95 % interval, in standard errors


class Compared(msgspec.Struct):
    """What a comparison reads of results: each method's "0110…", the test rows it had right, or top-1 of every task."""

    suite: str
    n: int = 0
    correct: dict[str, str] = {}
    tasks: int = 0
    task_classes: int = 0
    task_queries: int = 0
    seed: int = 0
    accuracy: dict[str, list[float]] = {}


class PeakMemory:
    """The process's peak, lap by lap; Linux alone lets a process reset it, elsewhere every lap is 0."""

    highest = 0.0  # of all laps of the process so far, in MB, which Linux forgets with each reset

    def __init__(self) -> None:
        self._base = 0.0
        self.lap()

    def lap(self) -> float:
        """Return the peak since the last lap, in MB above the resident size at its beginning."""
        used = _peak() - self._base
        PeakMemory.highest = max(PeakMemory.highest, _peak())
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # 5: forget the peak resident size
        self._base = _peak()
        return max(used, 0.0)


def _peak() -> float:
    """VmHWM of /proc/self/status, in MB."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return 0.0


def predict(suite: Suite, pipeline: Pipeline, on_method: OnMethod = lambda _: None
            ) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Fit the pipeline on the suite's shots and apply every method to its test rows, some at a time.

    Return {method: (N, 5) class ids, best first} and {method: {"seconds", "megabytes": the peak above what was used}}.
    """
    meter, costs = PeakMemory(), dict[str, dict]()

    def done(name: str, seconds: float) -> None:
        costs[name] = {"seconds": seconds, "megabytes": meter.lap()}
        on_method(name)

    pipeline.fit(suite.task, unlabelled_of(suite), done)
    found: dict[str, list[np.ndarray]] = {name: [] for name in pipeline.methods_}
    probs = np.empty((len(suite.features), suite.task.num_classes), np.float32)
    for rows in blocks(len(probs)):
        logits = {}
        for name, method in pipeline.methods_.items():
            begun = time.perf_counter()
            logits[name] = method.logits(suite.features[rows])
            found[name].append(best_classes(logits[name]))
            costs[name]["seconds"] += time.perf_counter() - begun
        begun = time.perf_counter()
        probs[rows] = pipeline.ensemble_.probs(logits)
        costs["ensemble"]["seconds"] += time.perf_counter() - begun
    best = {name: np.concatenate(parts) for name, parts in found.items()}
    if len(best) > 1:
        best["ensemble"] = best_classes(probs)
    meter.lap()
    for name, answer in transductive(suite.task, pipeline, len(probs)).items():
        begun = time.perf_counter()
        best[name] = best_classes(answer(suite.features, probs))
        costs[name] = {"seconds": time.perf_counter() - begun, "megabytes": meter.lap()}
        on_method(name)
    return best, costs


def unlabelled_of(suite: Suite) -> Given:
    """Return the suite's test rows, for methods that learn without labels, and its text rows."""
    return Given(unlabelled=Unlabelled(suite.features, list(suite.task.text[:, None]), suite.classes))


def transductive(task: Task, pipeline: Pipeline, images: int) -> dict[str, Transductive]:
    """Return the methods that look at the test rows as a whole, by name: the refinement, and EM-Dirichlet.

    The latter needs shots and runs as published, on z = softmax(T x tᵀ), with the authors' settings for tasks of few
    classes; on very many images and classes it is left out, and it is said.
    """
    def simplex(features: np.ndarray) -> np.ndarray:
        return softmax(zero_shot_logits(features, task.text).astype(np.float64) * (EM_TEMPERATURE / 100))

    found: dict[str, Transductive] = {}
    if len(task) and images * task.num_classes > EM_LARGEST:
        tell(f"EM-Dirichlet is left out: it needs {32 * images * task.num_classes / 1e9:.0f} GB for {images:,} images "
             f"of {task.num_classes} classes")
    elif len(task):
        support = simplex(task.features)
        for hard in (False, True):
            def published(features: np.ndarray, _: np.ndarray, hard: bool = hard) -> np.ndarray:
                return em_dirichlet(simplex(features), support, task.labels, hard=hard).scores
            found["em_dirichlet_hard" if hard else "em_dirichlet"] = published
    name = "ensemble_refined" if len(pipeline.methods_) > 1 else "zero_shot_refined"
    return {**found, name: lambda features, probs: pipeline.refine(features, probs).probs}


def evaluate(suite: Suite, pipeline: Pipeline, on_method: OnMethod = lambda _: None) -> dict:
    """Return {"suite", "n", "k", "methods": {name: scores, costs}, "settings", "correct": {name: "0110…"}}."""
    found, costs = predict(suite, pipeline, on_method)
    hits = {name: best[:, 0] == suite.labels for name, best in found.items()}
    methods = {name: {**score(best, suite.labels, suite.domains), "half_width": half_width(100 * hits[name]),
                      **costs[name]} for name, best in found.items()}
    correct = {name: "".join(map(str, hit.astype(int))) for name, hit in hits.items()}
    return {"suite": suite.name, "n": len(suite.labels), "k": len(suite.classes), "methods": methods,
            "settings": pipeline.settings(), "correct": correct}


def evaluate_tasks(suite: Suite, pipeline: Pipeline, tasks: int, classes: int, queries: int, seed: int,
                   on_method: OnMethod = lambda _: None) -> dict:
    """Return scores by the transductive papers' protocol: many small tasks with few of the classes, which all compete.

    In "methods" {name: {"top1": mean over tasks, "half_width": of its 95 % interval}}, in "accuracy" {name: top-1 of
    each task}. Raise UserError as `draw_tasks`.
    """
    drawn = draw_tasks(suite.labels, tasks, classes, queries, seed)
    pipeline.fit(suite.task, unlabelled_of(suite), lambda name, _: on_method(name))
    answers = pipeline.answer(suite.features, refine="off")
    hits = {name: answer.argmax(axis=1) == suite.labels for name, answer in answers.by_method().items()}
    accuracy: dict[str, list[float]] = {name: [percent(hit[rows]) for rows in drawn] for name, hit in hits.items()}
    for name, method in transductive(suite.task, pipeline, queries).items():
        found = (method(suite.features[rows], answers.probs[rows]).argmax(axis=1) for rows in drawn)
        accuracy[name] = [percent(guess == suite.labels[rows]) for guess, rows in zip(found, drawn)]
        on_method(name)
    methods = {name: {"top1": float(np.mean(values)), "half_width": half_width(values)}
               for name, values in accuracy.items()}
    return {"suite": suite.name, "tasks": len(drawn), "task_classes": classes, "task_queries": queries,
            "seed": seed, "methods": methods, "accuracy": accuracy}


def draw_tasks(labels: np.ndarray, tasks: int, classes: int, queries: int, seed: int = 0) -> list[np.ndarray]:
    """Return every task's rows as Martin et al. 2024 draw them: `queries` of `classes` classes, or all they have."""
    present, rng, drawn = np.unique(labels), np.random.default_rng(seed), []
    if tasks < 1 or queries < 1 or not 1 <= classes <= len(present):
        raise UserError(f"--tasks {tasks} --task-classes {classes} --task-queries {queries}: need a task, a query, "
                        f"and 1 to {len(present)} classes: those with test rows")
    for _ in range(tasks):
        rows = np.flatnonzero(np.isin(labels, rng.choice(present, classes, replace=False)))
        drawn.append(rng.permutation(rows)[:queries])
    return drawn


def half_width(values: list[float] | np.ndarray) -> float:
    """Return half of the 95 % interval of the mean of `values`, rows or tasks; 0 for fewer than two."""
    return float(Z95 * np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def mcnemar(ours: str, theirs: str) -> tuple[int, int, float]:
    """Return (rows only ours has right, rows only theirs, two-sided exact p of as many fair coins): McNemar 1947."""
    wins, losses = (sum(a > b for a, b in pairs) for pairs in (zip(ours, theirs), zip(theirs, ours)))
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    return wins, losses, min(1.0, 2 * tail)


def read_results(path: Path, tasks: bool = False) -> Compared:
    """Return a JSON that `evaluate --json` wrote, `tasks`: with --tasks. Raise UserError if it is no such file."""
    said = f"not a file that evaluate --json wrote {'with' if tasks else 'without'} --tasks"
    try:
        results = read_json(path, Compared, said)
    except UserError as error:
        raise UserError(f"--compare {error}") from error
    if not (results.accuracy if tasks else results.correct):
        raise UserError(f"--compare {path}: {said}")
    return results


def comparison(results: dict, other: Compared) -> str:
    """Return a row a method of both results: top-1, theirs, chance; raise UserError if the rows or tasks differ."""
    tasks, rows = "accuracy" in results, []
    for key in ("suite", "tasks", "task_classes", "task_queries", "seed") if tasks else ("suite", "n"):
        if results[key] != getattr(other, key):
            raise UserError(f"--compare: that file has {key} {getattr(other, key)}, this is {results[key]}; only what "
                            f"answers the same {'tasks' if tasks else 'rows'} can be compared")
    for name, correct in ({} if tasks else results["correct"]).items():
        theirs = other.correct.get(name, "")
        if len(theirs) == len(correct):
            wins, losses, p = mcnemar(correct, theirs)
            rows.append([name, *(f"{100 * hits.count('1') / len(hits):.2f}" for hits in (correct, theirs)), str(wins),
                         str(losses), f"{p:.3g}"])
    for name, ours in results.get("accuracy", {}).items():
        accuracy = other.accuracy.get(name, [])
        if len(accuracy) == len(ours):
            gains = [a - b for a, b in zip(ours, accuracy)]
            rows.append([name, f"{np.mean(ours):.2f}", f"{np.mean(accuracy):.2f}", f"{np.mean(gains):+.2f}",
                         f"{half_width(gains):.2f}"])
    return table(["method", "top-1", "theirs", *(["difference", "± 95 %"] if tasks else ["wins", "losses", "p"])], rows)


def by_seed(found: Sequence[dict]) -> dict[str, list[float]]:
    """Return {method: top-1 for each of several results of `evaluate`}, of the methods that all have."""
    names = [name for name in found[0]["methods"] if all(name in one["methods"] for one in found)]
    return {name: [one["methods"][name]["top1"] for one in found] for name in names}


def seeds_table(top1: dict[str, list[float]]) -> str:
    """Return a row a method: mean, standard deviation, least and largest top-1 over the seeds."""
    rows = [[name, *(f"{value:.2f}" for value in (np.mean(of), np.std(of, ddof=1), min(of), max(of)))]
            for name, of in top1.items()]
    seeds = len(next(iter(top1.values()), []))
    return table([f"{seeds} seeds", "top-1", "± seeds", "least", "largest"], rows)
