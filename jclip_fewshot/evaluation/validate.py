"""The local leaderboard: what would this score, before a submission is spent on it?

    python -m jclip_fewshot validate --data Dataset --seeds 3

Labelled training images that are not shots serve as a test set. The whole pipeline of train.py and test.py
runs on them, once a seed (other shots, other random views, same held-out images), and a row a method says mean and
standard deviation over the seeds, and the sampling error that the held-out images alone bring.

Letters: N held-out images, S shots, K classes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip_fewshot import runs
from jclip_fewshot.backend import ranks
from jclip_fewshot.config import ValidateConfig
from jclip_fewshot.console import filled, tell
from jclip_fewshot.data import prompts
from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.listing import LabelledPath
from jclip_fewshot.data.shots import choose, draw_pool, shortage
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, score, table
from jclip_fewshot.features.sources import labelled_rows, open_source
from jclip_fewshot.methods.towers.plan import plan, tune_names, tuned_rows
from jclip_fewshot.pipeline import Pipeline, head_names
from jclip_fewshot.storage.arrays import save_json
from jclip_fewshot.task import Task, domain_indices

# Shares of board A's test set by domain, as the contest's participants count them.
BOARD_MIX = {"Animal": 0.16, "Caltech-101": 0.17, "Food-101": 0.16, "Thu-dog": 0.51}
HELD_OUT_SEED = 1_000_003  # of the held-out draw: the same images whatever the shots' seed is


def hold_out(contest: DataSet, per_class: int, shots: int) -> tuple[list[LabelledPath], DataSet]:
    """Up to `per_class` labelled images of each class that leave it at least `shots`, and the contest without them.

    Raises:
        UserError: no class has an image to spare.
    """
    counts: dict[int, int] = {}
    for _, label in contest.train:
        counts[label] = counts.get(label, 0) + 1
    taken: dict[int, int] = {}
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


def domain_weights(domains: Sequence[str], mix: dict[str, float]) -> dict[str, float]:
    """The weights `mix` of those domains that are there, scaled to one."""
    weights = {domain: mix[domain] for domain in dict.fromkeys(domains) if domain in mix}
    if not weights:
        raise UserError(f"--board-mix knows {', '.join(mix)}; this data set has none of these domains")
    return {domain: weight / sum(weights.values()) for domain, weight in weights.items()}


def mixed(scores: dict, mix: dict[str, float]) -> dict:
    """The totals as a mean over domains with the weights `mix`, those that are there scaled to one."""
    weights = domain_weights(list(scores["domains"]), mix)
    return {**scores, **{key: sum(weight * scores["domains"][domain][key] for domain, weight in weights.items())
                         for key in ("top1", "top5")}}


def sampling_error(hits: np.ndarray, of_domain: Sequence[str], mix: dict[str, float] | None = None) -> float:
    """Standard error, in percent, that another draw of as many images would bring to the mean of `hits` (N,).

    √(p(1-p)/N); with `mix`, of the mean over domains with those weights, each domain an independent draw.
    """
    def variance(inside: np.ndarray) -> float:
        return inside.mean() * (1 - inside.mean()) / len(inside)
    if not mix:
        return 100 * math.sqrt(variance(hits))
    of_domain = np.asarray(of_domain)
    return 100 * math.sqrt(sum(weight ** 2 * variance(hits[of_domain == domain])
                               for domain, weight in domain_weights(of_domain.tolist(), mix).items()))


def parse_shots(text: str) -> list[int]:
    """"1,2,4" → [1, 2, 4].

    Raises:
        UserError: not numbers from 1 up.
    """
    parts = text.split(",")
    counts = [int(part) for part in parts if part.strip().isdecimal() and len(part) < 9]
    if len(counts) < len(parts) or min(counts) < 1:
        raise UserError(f"--shots takes numbers from 1 up, separated by commas, not {text[:80]!r}")
    return list(dict.fromkeys(counts))


@dataclasses.dataclass(frozen=True)
class _Draw:
    """The shots of one fit and what was learned from their images."""

    count: int
    seed: int
    shots: list[LabelledPath]
    rows: np.ndarray


def validate(settings: ValidateConfig) -> dict | None:
    """Runs the pipeline for every number of shots and every seed.

    Returns {"n", "k", "curve": {shots: {method: {"top1": [a seed each], "top5": [...], "error": [...], "domains":
    {domain: [...]}}}}, "held_out": their paths, "same_shots": [shots for which all seeds drew the same]}; "error" is
    the sampling error of top1. None on all ranks under mpirun but the first, which fits.
    """
    counts, names = parse_shots(settings.shots), head_names(settings.heads)
    tune_names(settings.tune)  # complains before the work
    contest = read_data_set(settings.data, settings.board, settings.domains, format=settings.format,
                            labels=settings.labels)
    tell(contest.summary())
    held, contest = hold_out(contest, settings.per_class, max(counts))
    for note in contest.notes + [shortage(contest, max(counts))]:
        tell(note) if note else None
    domains = contest.domains
    mix = BOARD_MIX if settings.board_mix else None
    if mix:
        domain_weights(domains, mix)  # complains before the work
    sentences = prompts.class_sentences(contest.class_names, domains, settings.prompts, settings.names,
                                        settings.templates, settings.prompt_set, settings.descriptions)
    source = open_source(settings.model, settings.weights, settings.features, settings.features_extra,
                         **settings.encoding)
    text = source.texts(contest.class_names, sentences)
    features, held, _ = labelled_rows(source, contest.root, held, settings.skip_bad, stage="held out",
                                      test_views=settings.views)
    labels = np.array([label for _, label in held], np.int64)
    tell(f"{len(held)} labelled images held out of {len(contest.class_names)} classes")
    draws = []
    for count in counts:
        for seed in range(settings.seeds):
            shots = choose(contest, source, text, count, seed, settings.select, settings.pool)
            rows, shots, _ = labelled_rows(source, contest.root, shots, settings.skip_bad, settings.augment, seed,
                                           f"{count} shots, seed {seed}")
            draws.append(_Draw(count, seed, shots, rows))
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return None

    curve: dict[int, dict[str, dict]] = {count: {} for count in counts}
    of_domain = [domains[label] for label in labels]
    for number, draw in enumerate(draws, 1):
        begun = time.perf_counter()
        task = Task(draw.rows, [label for _, label in draw.shots], text, domain_indices(domains), source.scale,
                    source.parts)
        plain = prompts.plain_sentences(contest.class_names, domains, settings.prompts, settings.names)
        tuning = plan(settings.tune, task, source, contest.root, [path for path, _ in draw.shots], settings.augment,
                      draw.seed, plain)
        tuned = tuned_rows(source, contest.root, [path for path, _ in held], settings.views)
        pipeline = Pipeline(names, draw.seed).fit(task, tuning=tuning)
        answers = pipeline.answer(features, rows_under=tuned, every_member=True).by_method()
        for name, answer in answers.items():
            best = best_classes(answer)
            scores = score(best, labels, domains)
            scores = mixed(scores, mix) if mix else scores
            row = curve[draw.count].setdefault(name, {"top1": [], "top5": [], "error": [], "domains": {}})
            row["top1"].append(scores["top1"])
            row["top5"].append(scores["top5"])
            row["error"].append(sampling_error(best[:, 0] == labels, of_domain, mix))
            for domain, inside in scores["domains"].items():
                row["domains"].setdefault(domain, []).append(inside["top1"])
        tell(f"fit {number} of {len(draws)}: {draw.count} shots, seed {draw.seed}, {time.perf_counter() - begun:.1f} s")
    same = [count for count in counts if settings.seeds > 1
            and len({tuple(draw.shots) for draw in draws if draw.count == count}) == 1]
    return {"n": len(held), "k": len(contest.class_names), "curve": curve, "held_out": [path for path, _ in held],
            "same_shots": same}


def mean_and_spread(values: list[float]) -> str:
    """`80.12 ± 0.34`: mean and standard deviation over the seeds; the mean alone for one."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def leaderboard(methods: dict[str, dict]) -> str:
    """A row a method: top-1 and top-5 with their spread over seeds, the images' sampling error, top-1 by domain."""
    domains = list(dict.fromkeys(domain for row in methods.values() for domain in row["domains"]))
    domains = domains if len(domains) > 1 else []
    rows = [[name, mean_and_spread(row["top1"]), f"± {statistics.mean(row['error']):.2f}", mean_and_spread(row["top5"])]
            + [f"{statistics.mean(row['domains'][domain]):.1f}" for domain in domains]
            for name, row in methods.items()]
    return table(["method", "top-1", "images", "top-5"] + domains, rows, keep=4)


