"""What the page of a local leaderboard shows: a table for each number of shots, and the curve over them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jclip_fewshot.records import Row, Validation
from jclip_fewshot.report import figures

Methods = dict[str, Row]


def leaderboard_page(draw: Callable[..., None], record: Validation) -> dict[str, Any]:
    """Return what the page shows; draw(figure, *arguments) keeps a figure for it; record: what `validate` left."""
    curve = record.curve
    counts = sorted(curve)
    spread = {count: {name: mean_and_deviation(row["top1"]) for name, row in methods.items()}
              for count, methods in curve.items()}
    if len(counts) > 1:
        draw(figures.shot_curves, {"held-out images": curve}, "shot_curve")
    panels = mean_panels(curve[counts[-1]])
    draw(figures.ladder, panels, {name: deviation for name, (_, deviation) in spread[counts[-1]].items()})
    boards = {count: {name: {"top1": spread[count][name], "top5": mean_and_deviation(row["top5"]),
                             "domains": {domain: statistics.mean(values) for domain, values in row["domains"].items()}}
                      for name, row in methods.items()} for count, methods in curve.items()}
    final = list(curve[counts[-1]])[-1]
    top1 = spread[counts[-1]][final]
    share = top1[0] / 100
    return {
        "record": record, "boards": boards, "counts": counts, "spread": spread, "final": final, "top1": top1,
        "domains": list(panels)[1:], "seeds": len(curve[counts[-1]][final]["top1"]),
        "sampling": 100 * math.sqrt(share * (1 - share) / record.n),  # binomial: one standard error
        "same": not any(deviation for _, deviation in spread[counts[-1]].values()),
        "headings": {count: f"{count} shot{'s' if count > 1 else ''}" for count in counts},
        "menu": [*[("curve", "Curve")] * (len(counts) > 1),
                 *((f"shots-{count}", f"{count}-shot") for count in counts[::-1]), ("run", "Run")]}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return both; the standard deviation is 0 for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_panels(methods: Methods) -> dict[str, dict[str, float]]:
    """Return {"" for the total, or a domain: {method: mean top-1}}; the total alone unless there are two domains."""
    panels = {"": {name: statistics.mean(row["top1"]) for name, row in methods.items()}}
    for domain in dict.fromkeys(domain for row in methods.values() for domain in row["domains"]):
        panels[domain] = {name: statistics.mean(row["domains"][domain]) for name, row in methods.items()
                          if domain in row["domains"]}
    return panels if len(panels) > 2 else {"": panels[""]}
