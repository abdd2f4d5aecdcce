"""Is a representative choice of shots worth more than a random one, and does leave-one-shot-out say so?

    python benchmarks/selection.py SUITE.npz [...] [--shots 4] [--pool 24] [--draws 5]

Of each class, part of the suite's labelled test rows becomes the pool that shots are chosen from, and the rest
(three rows or more) the test. Both rules see the same pool, and each draw splits the rows again, so that the
differences are paired. Beside each test score stands what the shots themselves said of it: cv, the top-1 of shots left
out. ± is the standard deviation over draws. Numbers: docs/notes/selection.md.
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
    parser.add_argument("--methods", default="tip_adapter,gda,proker,text_profile")
    options = parser.parse_args()

    from jclip_fewshot.data.shots import choose_representative
    from jclip_fewshot.evaluation.scores import percent
    from jclip_fewshot.evaluation.suites import load_suite
    from jclip_fewshot.pipeline import Pipeline
    from jclip_fewshot.task import Task
    print(f"{'suite':14} {'classes':>7} {'method':13} {'random':>14} {'cv':>14} {'representative':>14} {'cv':>14} "
          f"{'gain':>13} {'cv gain':>14}")
    for path in options.suites:
        suite = load_suite(path)
        found = {}
        for draw in range(options.draws):
            rng = np.random.default_rng(draw)
            pool, test = split(suite.labels, options.shots, options.pool, rng)
            labelled = [(str(row), int(suite.labels[row])) for row in pool]
            chosen = choose_representative(labelled, suite.features[pool], suite.task.text, options.shots)
            drawn = np.concatenate([rng.permutation(pool[suite.labels[pool] == label])[:options.shots]
                                    for label in np.unique(suite.labels[pool])])
            scores = {}
            for rows in (drawn, np.array([int(row) for row, _ in chosen])):
                task = Task(suite.features[rows], suite.labels[rows], suite.task.text, suite.task.domains)
                pipeline = Pipeline(options.methods).fit(task)
                answers = pipeline.answer(suite.features[test], refine="off").by_method()
                held_out = {name: method.held_out_logits() for name, method in pipeline.methods_.items()}
                held_out["ensemble"] = pipeline.held_out_probs_
                for name, answer in answers.items():
                    scores.setdefault(name, []).extend([
                        percent(answer.argmax(axis=1) == suite.labels[test]),
                        percent(held_out[name].argmax(axis=1) == task.labels)])
            for name, row in scores.items():
                found.setdefault(name, []).append(row)
        classes = len(np.unique(suite.labels[pool]))
        for name, rows in found.items():
            rows = np.array(rows)
            columns = [*rows.T, rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1]]
            cells = [f"{values.mean():7.2f} ± {values.std(ddof=1):.2f}" for values in columns]
            print(f"{suite.name:14} {classes:7} {name:13}", *cells, flush=True)


if __name__ == "__main__":
    main()