def spread_note(seeds: int, same: bool) -> str:
    """What the two ± of a leaderboard stand for."""
    said = "± images: what another draw of as many held-out images would change (one standard error)."
    if seeds < 2:
        said += " --seeds 3 shows what other shots change."
    elif same:
        said = (f"All {seeds} seeds drew the same shots, as no class has more images: ± after top-1 "
                f"holds random views and training alone, not other shots. {said}")
    else:
        said = f"± after top-1: standard deviation over {seeds} draws of the shots. {said}"
    return filled(said)


def shot_curve(curve: dict[int, dict[str, dict]]) -> str:
    """A row a method, a column a number of shots: mean top-1 and its spread, empty where the method took no part."""
    names = dict.fromkeys(name for methods in sorted(curve.values(), key=len, reverse=True) for name in methods)
    rows = [[name] + [mean_and_spread(methods[name]["top1"]) if name in methods else "" for methods in curve.values()]
            for name in names]
    return table(["top-1"] + [f"{count} shot{'s' if count > 1 else ''}" for count in curve], rows, keep=2)


def require_new(settings: ValidateConfig) -> None:
    """Finds out before the work whether its numbers can be saved."""
    parse_shots(settings.shots)
    runs.require_new_run(settings.runs, settings.name)


def save(settings: ValidateConfig, results: dict) -> Path:
    """Leaves the numbers as a record in a run folder of its own; returns the folder."""
    folder = runs.new_run(settings.runs, settings.name, settings.board, prefix="validate-")
    save_json(folder / "validate.json", {**runs.made_by(), "config": vars(settings), **results})
    return folder
