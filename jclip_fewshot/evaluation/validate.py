"""The local leaderboard: what would this score, before a submission is spent on it?

Labelled training images that are not shots serve as a test set, N images, of the whole pipeline, once a seed.
"""

import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.config import ValidateConfig
from jclip_fewshot.console import filled, tell
from jclip_fewshot.data.data_set import DataSet
from jclip_fewshot.data.listing import LabelledPath
from jclip_fewshot.data.shots import draw_pool
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, score, shown_domains, table
from jclip_fewshot.features.sources import labelled_rows
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.problem import queries_of, read_problem
from jclip_fewshot.provenance import made_by
from jclip_fewshot.records import VALIDATE, Validation
from jclip_fewshot.run import new_folder
from jclip_fewshot.storage.json_files import write_json
from jclip_fewshot.task import fold_of_shots

# Shares of board A's test set by domain, as the contest's participants count them.
BOARD_MIX = {"Animal": 0.16, "Caltech-101": 0.17, "Food-101": 0.16, "Thu-dog": 0.51}
HELD_OUT_SEED = 1_000_003  # of the held-out draws, so that they have nothing to do with the shots


def hold_out(data: DataSet, per_class: int, shots: int, seed: int = 0) -> tuple[list[LabelledPath], DataSet]:
    """Return labelled images of each class that leave it at least `shots`, and the data set without them.

    Of a class that can spare m images, `per_class` at most, 1 to m are held out: a balanced test set would be easier
    for the refinement than those that people have. Raise UserError if no class has an image to spare.
    """
    counts = Counter(label for _, label in data.train)
    rng = np.random.default_rng([HELD_OUT_SEED, seed])
    wanted = {label: int(rng.integers(1, spare + 1)) for label, count in sorted(counts.items())
              if (spare := min(per_class, count - shots)) > 0}
    pool = draw_pool(data, per_class, HELD_OUT_SEED + seed)
    places = fold_of_shots(np.array([label for _, label in pool], np.int64))
    held = [image for image, place in zip(pool, places) if place < wanted.get(image[1], 0)]
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


def sampling_error(hits: np.ndarray, of_domain: Sequence[str], mix: dict[str, float] | None = None) -> float:
    """Return the standard error of the mean of `hits` (N,), √(p(1-p)/N), in percent; `mix` weights the domains'."""
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


def validate(settings: ValidateConfig) -> dict | None:
    """Run every number of shots and every seed. Return "n", "k", "curve" as in `Validation`; None but on rank 0."""
    counts = parse_shots(settings.shots)
    problem = read_problem(settings, max(counts))
    domains, mix = problem.data.domains, BOARD_MIX if settings.board_mix else {}
    if mix:
        domain_weights(domains, mix)  # complains before the work
    hold_out(problem.data, settings.per_class, max(counts))  # likewise
    whole, tests, draws = problem.encode(), {}, {}
    for seed in range(settings.seeds):
        held, rest = hold_out(problem.data, settings.per_class, max(counts), seed)
        encoded = dataclasses.replace(whole, data=rest)
        features, held, _ = labelled_rows(whole.source, rest.root, held, settings.skip_bad,
                                          stage=f"held out, seed {seed}", test_views=settings.views)
        tests[seed] = encoded, features, held
        for count in counts:
            draws[seed, count] = encoded.shots(count, seed, stage=f"{count} shots, seed {seed}")
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return None
    curve: dict[int, dict[str, dict]] = {count: {} for count in counts}
    for number, ((seed, count), (rows, shots, _)) in enumerate(draws.items(), 1):
        (encoded, features, held), begun = tests[seed], time.perf_counter()
        task = encoded.task(rows, [label for _, label in shots])
        pipeline = Pipeline(problem.choice, seed).fit(task, encoded.given([path for path, _ in shots], seed))
        queries = queries_of(encoded.source, encoded.data.root, [path for path, _ in held], features, settings.views)
        labels = np.array([label for _, label in held], np.int64)
        for name, answer in pipeline.answer(queries, every_method=True).by_method().items():
            row = curve[count].setdefault(name, {"top1": [], "top5": [], "error": [], "domains": {}})
            _add(row, best_classes(answer), labels, domains, mix)
        tell(f"fit {number} of {len(draws)}: {count} shots, seed {seed}, {time.perf_counter() - begun:.1f} s")
    return {"n": round(statistics.mean(len(held) for _, _, held in tests.values())), "k": len(problem.data.class_names),
            "curve": curve}


def _add(row: dict, best: np.ndarray, labels: np.ndarray, domains: Sequence[str], mix: dict[str, float]) -> None:
    """Append one draw's scores to a method's row of the curve; best (N, 5), labels (N,)."""
    scores = score(best, labels, domains)
    inside = scores["domains"]
    weights = domain_weights(list(inside), mix) if mix else {}
    for key in ("top1", "top5"):
        row[key].append(sum(weight * inside[domain][key] for domain, weight in weights.items()) if mix else scores[key])
    row["error"].append(sampling_error(best[:, 0] == labels, [domains[label] for label in labels], mix))
    for domain, found in inside.items():
        row["domains"].setdefault(domain, []).append(found["top1"])


def mean_and_spread(values: list[float]) -> str:
    """`80.12 ± 0.34`: mean and standard deviation over the seeds; the mean alone for one."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def leaderboard(methods: dict[str, dict]) -> str:
    """Return a row a method: top-1 and top-5 with their spread over seeds, the sampling error, top-1 by domain."""
    domains = shown_domains(methods)
    rows = [[name, mean_and_spread(row["top1"]), f"± {statistics.mean(row['error']):.2f}", mean_and_spread(row["top5"])]
            + [f"{statistics.mean(row['domains'][domain]):.1f}" for domain in domains]
            for name, row in methods.items()]
    return table(["method", "top-1", "images", "top-5"] + domains, rows, keep=4)


def spread_note(seeds: int) -> str:
    """Return what the two ± of a leaderboard stand for, and how far the estimate carries."""
    images = "± images: what another draw of as many held-out images would change (one standard error)."
    said = f"{images} --seeds 3 shows what other draws change." if seeds == 1 else \
        f"± after top-1: standard deviation over {seeds} draws of shots and held-out images. {images}"
    return filled(f"{said} A test set whose images differ from the training images, or whose classes are otherwise "
                  "frequent, scores otherwise; the refinement depends on the latter.")


def shot_curve(curve: dict[int, dict[str, dict]]) -> str:
    """Return a row a method, a column a number of shots: mean top-1 and spread, empty where it took no part."""
    names = dict.fromkeys(name for methods in sorted(curve.values(), key=len, reverse=True) for name in methods)
    rows = [[name] + [mean_and_spread(methods[name]["top1"]) if name in methods else "" for methods in curve.values()]
            for name in names]
    return table(["top-1"] + [f"{count} shot{'s' if count > 1 else ''}" for count in curve], rows, keep=2)


def save(settings: ValidateConfig, results: dict) -> Path:
    """Leave the numbers as a record in a run folder of its own; return the folder."""
    folder = new_folder(settings.runs, settings.name, settings.board, prefix="validate-")
    write_json(folder / VALIDATE, Validation(**made_by(), config=settings, **results))
    return folder
