"""What the refinement gains over the ensemble it starts from, in every setting that it must survive.

    python benchmarks/refinement.py ../shared/features/*.npz                     the training-free heads: minutes
    python benchmarks/refinement.py --methods all ../shared/features/*.npz         fits everything first
    python benchmarks/refinement.py --draws 3 --shots 2 SUITE.npz                and on fresh draws of the shots

Settings: the whole test set; 1, 2, 3 and 5 rows a class; a long tail, thinned and drawn with replacement; a quarter
and half of the classes; as many random rows as a task has; tasks of 5 classes and at most 75 images, all classes
competing. Labels are used to draw the rows and to score, never by the refinement. The last line of a suite says the
worst mean gain of a setting.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]
from resplit import draw, test_sets

from jclip_fewshot.evaluation.suites import load_suite
from jclip_fewshot.pipeline import Pipeline


def top(probs, labels):
    """Top-1 and top-5 in percent."""
    best = np.argsort(-probs, axis=1, kind="stable")[:, :5]
    return np.array([100 * np.mean(best[:, 0] == labels), 100 * np.mean((best == labels[:, None]).any(1))])


def measure(pipeline, probs, features, labels):
    """Scores before and after, seconds, and the strength that was chosen, for one set of rows."""
    start = time.perf_counter()
    refined = pipeline.refine(features, probs)
    seconds = time.perf_counter() - start
    chosen = refined.decisions.get("features", {}).get("weight", 0.0)
    return top(probs, labels), top(refined.probs, labels), seconds, chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", type=Path)
    parser.add_argument("--methods", default="fast")
    parser.add_argument("--draws", type=int, default=0, help="fresh draws of the shots, in addition to the suite's own")
    parser.add_argument("--shots", type=int, default=4, help="shots a class of a fresh draw")
    parser.add_argument("--seeds", type=int, default=5, help="test sets of each kind")
    parser.add_argument("--tasks", type=int, default=200)
    given = parser.parse_args()
    for path in given.suites:
        suite, found = load_suite(path), {}
        for seed in range(1 if given.draws else 0, given.draws + 1):
            task, features, labels = draw(suite, seed, given.shots)
            pipeline = Pipeline(given.methods).fit(task)
            probs = pipeline.answer(features, refine="off").probs
            for setting, sets in test_sets(labels, given.seeds, given.tasks):
                found.setdefault(setting, []).extend(
                    measure(pipeline, probs[rows], features[rows], labels[rows]) for rows in sets)
        print(f"{suite.name}: N = {len(labels)}, K = {task.num_classes}, {len(pipeline.methods_)} heads")
        worst = np.full(2, np.inf)
        for setting, results in found.items():
            before, after = (np.mean([result[i] for result in results], axis=0) for i in (0, 1))
            gains = np.array([result[1] - result[0] for result in results])
            error = gains[:, 0].std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
            worst = np.minimum(worst, after - before)
            print(f"  {setting:18s} {before[0]:6.2f} -> {after[0]:6.2f} ({after[0] - before[0]:+.2f} ± {error:.2f}, "
                  f"least {gains[:, 0].min():+.2f})   "
                  f"top-5 {before[1]:6.2f} -> {after[1]:6.2f} ({after[1] - before[1]:+.2f})   "
                  f"c {np.mean([result[3] for result in results]):.2f}   "
                  f"{np.mean([result[2] for result in results]):5.2f} s", flush=True)
        print(f"  worst mean gain: top-1 {worst[0]:+.2f}, top-5 {worst[1]:+.2f}", flush=True)


if __name__ == "__main__":
    main()
