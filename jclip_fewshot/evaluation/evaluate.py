"""The pipeline of train.py and test.py on a labelled feature suite: a row a method.

    python -m jclip_fewshot evaluate --suite FILE.npz

Letters: N test rows, S shots, K classes, D feature width.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jclip_fewshot.backend.numerics import blocks, softmax
from jclip_fewshot.combine.em_dirichlet import em_dirichlet
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.memory import PeakMemory
from jclip_fewshot.evaluation.scores import best_classes, percent, score, score_table, table
from jclip_fewshot.evaluation.suites import Suite
from jclip_fewshot.evaluation.tasks import draw_tasks
from jclip_fewshot.methods.base import Given, Unlabelled
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.storage.files import write_text
from jclip_fewshot.storage.json_files import read_json
from jclip_fewshot.task import Task, zero_shot_logits

OnMethod = Callable[[str], None]  # told of each method as it is done
Transductive = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (N, D), ensemble's probabilities (N, K) → (N, K)
EM_LARGEST = 10_000_000  # images times classes, at most
EM_TEMPERATURE = 30.0  # T of z = softmax(T x tᵀ): Martin et al. 2024
Z95 = 1.96  # half of a normal 95 % interval, in standard errors


def predict(suite: Suite, pipeline: Pipeline, on_method: OnMethod = lambda _: None
            ) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Fit the pipeline on the suite's shots and apply every method to its test rows, some at a time.

    The test rows serve as the images without labels of methods that learn from such.

    Return {method: (N, 5) class ids, best first} and {method: {"seconds", "megabytes"}}; a method's seconds hold its
    search, its folds and its logits, its megabytes the peak of its fit above what was in use before.
    """
    costs: dict[str, dict] = {}
    meter = PeakMemory()

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
    """Return the suite's test rows and text rows, for methods that learn without labels."""
    return Given(unlabelled=Unlabelled(suite.features, list(suite.task.text[:, None]), suite.classes))


def transductive(task: Task, pipeline: Pipeline, images: int) -> dict[str, Transductive]:
    """Return the methods that look at the test rows as a whole, by name.

    em_dirichlet and em_dirichlet_hard, which need shots, run as published, on zero-shot probabilities, with the
    authors' settings for tasks of few classes; on very many images and classes they are left out, and it is said. The
    refinement is the project's own.
    """
    def refined(features: np.ndarray, probs: np.ndarray) -> np.ndarray:
        return pipeline.refine(features, probs).probs

    name = "ensemble_refined" if len(pipeline.methods_) > 1 else "zero_shot_refined"
    if not len(task):
        return {name: refined}
    if images * task.num_classes > EM_LARGEST:
        tell(f"EM-Dirichlet is left out: it needs {32 * images * task.num_classes / 1e9:.0f} GB for {images:,} images "
             f"of {task.num_classes} classes")
        return {name: refined}
    support = _simplex(task.features, task.text)

    def published(hard: bool) -> Transductive:
        def run(features: np.ndarray, _probs: np.ndarray) -> np.ndarray:
            return em_dirichlet(_simplex(features, task.text), support, task.labels, hard=hard).scores
        return run
    return {"em_dirichlet": published(False), "em_dirichlet_hard": published(True), name: refined}


def _simplex(features: np.ndarray, text: np.ndarray) -> np.ndarray:
    """z = softmax(T x tᵀ), (N, K)."""
    return softmax(zero_shot_logits(features, text).astype(np.float64) * (EM_TEMPERATURE / 100))


def evaluate(suite: Suite, pipeline: Pipeline, on_method: OnMethod = lambda _: None) -> dict:
    """Return scores of every method on the suite, and which test rows each got right.

    As {"suite", "n", "k", "methods": {name: {"top1", "top5", "class_mean", "domains", "seconds",
    "megabytes"}}, "settings": {name: {...}}, "correct": {name: a 0 or 1 a row}}.
    """
    found, costs = predict(suite, pipeline, on_method)
    methods, correct = {}, {}
    for name, best in found.items():
        methods[name] = {**score(best, suite.labels, suite.domains), **costs[name]}
        correct[name] = "".join(map(str, (best[:, 0] == suite.labels).astype(int)))
    return {"suite": suite.name, "n": len(suite.labels), "k": len(suite.classes), "methods": methods,
            "settings": pipeline.settings(), "correct": correct}


