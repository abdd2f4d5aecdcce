"""Top-1, top-5 and class-mean accuracy, in all and by domain; tables of them.

Letters: N images, K classes. Accuracies are in percent.
"""

from __future__ import annotations

from typing import Dict, List, Sequence

import numpy as np

from jclip_fewshot.errors import UserError

TOP = 5


def best_classes(probs: np.ndarray, top: int = TOP) -> np.ndarray:
    """(N, K) probabilities or logits → (N, min(top, K)) class ids, best first; ties go to the lower id."""
    return np.argsort(-probs, axis=1, kind="stable")[:, :top]


def with_unreadable(best: np.ndarray, probs: np.ndarray, readable: Sequence[int], total: int) -> np.ndarray:
    """Lines for every image: (R, ≤5) ids of the readable ones → (total, ≤5).

    An image that cannot be read gets the classes that the readable ones' (R, K) probabilities make
    likeliest on average.
    """
    prior = best_classes(probs.mean(axis=0, keepdims=True)) if len(probs) else np.arange(best.shape[1])[None]
    lines = np.repeat(prior, total, axis=0)
    lines[np.asarray(readable, np.int64)] = best
    return lines


def truth_of(labels: Dict[str, int], names: Sequence[str]) -> np.ndarray:
    """The known answers in the order of `names`, (N,).

    Raises:
        UserError: a test image without an answer.
    """
    missing = [name for name in names if name not in labels]
    if missing:
        raise UserError(f"the label file has no answer for {len(missing)} test images ({missing[0]} is the first); "
                        "complete it, or take it away to go without scores")
    return np.array([labels[name] for name in names], np.int64)


def score(best: np.ndarray, labels: np.ndarray, domains: Sequence[str]) -> dict:
    """Scores of (N, ≤5) ids against (N,) labels; `domains` names each class's domain.

    Returns {"top1", "top5", "macro", "domains": {domain: {"n", "top1", "top5"}}}; "macro" is the
    mean over the classes that occur of their top-1. Domains are left out where classes have none.
    """
    first = best[:, 0] == labels
    any_of_five = (best == labels[:, None]).any(axis=1)
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=first)
    result = {"top1": percent(first), "top5": percent(any_of_five),
              "macro": percent(hits[counts > 0] / counts[counts > 0]), "domains": {}}
    of_image = np.asarray(domains)[labels]
    for domain in dict.fromkeys(domains):
        inside = of_image == domain
        if domain and inside.any():
            result["domains"][domain] = {"n": int(inside.sum()), "top1": percent(first[inside]),
                                         "top5": percent(any_of_five[inside])}
    return result


def percent(hits: np.ndarray) -> float:
    """Mean of hits as a percentage; 0 for none."""
    return float(100 * np.mean(hits)) if len(hits) else 0.0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in [list(header)] + [list(r) for r in rows]) for i in range(len(header))]
    lines = []
    for row in [header] + list(rows):
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def score_table(methods: Dict[str, dict]) -> str:
    """A row a method: top-1, top-5, class mean, top-1 of each domain, and seconds and memory where measured."""
    domains: List[str] = list(dict.fromkeys(domain for scores in methods.values() for domain in scores["domains"]))
    if len(domains) < 2:
        domains = []  # one domain says what the total says
    extra = [key for key in ("seconds", "megabytes") if any(key in scores for scores in methods.values())]
    header = ["method", "top-1", "top-5", "class mean"] + domains + extra
    rows = []
    for name, scores in methods.items():
        row = [name, f"{scores['top1']:.2f}", f"{scores['top5']:.2f}", f"{scores['macro']:.2f}"]
        row += [f"{scores['domains'][domain]['top1']:.1f}" if domain in scores["domains"] else "" for domain in domains]
        row += [f"{scores[key]:.1f}" if key in scores else "" for key in extra]
        rows.append(row)
    return table(header, rows)
