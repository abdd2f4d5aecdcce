"""Draws docs/refinement.png: top-1 before and after, against the classes present and against imbalance.

    python benchmarks/refinement_figure.py folder/replica_dev.npz folder/sun397_4shot.npz      about 5 minutes

The files are dumps of benchmarks/refinement.py --dump, or feature suites (then the heads are fitted first).
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from refinement import answers_of, measure

from jclip_fewshot.evaluation.tasks import draw_tasks, long_tail, some_classes

SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
RATIOS = (1, 3, 10, 30, 100)
COLOURS = ("#3b6ea5", "#c8553d", "#5b8c5a", "#8e6c8a")


def curve(answers, draws):
    """Mean top-1 before and after over the draws of every point: two lists."""
    scores = []
    for sets in draws:
        measured = [measure(answers, rows) for rows in sets]
        scores.append(np.mean([[before[0], after[0]] for before, after, _, _ in measured], 0))
    return np.array(scores).T


def draw(paths, target, seeds):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for path, colour in zip(paths, COLOURS):
        answers, name = answers_of(path), Path(path).stem
        labels = answers["labels"]
        present = len(np.unique(labels))
        few = draw_tasks(labels, answers["probs"].shape[1], 8 * seeds, 5, 75)
        shares = [share for share in SHARES if share * present > 5]
        draws = [few] + [[some_classes(labels, seed, share) for seed in range(seeds)] for share in shares]
        counts = [5] + [round(share * present) for share in shares]
        tails = [[long_tail(labels, seed, ratio) for seed in range(seeds)] for ratio in RATIOS]
        for axis, x, sets in ((left, counts, draws), (right, RATIOS, tails)):
            scores = curve(answers, sets)
            axis.plot(x, scores[0], "--o", color=colour, markersize=3, label=f"{name}, ensemble")
            axis.plot(x, scores[1], "-o", color=colour, markersize=4, label=f"{name}, refined")
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
    left.set(xlabel="classes present (of all that compete)", ylabel="top-1, %")
    right.set(xlabel="most frequent class : rarest class")
    right.set_xticks(RATIOS, [f"{ratio} : 1" for ratio in RATIOS])
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncol=len(paths), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="+", help="dumps or feature suites (.npz)")
    parser.add_argument("--out", default=str(ROOT / "docs" / "refinement.png"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    draw(options.suite, options.out, options.seeds)
