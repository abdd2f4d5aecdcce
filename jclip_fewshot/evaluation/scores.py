"""Top-1, top-5 and class-mean accuracy in percent; tables of them and of what methods chose. N images, K classes."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jclip_fewshot.console import columns, filled
from jclip_fewshot.data.data_set import UNKNOWN
from jclip_fewshot.errors import UserError

TOP = 5
# what a table shows of a method's scores, under which heads
HEADS = {"top1": "top-1", "half_width": "± 95 %", "top5": "top-5", "class_mean": "class mean"}
# what record.json says of a method's fit beyond its settings
ONLY_RECORDED = {"chosen_by", "converged", "in_ensemble", "bias_spread", "unseen_offset", "iterations", "epochs"}


def best_classes(probs: np.ndarray, top: int = TOP) -> np.ndarray:
    """Return (N, min(top, K)) class ids of (N, K) probabilities or logits, best first; ties go to the lower id."""
    left, rows = np.array(probs), np.arange(len(probs))
    best = np.empty((len(left), min(top, left.shape[1])), np.int64)
    for place in range(best.shape[1]):  # a few passes cost a tenth of sorting a thousand classes
        best[:, place] = left.argmax(axis=1)
        left[rows, best[:, place]] = -np.inf
    return best


def with_unreadable(best: np.ndarray, probs: np.ndarray, readable: Sequence[int], total: int) -> np.ndarray:
    """Return (total, ≤5) ids by those (R, ≤5) of readable images; others get the likeliest by the mean probs (R, K)."""
    prior = best_classes(probs.mean(axis=0, keepdims=True)) if len(probs) else np.arange(best.shape[1])[None]
    lines = np.repeat(prior, total, axis=0)
    lines[np.asarray(readable, np.int64)] = best
    return lines


def truth_of(labels: dict[str, int], names: Sequence[str]) -> np.ndarray:
    """Return the known answers in the order of `names`, (N,). Raise UserError if a test image has none."""
    missing = [name for name in names if name not in labels]
    if missing:
        raise UserError(f"the label file has no answer for {len(missing)} test images ({missing[0]} is the first); "
                        "complete it, or take it away to go without scores")
    return np.array([labels[name] for name in names], np.int64)


def score(best: np.ndarray, labels: np.ndarray, domains: Sequence[str]) -> dict:
    """Return scores of (N, ≤5) ids against (N,) labels; `domains` names each class's domain, "" for none.

    As {"top1", "top5", "class_mean": mean over the classes that occur, "domains": {domain: {"n", "top1", "top5"}}}.
    """
    first, any_of_five = best[:, 0] == labels, (best == labels[:, None]).any(axis=1)
    counts, hits = np.bincount(labels), np.bincount(labels, weights=first)
    inside_of: dict[str, dict] = {}
    of_image = np.asarray(domains)[labels]
    for domain in dict.fromkeys(domains):
        inside = of_image == domain
        if domain and inside.any():
            inside_of[domain] = {"n": int(inside.sum()), "top1": percent(first[inside]),
                                 "top5": percent(any_of_five[inside])}
    return {"top1": percent(first), "top5": percent(any_of_five),
            "class_mean": percent(hits[counts > 0] / counts[counts > 0]), "domains": inside_of}


def percent(hits: np.ndarray) -> float:
    """Return the mean of hits as a percentage; 0 for none."""
    return float(100 * np.mean(hits)) if len(hits) else 0.0


def score_methods(answers: dict[str, np.ndarray], readable: Sequence[int], truth: np.ndarray,
                  domains: Sequence[str]) -> dict[str, dict]:
    """Return {method: score} of {method: (R, K) answers to the readable images}; truth (N,): class ids, or UNKNOWN."""
    known = truth != UNKNOWN
    best = {name: with_unreadable(best_classes(answer), answer, readable, len(truth))
            for name, answer in answers.items()}
    return {name: score(lines[known], truth[known], domains) for name, lines in best.items()}


def refining_gain(scores: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return top-1 before and after the refinement; None where the set was not refined, or a score is missing."""
    before = "ensemble_tuned" if "ensemble_tuned" in scores else "ensemble"  # what the refinement started from
    if before not in scores or "ensemble_refined" not in scores:
        return None
    return scores[before]["top1"], scores["ensemble_refined"]["top1"]


