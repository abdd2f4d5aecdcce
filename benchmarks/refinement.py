"""What the refinement gains over the ensemble it starts from, in every setting that it must survive.

    python benchmarks/refinement.py ../shared/features/replica_dev.npz       fits the heads first: minutes
    python benchmarks/refinement.py --dump folder ../shared/features/*.npz   keeps the ensemble's answers
    python benchmarks/refinement.py --quick --parts folder/replica_dev.npz   from such a file; with ablation

Settings: the whole test set; a long tail, thinned and drawn with replacement; a quarter and half of the
classes; as many random rows as a task has; tasks of 5 classes and at most 75 queries, all classes competing.
Labels are used to draw the rows and to score, never by the refinement.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from jclip_fewshot.combine import refinement  # noqa: E402
from jclip_fewshot.evaluation.tasks import draw_tasks, long_tail, quarter_classes, some_classes  # noqa: E402
from jclip_fewshot.task import Task  # noqa: E402

PARTS = {"bias": {"EVIDENCE": {"dense": 0.0, "sparse": 0.0}, "CONCENTRATIONS": (np.inf,)},
         "weights": {"EVIDENCE": {"dense": 0.0, "sparse": 0.0}, "STRENGTHS": (np.inf,)},
         "distances": {"CONCENTRATIONS": (np.inf,), "STRENGTHS": (np.inf,), "AGREEMENT": 0.0},
         "distances and agreement": {"CONCENTRATIONS": (np.inf,), "STRENGTHS": (np.inf,)}}


def answers_of(path, folder=None):
    """The ensemble's answers on a suite: read where `path` is a dump, else fitted and kept in `folder`."""
    with np.load(path) as arrays:
        if "probs" in arrays:
            return {name: arrays[name] for name in arrays.files}
    from jclip_fewshot.evaluation.suites import load_suite
    from jclip_fewshot.pipeline import Pipeline

    suite = load_suite(path)
    pipeline = Pipeline().fit(suite.task, lambda name, seconds: print(f"  {name} {seconds:.0f} s", flush=True))
    answers = {"probs": pipeline.answer(suite.features, refine="off").probs, "held_out": pipeline.held_out_probs_,
               "features": suite.features, "labels": suite.labels, "shots_features": suite.task.features,
               "shots_labels": suite.task.labels, "text": suite.task.text, "domains": suite.task.domains}
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savez(Path(folder, Path(path).name), **answers)
    return answers


def settings(labels, num_classes, seeds, tasks):
    """(name, list of row indices) of every setting."""
    rng = np.random.default_rng(0)
    yield "whole", [np.arange(len(labels))]
    yield "long tail", [long_tail(labels, seed) for seed in range(seeds)]
    yield "long tail, drawn", [long_tail(labels, seed, size=len(labels)) for seed in range(seeds)]
    yield "half the classes", [some_classes(labels, seed, 0.5) for seed in range(seeds)]
    yield "quarter", [quarter_classes(labels, seed) for seed in range(seeds)]
    yield "75 random rows", [rng.permutation(len(labels))[:75] for _ in range(tasks // 4)]
    yield "tasks 5 x 75", draw_tasks(labels, num_classes, tasks, 5, 75)


def top(probs, labels):
    """Top-1 and top-5 in percent."""
    best = np.argsort(-probs, axis=1, kind="stable")[:, :5]
    return np.array([100 * np.mean(best[:, 0] == labels), 100 * np.mean((best == labels[:, None]).any(1))])


def measure(answers, rows):
    """Scores before and after, seconds, and the refinement, for one set of rows."""
    task = Task(answers["shots_features"], answers["shots_labels"], answers["text"], answers["domains"])
    start = time.perf_counter()
    refined = refinement.refine(answers["probs"][rows], answers["features"][rows], task, answers["held_out"])
    seconds = time.perf_counter() - start
    labels = answers["labels"][rows]
    return top(answers["probs"][rows], labels), top(refined.probs, labels), seconds, refined


def table(name, answers, seeds, tasks, parts):
    labels = answers["labels"]
    variants = {"": {}, **({f"{part} alone": changes for part, changes in PARTS.items()} if parts else {})}
    print(f"{name}: N = {len(labels)}, K = {answers['probs'].shape[1]}")
    for setting, sets in settings(labels, answers["probs"].shape[1], seeds, tasks):
        line = f"  {setting:18s}"
        for variant, changes in variants.items():
            kept = {key: getattr(refinement, key) for key in changes}
            for key, value in changes.items():
                setattr(refinement, key, value)
            results = [measure(answers, rows) for rows in sets]
            for key, value in kept.items():
                setattr(refinement, key, value)
            before, after = np.mean([r[0] for r in results], 0), np.mean([r[1] for r in results], 0)
            gain, worst = after - before, min(float(r[1][0] - r[0][0]) for r in results)
            if not variant:
                line += (f" {before[0]:6.2f} -> {after[0]:6.2f} ({gain[0]:+.2f}, least {worst:+.2f})"
                         f"   top-5 {before[1]:6.2f} -> {after[1]:6.2f} ({gain[1]:+.2f})"
                         f"   {np.mean([r[2] for r in results]):5.2f} s")
            else:
                line += f"   {variant} {gain[0]:+.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="+", help="feature suites or dumps (.npz)")
    parser.add_argument("--dump", help="folder that keeps the ensemble's answers")
    parser.add_argument("--quick", action="store_true", help="2 seeds and 20 tasks instead of 5 and 200")
    parser.add_argument("--parts", action="store_true", help="what each part gives alone")
    arguments = parser.parse_args()
    for suite_path in arguments.suite:
        table(Path(suite_path).stem, answers_of(suite_path, arguments.dump),
              *((2, 20) if arguments.quick else (5, 200)), arguments.parts)
