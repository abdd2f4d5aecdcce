"""What the page of a local leaderboard shows: a table for each number of shots, and the curve over them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jclip_fewshot.evaluation.scores import shown_domains
from jclip_fewshot.records import Row, Validation
from jclip_fewshot.report import figures


def leaderboard_page(draw: Callable[..., None], record: Validation) -> dict[str, Any]:
    """Return what the page shows; draw(figure, *arguments) keeps a figure for it; record: what `validate` left."""
    counts = sorted(record.curve)
    boards = {count: {name: _means(row) for name, row in record.curve[count].items()} for count in counts}
    board = boards[counts[-1]]
    domains, deviations = shown_domains(board), {name: row["top1"][1] for name, row in board.items()}
    if len(counts) > 1:
        draw(figures.shot_curves, {"held-out images": record.curve}, "shot_curve")
    draw(figures.ladder, {name: {"top1": row["top1"][0], **row["domains"]} for name, row in board.items()}, domains,
         deviations)
    final = list(board)[-1]
    top1 = board[final]["top1"]
    share = top1[0] / 100
    return {
        "record": record, "boards": boards, "counts": counts, "final": final, "top1": top1, "domains": domains,
        "seeds": len(record.curve[counts[-1]][final]["top1"]), "same": not any(deviations.values()),
        "sampling": 100 * math.sqrt(share * (1 - share) / record.n),  # binomial: one standard error
        "headings": {count: f"{count} shot{'s' if count > 1 else ''}" for count in counts},
        "menu": [*[("curve", "Curve")] * (len(counts) > 1),
                 *((f"shots-{count}", f"{count}-shot") for count in counts[::-1]), ("run", "Run")]}


def _means(row: Row) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, 0 for one; of domains the mean."""
    def both(values: Sequence[float]) -> tuple[float, float]:
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return {"top1": both(row["top1"]), "top5": both(row["top5"]),
            "domains": {domain: statistics.mean(values) for domain, values in row["domains"].items()}}
