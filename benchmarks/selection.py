"""Is a representative choice of shots worth more than a random one? Measured on re-split suites.

    python benchmarks/selection.py SUITE.npz [...] [--shots 4] [--pool 16] [--draws 5]

Of each class, part of the suite's labelled test rows becomes the pool that shots are chosen from, and the rest
(three rows or more) the test. Both rules see the same pool, and each draw splits the rows anew, so that the
differences are paired. ± is the standard deviation over draws.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def split(labels, shots, most, rng):
    """(pool rows, test rows): of each class at most `most` rows, and three or more to test on; small classes go."""
    pool, test = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        take = min(most, len(rows) - 3)
        if take <= shots:
            take = 0
        pool.append(rows[:take])
        test.append(rows[take:] if take else rows[:0])
    return np.concatenate(pool), np.concatenate(test)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", type=Path)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--pool", type=int, default=24, help="rows a class that shots are chosen from, at most")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--heads", default="tip_adapter,gda,proker,text_profile")
    options = parser.parse_args()
    from jclip_fewshot.data.shots import choose_representative
    from jclip_fewshot.evaluation.scores import percent
    from jclip_fewshot.evaluation.suites import load_suite
    from jclip_fewshot.heads import HEADS
    from jclip_fewshot.task import Task
    names = options.heads.split(",")
    print(f"{'suite':18} {'classes':>7} {'head':14} {'random':>15} {'representative':>15}  difference")
    for path in options.suites:
        suite = load_suite(path)
        found = {name: [] for name in names}
        for draw in range(options.draws):
            rng = np.random.default_rng(draw)
            pool, test = split(suite.labels, options.shots, options.pool, rng)
            labelled = [(str(row), int(suite.labels[row])) for row in pool]
            chosen = choose_representative(labelled, suite.features[pool], suite.task.text, options.shots)
            drawn = np.concatenate([rng.permutation(pool[suite.labels[pool] == label])[:options.shots]
                                    for label in np.unique(suite.labels[pool])])
            for name in names:
                scores = []
                for rows in (drawn, np.array([int(row) for row, _ in chosen])):
                    task = Task(suite.features[rows], suite.labels[rows], suite.task.text, suite.task.domains)
                    answer = HEADS[name]().fit(task).logits(suite.features[test])
                    scores.append(percent(answer.argmax(axis=1) == suite.labels[test]))
                found[name].append(scores)
        classes = len(np.unique(suite.labels[pool]))
        for name, scores in found.items():
            scores = np.array(scores)
            gain = scores[:, 1] - scores[:, 0]
            cells = [f"{values.mean():8.2f} ± {values.std(ddof=1):.2f}" for values in scores.T]
            print(f"{suite.name:18} {classes:7} {name:14}", *cells, f"{gain.mean():+8.2f} ± {gain.std(ddof=1):.2f}",
                  flush=True)


if __name__ == "__main__":
    main()