def evaluate_tasks(suite: Suite, pipeline: Pipeline, tasks: int, classes: int, queries: int, seed: int,
                   on_method: OnMethod = lambda _: None) -> dict:
    """The transductive papers' protocol: many small tasks whose queries come from few classes.

    Each task draws `classes` classes and up to `queries` of their test rows; all K classes compete. Return
    {"suite", "tasks", "task_classes", "task_queries", "seed", "methods": {name: {"top1", "half_width"}}, "accuracy":
    {name: top-1 of each task}}: the mean top-1 over tasks and half of its 95 % interval.
    Raise UserError if a task has more classes than have test rows.
    """
    try:
        drawn = draw_tasks(suite.labels, len(suite.classes), tasks, classes, queries, seed)
    except ValueError as error:
        raise UserError(f"--tasks {tasks} --task-classes {classes} --task-queries {queries}: {error}") from error
    pipeline.fit(suite.task, unlabelled_of(suite), lambda name, _: on_method(name))
    answers = pipeline.answer(suite.features, refine="off")
    hits = {name: answer.argmax(axis=1) == suite.labels for name, answer in answers.by_method().items()}
    accuracy: dict[str, list[float]] = {name: [percent(hit[rows]) for rows in drawn] for name, hit in hits.items()}
    for name, method in transductive(suite.task, pipeline, queries).items():
        accuracy[name] = []
        for rows in drawn:
            answer = method(suite.features[rows], answers.probs[rows])
            accuracy[name].append(percent(answer.argmax(axis=1) == suite.labels[rows]))
        on_method(name)
    methods = {name: {"top1": float(np.mean(values)), "half_width": half_width(values)}
               for name, values in accuracy.items()}
    return {"suite": suite.name, "tasks": len(drawn), "task_classes": classes, "task_queries": queries,
            "seed": seed, "methods": methods, "accuracy": accuracy}


