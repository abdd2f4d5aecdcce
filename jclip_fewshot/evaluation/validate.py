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
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.config import ValidateConfig
from jclip_fewshot.console import filled, tell
from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.listing import LabelledPath
from jclip_fewshot.data.shots import draw_pool
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, score, table
from jclip_fewshot.features.sources import labelled_rows
from jclip_fewshot.methods.plan import Choice
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.problem import Problem, queries_of, read_problem
from jclip_fewshot.provenance import made_by
from jclip_fewshot.records import VALIDATE, Validation
from jclip_fewshot.run import new_folder, require_new
from jclip_fewshot.storage.json_files import write_json

# Shares of board A's test set by domain, as the contest's participants count them.
BOARD_MIX = {"Animal": 0.16, "Caltech-101": 0.17, "Food-101": 0.16, "Thu-dog": 0.51}
HELD_OUT_SEED = 1_000_003  # of the held-out draws, so that they have nothing to do with the shots


def hold_out(data: DataSet, per_class: int, shots: int, seed: int = 0) -> tuple[list[LabelledPath], DataSet]:
    """Return labelled images of each class that leave it at least `shots`, and the data set without them.

    Of each class that can spare m images, `per_class` at most, 1 to m are held out: equally many of every class would
    be a balanced test set, which the refinement finds easier than those that people have.
    Raise UserError if no class has an image to spare.
    """
    counts = Counter(label for _, label in data.train)
    rng = np.random.default_rng([HELD_OUT_SEED, seed])
    wanted = {label: int(rng.integers(1, spare + 1)) for label, count in sorted(counts.items())
              if (spare := min(per_class, count - shots)) > 0}
    held: list[LabelledPath] = []
    for path, label in draw_pool(data, per_class, HELD_OUT_SEED + seed):
        if wanted.get(label, 0) > 0:
            wanted[label] -= 1
            held.append((path, label))
    if not held:
        raise UserError(f"no class has more than {shots} training images, so none can be held out; use fewer --shots")
    gone = {path for path, _ in held}
    return held, dataclasses.replace(data, train=[one for one in data.train if one[0] not in gone])


def domain_weights(domains: Sequence[str], mix: dict[str, float]) -> dict[str, float]:
    """Return the weights `mix` of those domains that are there, scaled to one."""
    weights = {domain: mix[domain] for domain in dict.fromkeys(domains) if domain in mix}
    if not weights:
        raise UserError(f"--board-mix knows {', '.join(mix)}; this data set has none of these domains")
    return {domain: weight / sum(weights.values()) for domain, weight in weights.items()}


def mixed(scores: dict, mix: dict[str, float]) -> dict:
    """Return the totals as a mean over domains with the weights `mix`, those that are there scaled to one."""
    weights = domain_weights(list(scores["domains"]), mix)
    return {**scores, **{key: sum(weight * scores["domains"][domain][key] for domain, weight in weights.items())
                         for key in ("top1", "top5")}}


def sampling_error(hits: np.ndarray, of_domain: Sequence[str], mix: dict[str, float] | None = None) -> float:
    """Return the standard error, in percent, that another draw of as many images brings to the mean of `hits` (N,).

    √(p(1-p)/N); with `mix`, of the mean over domains with those weights, each domain an independent draw.
    """
    def variance(inside: np.ndarray) -> float:
        return inside.mean() * (1 - inside.mean()) / len(inside)
    if not mix:
        return 100 * math.sqrt(variance(hits))
    domains = np.asarray(of_domain)
    return 100 * math.sqrt(sum(weight ** 2 * variance(hits[domains == domain])
                               for domain, weight in domain_weights(of_domain, mix).items()))


def parse_shots(text: str) -> list[int]:
    """"1,2,4" → [1, 2, 4]. Raise UserError if these are not numbers from 1 up."""
    parts = text.split(",")
    counts = [int(part) for part in parts if part.strip().isdecimal() and len(part) < 9]
    if len(counts) < len(parts) or min(counts) < 1:
        raise UserError(f"--shots takes numbers from 1 up, separated by commas, not {text[:80]!r}")
    return list(dict.fromkeys(counts))


@dataclasses.dataclass(frozen=True)
class _Draw:
    """The shots and the held-out images of one fit, encoded."""

    count: int
    seed: int
    encoded: Problem
    shots: list[LabelledPath]
    rows: np.ndarray
    held: list[LabelledPath]
    features: np.ndarray

    def answers(self, choice: Choice, views: int) -> dict[str, np.ndarray]:
        """Return what every method answers to the held-out images, (N, K)."""
        task = self.encoded.task(self.rows, [label for _, label in self.shots])
        given = self.encoded.given([path for path, _ in self.shots], self.seed)
        pipeline = Pipeline(choice, self.seed).fit(task, given)
        queries = queries_of(self.encoded.source, self.encoded.data.root, [path for path, _ in self.held],
                             self.features, views)
        return pipeline.answer(queries, every_method=True).by_method()


