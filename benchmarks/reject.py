"""What a threshold on the first class's probability costs and catches: `predict --reject P`.

    python benchmarks/reject.py [--seeds 3]

Built-in contest. Three quarters of the classes are learned; the test images of the others belong to none. A row a
threshold: the known images that are answered and how many of those are right, the mean probability of the answers
(equal to that where they are calibrated), and the unknown images that are rejected.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of the contest and of the classes left out")
    parser.add_argument("--methods", default="gda,proker,tip_adapter,text_profile")
    options = parser.parse_args()

    from jclip_fewshot.config import TrainConfig
    from jclip_fewshot.data import demo, prompts
    from jclip_fewshot.data.formats import read_data_set
    from jclip_fewshot.data.shots import choose_shots
    from jclip_fewshot.evaluation.scores import percent
    from jclip_fewshot.features.sources import open_source
    from jclip_fewshot.pipeline import Pipeline
    from jclip_fewshot.task import Task, domain_indices
    found = []
    for seed in range(1, options.seeds + 1):
        settings = demo.settings(TrainConfig(demo=True, demo_seed=seed))
        contest = read_data_set(settings.data)
        source = open_source(settings.model, settings.weights, **settings.encoding)
        classes = np.arange(len(contest.class_names))
        known = np.random.default_rng(seed).permutation(classes) >= len(classes) // 4  # (K,)
        place = np.cumsum(known) - 1
        names, domains = ([all_[k] for k in classes[known]] for all_ in (contest.class_names, contest.domains))
        text = source.texts(names, prompts.class_sentences(names, domains))
        shots = [(path, place[label]) for path, label in choose_shots(contest) if known[label]]
        rows, _ = source.images(contest.root, [path for path, _ in shots], views=settings.augment)
        task = Task(rows, [label for _, label in shots], text, domain_indices(domains), source.scale)
        tests = contest.split()
        labels = tests.labels
        truth = np.array([labels[name] for name in tests.names])
        features, _ = source.images(contest.root, tests.files)
        probs = Pipeline(options.methods).fit(task).answer(features, refine="off").probs
        best, p, inside = probs.argmax(axis=1), probs.max(axis=1), known[truth]
        right = best == place[truth]
        found.append([[percent(p[inside] >= least), percent(right[inside & (p >= least)]),
                       100 * p[inside & (p >= least)].mean(), percent(p[~inside] < least)] for least in THRESHOLDS])
    print(f"{'threshold':>9}  {'known answered':>14}  {'right of those':>14}  {'mean p':>6}  {'rejected':>19}")
    for least, row in zip(THRESHOLDS, np.mean(found, axis=0)):
        print(f"{least:9.1f}  {row[0]:14.1f}  {row[1]:14.1f}  {row[2]:6.1f}  {row[3]:19.1f}")


if __name__ == "__main__":
    main()