def half_width(values: list[float]) -> float:
    """Return half of the 95 % interval of the mean of `values`; 0 for fewer than two."""
    return float(Z95 * np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def bootstrap(correct: str, resamples: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the top-1 accuracy, in percent, by resampling the test rows."""
    hits = np.frombuffer(correct.encode(), np.uint8) - ord("0")
    # the number of hits among N rows drawn with replacement is binomial
    share = np.random.default_rng(seed).binomial(len(hits), hits.mean(), resamples) / len(hits)
    low, high = np.percentile(100 * share, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_mean(values: list[float], resamples: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` by resampling them: of the tasks' top-1."""
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    for place in range(resamples):
        means[place] = np.mean(rng.choice(values, len(values)))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def intervals(results: dict, resamples: int) -> dict[str, tuple[float, float]]:
    """Return each method's 95 % interval of the top-1, from `evaluate` or `evaluate_tasks`."""
    if "accuracy" in results:
        return {name: bootstrap_mean(values, resamples) for name, values in results["accuracy"].items()}
    return {name: bootstrap(correct, resamples) for name, correct in results["correct"].items()}


def mcnemar(ours: str, theirs: str) -> tuple[int, int, float]:
    """Return (rows that only ours has right, rows that only theirs has, two-sided exact p) of paired answers.

    McNemar 1947: without a difference, each row in which just one is right is a fair coin.
    """
    wins = sum(a > b for a, b in zip(ours, theirs))
    losses = sum(a < b for a, b in zip(ours, theirs))
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2 ** n if n else 1.0
    return wins, losses, min(1.0, 2 * tail)


def read_results(path: Path, tasks: bool = False) -> dict:
    """Return a JSON that `evaluate --json` wrote, `tasks`: with --tasks. Raise UserError if it is no such file."""
    detail = "accuracy" if tasks else "correct"
    try:
        results: dict = read_json(path)
    except UserError as error:
        raise UserError(f"--compare {error}") from error
    if not isinstance(results.get("suite"), str) or not all(
            isinstance(results.get(key), dict) and results[key] for key in ("methods", detail)):
        raise UserError(f"--compare {path}: not a file that evaluate --json wrote {'with' if tasks else 'without'} "
                        "--tasks")
    try:
        for name, values in results[detail].items():
            float(results["methods"][name]["top1"]), [float(value) for value in values]
        results["tasks" if tasks else "n"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--compare {path}: damaged; evaluate again") from error
    return results


def comparison_table(results: dict, other: dict) -> str:
    """Return a row a method of both results: top-1, theirs, rows won and lost, McNemar's p."""
    if (results["suite"], results["n"]) != (other["suite"], other["n"]):
        raise UserError(f"--compare: that file is of {other['suite']} with {other['n']} rows, "
                        f"this is {results['suite']} with {results['n']}")
    rows = []
    for name, correct in results["correct"].items():
        if name in other["correct"]:
            wins, losses, p = mcnemar(correct, other["correct"][name])
            rows.append([name, f"{results['methods'][name]['top1']:.2f}", f"{other['methods'][name]['top1']:.2f}",
                         str(wins), str(losses), f"{p:.3g}"])
    return table(["method", "top-1", "theirs", "wins", "losses", "p"], rows)


def tasks_comparison(results: dict, other: dict) -> str:
    """Return a row a method of both results: mean top-1, theirs, the mean difference on the same tasks and its 95 %."""
    same = ("suite", "tasks", "task_classes", "task_queries", "seed")
    for key in same:
        if results[key] != other.get(key):
            raise UserError(f"--compare: that file has {key} {other.get(key)}, this is {results[key]}; tasks can only "
                            "be compared where they are the same")
    rows = []
    for name, ours in results["accuracy"].items():
        theirs = other["accuracy"].get(name, [])
        if len(theirs) == len(ours):
            gains = [a - b for a, b in zip(ours, theirs)]
            rows.append([name, f"{np.mean(ours):.2f}", f"{np.mean(theirs):.2f}", f"{np.mean(gains):+.2f}",
                         f"{half_width(gains):.2f}"])
    return table(["method", "top-1", "theirs", "difference", "± 95 %"], rows)


def tasks_table(results: dict) -> str:
    """Return a row a method: mean top-1 over the tasks and half of its 95 % interval; and the bootstrap's, if there."""
    rows = [[name, f"{scores['top1']:.2f}", f"{scores['half_width']:.2f}"]
            for name, scores in results["methods"].items()]
    return table(["method", "top-1", "± 95 %"], rows) + _intervals_table(results)


def results_table(results: dict) -> str:
    """Return the scores and, where they are there, each method's bootstrap interval of the top-1 below."""
    return score_table(results["methods"]) + _intervals_table(results)


def _intervals_table(results: dict) -> str:
    if "intervals" not in results:
        return ""
    rows = [[name, f"{results['methods'][name]['top1']:.2f}", *(f"{bound:.2f}" for bound in bounds)]
            for name, bounds in results["intervals"].items()]
    return "\n\n" + table(["95 % of top-1", "top-1", "from", "to"], rows)


def by_seed(found: Sequence[dict]) -> dict[str, list[float]]:
    """Return {method: top-1 for each of several results of `evaluate`}, of the methods that all have."""
    names = [name for name in found[0]["methods"] if all(name in one["methods"] for one in found)]
    return {name: [one["methods"][name]["top1"] for one in found] for name in names}


def seeds_table(top1: dict[str, list[float]]) -> str:
    """Return a row a method: mean, standard deviation, least and largest top-1 over the seeds."""
    rows = [[name, f"{np.mean(values):.2f}", f"{np.std(values, ddof=1):.2f}", f"{min(values):.2f}",
             f"{max(values):.2f}"] for name, values in top1.items()]
    seeds = len(next(iter(top1.values()), []))
    return table([f"{seeds} seeds", "top-1", "± seeds", "least", "largest"], rows)


def save_results(path: Path, results: dict) -> None:
    """Write results as JSON, whole or not at all."""
    write_text(path, json.dumps(results, indent=1) + "\n")