def gain_text(scores: dict[str, dict]) -> str:
    """Return a line that says what refining the set did, and how to go without; "" where it was not refined."""
    found = refining_gain(scores)
    if found is None:
        return ""
    before, after = found
    gain = f"{'gained' if after > before else 'lost'} {abs(after - before):.2f} points of top-1"
    did = gain if after != before else "changed no score"
    return filled(f"refining the set {did} ({before:.2f} to {after:.2f}); --refine off answers each image by itself"
                  ) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], keep: int | None = None) -> str:
    """Return columns aligned, the first to the left, the rest to the right, as wide as the terminal at most.

    Where they do not fit, headers are broken at spaces and hyphens; then columns go from the right, down to the first
    `keep` (None: all stay), and a line says which.
    """
    width, heads, shown = columns(), [list(header)], len(header)
    whole = _widths([header, *rows])
    if _total(whole) > width:
        parts = [re.sub(r"(?<=-)(?=.)| ", "\n", name).split("\n") if len(name) > 6 else [name] for name in header]
        tallest = max(map(len, parts))
        heads = [list(line) for line in zip(*([""] * (tallest - len(part)) + part for part in parts))]
    widths = _widths([*heads, *rows])
    while keep is not None and shown > keep and _total(widths[:shown]) > width:
        shown -= 1
    text = []
    for row in [*heads, ["-" * wide for wide in widths], *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(wide) for cell, wide in zip(row[1:shown], widths[1:])]
        text.append("  ".join(cells).rstrip())
    if shown < len(header):
        left_out = f"(too narrow for {', '.join(header[shown:])}: COLUMNS={_total(whole)} shows all)"
        text += textwrap.wrap(left_out, max(width, 20))
    return "\n".join(text)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def shown_domains(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the domains of {method: scores}; none where there is only one, which says what the total says."""
    domains = list(dict.fromkeys(domain for row in rows.values() for domain in row.get("domains", ())))
    return domains if len(domains) > 1 else []


def score_table(methods: dict[str, dict]) -> str:
    """Return a row a method: those of HEADS, seconds and megabytes that were measured, and top-1 of each domain."""
    domains, there = shown_domains(methods), {key for scores in methods.values() for key in scores}
    extra, numbers = [key for key in ("seconds", "megabytes") if key in there], [key for key in HEADS if key in there]
    rows = []
    for name, scores in methods.items():
        row = [name, *(f"{scores[key]:.2f}" for key in numbers)]
        row += [f"{scores['domains'][domain]['top1']:.1f}" if domain in scores["domains"] else "" for domain in domains]
        rows.append(row + [f"{scores[key]:.1f}" if key in scores else "" for key in extra])
    return table(["method", *map(HEADS.__getitem__, numbers), *domains, *extra], rows, keep=1 + len(numbers))


def settings_table(settings: dict[str, dict]) -> str:
    """Return a row for each method: its top-1 on held-out shots and the numbers that it chose on the shots."""
    rows = [("method", "held out", "chosen on the shots")]
    for name, chosen in settings.items():
        said = ", ".join(f"{key.replace('_', ' ')} {short(value)}" for key, value in chosen.items()
                         if not key.startswith("held_out_") and key not in ONLY_RECORDED)
        rows.append((name, f"{chosen['held_out_top1']:.1f}" if "held_out_top1" in chosen else "", said))
    first, second, _ = _widths(rows)
    return "\n".join(filled(f"{name:{first}}  {score:>{second}}  {said}".rstrip(), first + second + 4)
                     for name, score, said in rows)


def short(value: object) -> str:
    """Return a setting as a person reads it: 0.333 rather than 0.3333333."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(short, value)) + "]"
    return str(value)