def validate(settings: ValidateConfig) -> dict | None:
    """Run the pipeline for every number of shots and every seed, which draws the held-out images and the shots.

    Return {"n", "k", "curve": {shots: {method: {"top1": [a seed each], "top5": [...], "error": [...], "domains":
    {domain: [...]}}}}}: n is the mean number of held-out images, "error" the sampling error of top1. None on all ranks
    under mpirun but the first, which fits.
    """
    counts = parse_shots(settings.shots)
    problem = read_problem(settings, max(counts))
    mix = BOARD_MIX if settings.board_mix else None
    if mix:
        domain_weights(problem.data.domains, mix)  # complains before the work
    hold_out(problem.data, settings.per_class, max(counts))  # likewise
    draws = list(_drawn(problem, counts, settings))
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return None
    domains = problem.data.domains
    curve: dict[int, dict[str, dict]] = {count: {} for count in counts}
    for number, draw in enumerate(draws, 1):
        begun = time.perf_counter()
        labels = np.array([label for _, label in draw.held], np.int64)
        for name, answer in draw.answers(problem.choice, settings.views).items():
            _add(curve[draw.count].setdefault(name, {"top1": [], "top5": [], "error": [], "domains": {}}),
                 best_classes(answer), labels, domains, mix)
        tell(f"fit {number} of {len(draws)}: {draw.count} shots, seed {draw.seed}, {time.perf_counter() - begun:.1f} s")
    return {"n": round(statistics.mean(len(draw.held) for draw in draws)), "k": len(problem.data.class_names),
            "curve": curve}


def _drawn(problem: Problem, counts: list[int], settings: ValidateConfig) -> Iterator[_Draw]:
    """The draws of all seeds and numbers of shots; of one seed they have the same held-out images."""
    whole = problem.encode()
    for seed in range(settings.seeds):
        held, rest = hold_out(problem.data, settings.per_class, max(counts), seed)
        encoded = dataclasses.replace(whole, data=rest)
        features, held, _ = labelled_rows(whole.source, rest.root, held, settings.skip_bad,
                                          stage=f"held out, seed {seed}", test_views=settings.views)
        for count in counts:
            rows, shots, _ = encoded.shots(count, seed, stage=f"{count} shots, seed {seed}")
            yield _Draw(count, seed, encoded, shots, rows, held, features)


def _add(row: dict, best: np.ndarray, labels: np.ndarray, domains: Sequence[str], mix: dict[str, float] | None) -> None:
    """Append one draw's scores to a method's row of the curve; best (N, 5), labels (N,)."""
    scores = score(best, labels, domains)
    scores = mixed(scores, mix) if mix else scores
    row["top1"].append(scores["top1"])
    row["top5"].append(scores["top5"])
    row["error"].append(sampling_error(best[:, 0] == labels, [domains[label] for label in labels], mix))
    for domain, inside in scores["domains"].items():
        row["domains"].setdefault(domain, []).append(inside["top1"])


def mean_and_spread(values: list[float]) -> str:
    """`80.12 ± 0.34`: mean and standard deviation over the seeds; the mean alone for one."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def leaderboard(methods: dict[str, dict]) -> str:
    """Return a row a method: top-1 and top-5 with their spread over seeds, the sampling error, top-1 by domain."""
    domains = list(dict.fromkeys(domain for row in methods.values() for domain in row["domains"]))
    domains = domains if len(domains) > 1 else []
    rows = [[name, mean_and_spread(row["top1"]), f"± {statistics.mean(row['error']):.2f}", mean_and_spread(row["top5"])]
            + [f"{statistics.mean(row['domains'][domain]):.1f}" for domain in domains]
            for name, row in methods.items()]
    return table(["method", "top-1", "images", "top-5"] + domains, rows, keep=4)


def spread_note(seeds: int) -> str:
    """Return what the two ± of a leaderboard stand for, and how far the estimate carries."""
    said = "± images: what another draw of as many held-out images would change (one standard error)."
    if seeds > 1:
        said = f"± after top-1: standard deviation over {seeds} draws of shots and held-out images. {said}"
    else:
        said += " --seeds 3 shows what other draws change."
    return filled(f"{said} A test set whose images differ from the training images, or whose classes are otherwise "
                  "frequent, scores otherwise; the refinement depends on the latter.")


def shot_curve(curve: dict[int, dict[str, dict]]) -> str:
    """Return a row a method, a column a number of shots: mean top-1 and spread, empty where it took no part."""
    names = dict.fromkeys(name for methods in sorted(curve.values(), key=len, reverse=True) for name in methods)
    rows = [[name] + [mean_and_spread(methods[name]["top1"]) if name in methods else "" for methods in curve.values()]
            for name in names]
    return table(["top-1"] + [f"{count} shot{'s' if count > 1 else ''}" for count in curve], rows, keep=2)


def require_name(settings: ValidateConfig) -> None:
    """Raise UserError if the numbers of a validation cannot be saved."""
    parse_shots(settings.shots)
    require_new(settings.runs, settings.name)


def save(settings: ValidateConfig, results: dict) -> Path:
    """Leave the numbers as a record in a run folder of its own; return the folder."""
    folder = new_folder(settings.runs, settings.name, settings.board, prefix="validate-")
    write_json(folder / VALIDATE, Validation(**made_by(), config=settings, **results))
    return folder
