"""The local leaderboard: what would this score, before a submission is spent on it?

    python -m jclip_fewshot validate --data Dataset --seeds 3

Labelled training images that are not shots serve as a test set. The whole stack of train.py and test.py
runs on them, once a seed (other shots, same held-out images), and a row a method says mean and standard
deviation.

Letters: N held-out images, S shots, K classes.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Dict, List, Tuple

import numpy as np

from jclip_fewshot import runs
from jclip_fewshot.config import TrainConfig, ValidateConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data import prompts
from jclip_fewshot.data.contest import Contest, LabelledPath, read_contest
from jclip_fewshot.data.shots import choose, draw_pool
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, score, table
from jclip_fewshot.features.sources import labelled_rows, open_source
from jclip_fewshot.pipeline import Pipeline, head_names
from jclip_fewshot.storage.arrays import save_json
from jclip_fewshot.task import Task, domain_indices

# Shares of board A's test set by domain, as the contest's participants count them.
BOARD_MIX = {"Animal": 0.16, "Caltech-101": 0.17, "Food-101": 0.16, "Thu-dog": 0.51}
HELD_OUT_SEED = 1_000_003  # of the held-out draw: the same images whatever the shots' seed is


def hold_out(contest: Contest, per_class: int, shots: int) -> Tuple[List[LabelledPath], Contest]:
    """Up to `per_class` labelled images of each class that leave it at least `shots`, and the contest without them.

    Raises:
        UserError: no class has an image to spare.
    """
    counts: Dict[int, int] = {}
    for _, label in contest.train:
        counts[label] = counts.get(label, 0) + 1
    taken: Dict[int, int] = {}
    held = []
    drawn = draw_pool(contest, per_class, HELD_OUT_SEED)
    for path, label in drawn:
        if taken.get(label, 0) < counts[label] - shots:
            taken[label] = taken.get(label, 0) + 1
            held.append((path, label))
    if not held:
        raise UserError(f"no class has more than {shots} training images, so none can be held out; use fewer --shots")
    held_paths = {path for path, _ in held}
    rest = [(path, label) for path, label in contest.train if path not in held_paths]
    return held, dataclasses.replace(contest, train=rest)


def mixed(scores: dict, mix: Dict[str, float]) -> dict:
    """The totals as a mean over domains with the weights `mix`, those that are there scaled to one."""
    weights = {domain: mix[domain] for domain in scores["domains"] if domain in mix}
    if not weights:
        raise UserError(f"--board-mix knows {', '.join(mix)}; this data set has none of these domains")
    total = sum(weights.values())
    return {**scores, **{key: sum(weights[d] * scores["domains"][d][key] for d in weights) / total
                         for key in ("top1", "top5")}}


def parse_shots(text: str) -> List[int]:
    """"1,2,4" → [1, 2, 4].

    Raises:
        UserError: not numbers from 1 up.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UserError(f"--shots takes numbers from 1 up, separated by commas, not {text!r}")
    return list(dict.fromkeys(counts))


def validate(settings: ValidateConfig) -> dict:
    """Runs the stack for every number of shots and every seed.

    Returns {"n", "k", "curve": {shots: {method: {"top1": [a seed each], "top5": [...], "domains":
    {domain: [...]}}}}, "held_out": their paths}.
    """
    counts = parse_shots(settings.shots)
    contest = read_contest(settings.data, settings.board)
    held, contest = hold_out(contest, settings.per_class, max(counts))
    domains = contest.domains
    sentences = prompts.class_sentences(contest.class_names, domains, settings.prompts)
    source = open_source(settings)
    text = source.texts(contest.class_names, sentences)
    features, held, _ = labelled_rows(source, contest.root, held, settings.skip_bad, stage="held out")
    labels = np.array([label for _, label in held], np.int64)
    tell(f"{len(held)} labelled images held out of {len(contest.class_names)} classes")

    curve: Dict[int, Dict[str, dict]] = {}
    for count in counts:
        methods = curve.setdefault(count, {})
        for seed in range(settings.seeds):
            begun = time.perf_counter()
            shots = choose(contest, TrainConfig(shots=count, seed=seed), source, text)
            rows, shots, _ = labelled_rows(source, contest.root, shots, settings.skip_bad, views=settings.augment)
            task = Task(rows, [label for _, label in shots], text, domain_indices(domains), source.scale)
            pipeline = Pipeline(head_names(settings.heads), seed).fit(task)
            for name, answer in pipeline.answer(features).by_method().items():
                scores = score(best_classes(answer), labels, domains)
                if settings.board_mix:
                    scores = mixed(scores, BOARD_MIX)
                row = methods.setdefault(name, {"top1": [], "top5": [], "domains": {}})
                row["top1"].append(scores["top1"])
                row["top5"].append(scores["top5"])
                for domain, inside in scores["domains"].items():
                    row["domains"].setdefault(domain, []).append(inside["top1"])
            tell(f"  {count} shots, seed {seed}: {time.perf_counter() - begun:.1f} s")
    return {"n": len(held), "k": len(contest.class_names), "curve": curve, "held_out": [path for path, _ in held]}


def mean_and_spread(values: List[float]) -> str:
    """`80.12 ± 0.34`: mean and standard deviation over the seeds; the mean alone for one."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def leaderboard(methods: Dict[str, dict]) -> str:
    """A row a method: top-1 and top-5 with their spread over seeds, mean top-1 by domain."""
    domains = list(dict.fromkeys(domain for row in methods.values() for domain in row["domains"]))
    domains = domains if len(domains) > 1 else []
    rows = [[name, mean_and_spread(row["top1"]), mean_and_spread(row["top5"])]
            + [f"{statistics.mean(row['domains'][domain]):.1f}" for domain in domains]
            for name, row in methods.items()]
    return table(["method", "top-1", "top-5"] + domains, rows)


def shot_curve(curve: Dict[int, Dict[str, dict]]) -> str:
    """A row a method, a column a number of shots: mean top-1 and its spread."""
    names = list(next(iter(curve.values())))
    rows = [[name] + [mean_and_spread(curve[count][name]["top1"]) for count in curve] for name in names]
    return table(["top-1"] + [f"{count} shot{'s' if count > 1 else ''}" for count in curve], rows)


def save(settings: ValidateConfig, results: dict) -> str:
    """Leaves the numbers as a record in a run folder of its own; returns the folder."""
    folder = runs.new_run(settings.runs, settings.name or time.strftime("validate-%Y%m%d-%H%M%S"), settings.board)
    save_json(folder / "validate.json", {
        "command": runs.command_line(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": runs.versions(),
        "config": vars(settings), **results})
    return str(folder)
