"""What more views of each test image give, and what they cost. docs/notes/views.md has the table.

    OMP_NUM_THREADS=1 python benchmarks/views.py [--views 1 2 5 10] [--seeds 5] [--model FILE]
    OMP_NUM_THREADS=1 python benchmarks/views.py --logits 10

The built-in contest; the mean top-1 over draws of the shots, ± the standard deviation over the draws, and the
difference to one view, draw by draw, with its standard error. Cost: the time to encode, relative to one view.
--logits V: rows averaged before the methods, or the ensemble's log-probabilities after, by shots left out, whose V
views are answered by the fold without them, and by the test images.
"""

import argparse
import time

import numpy as np
from demo_rows import QUICK, DemoRows, said

from jclip_fewshot.backend.numerics import log_softmax, unit_rows
from jclip_fewshot.data.demo import SEED
from jclip_fewshot.evaluation.scores import percent
from jclip_fewshot.features.encode import encode_images
from jclip_fewshot.features.sources import open_source
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.storage.feature_cache import FeatureCache


def rows_or_logits(demo, source, names, seeds, views, cache):
    """Prints the held-out log-loss and top-1, and the test top-1, of both averages."""
    encoded = demo.encode(source)
    store = FeatureCache(cache)

    def by_view(paths):
        files = [str(demo.contest.root / path) for path in paths]
        return np.stack([encode_images(source.encoder, files, cache=store, view=view)[0] for view in range(views)])

    def both(answer, rows):
        """Log-probabilities of the views' mean row, and the mean of each view's own, (N, K) each."""
        apart = np.log(answer(rows.reshape(-1, rows.shape[-1])) + 1e-12).reshape(*rows.shape[:2], -1)
        return np.log(answer(unit_rows(rows.mean(axis=0))) + 1e-12), log_softmax(apart.mean(axis=0))
    tests, trained = by_view(demo.tests.files), by_view(list(encoded[1]))
    place = {path: index for index, path in enumerate(encoded[1])}
    found = {"rows": [], "logits": []}
    for seed in range(seeds):
        drawn, task = demo.task([source.part], [encoded], seed)
        pipeline = Pipeline(names).fit(task)
        shots = trained[:, [place[path] for path, _ in drawn]]
        held_out = {name: np.zeros((len(task), task.num_classes)) for name in found}
        for fold, one in zip(task.folds(), pipeline.held_out_folds()):
            for name, answer in zip(found, both(one.answer, shots[:, fold.left_out])):
                held_out[name][fold.left_out] = answer
        on_tests = both(lambda rows, pipeline=pipeline: pipeline.answer(rows, "off").probs, tests)
        for name, answer in zip(found, on_tests):
            found[name].append([-held_out[name][np.arange(len(task)), task.labels].mean(),
                                percent(held_out[name].argmax(axis=1) == task.labels),
                                percent(answer.argmax(axis=1) == demo.truth)])
    print(f"| {views} views | held-out log-loss | held-out top-1 | test top-1 |\n" + "|---" * 4 + "|")
    for name, values in found.items():
        print(f"| mean of {name} | " + " | ".join(said(column) if index else f"{np.mean(column):.3f}"
                                                  for index, column in enumerate(np.transpose(values))) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--seed", type=int, default=SEED, help="of the contest")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the shots")
    parser.add_argument("--methods", default=QUICK)
    parser.add_argument("--model", default="", help="[the contest's own CLIP]")
    parser.add_argument("--cache", default=".cache")
    parser.add_argument("--logits", type=int, default=0, metavar="V", help="compare the two ways to average V views")
    options = parser.parse_args()
    demo, names = DemoRows(options.seed), options.methods
    source = open_source(options.model or str(demo.checkpoint), "weights", cache=options.cache)
    if options.logits:
        return rows_or_logits(demo, source, names, options.seeds, options.logits, options.cache)
    text, train, _ = demo.encode(source)
    uncached = open_source(options.model or str(demo.checkpoint), "weights")
    few = demo.tests.files[:200]
    uncached.images(demo.contest.root, few[:20])  # compiles
    print("| views | zero-shot | ensemble | against one | refined | against one | time |\n" + "|---" * 7 + "|")
    base, seconds = None, None
    for views in options.views:
        tests, _ = source.images(demo.contest.root, demo.tests.files, test_views=views)
        scores = demo.scores([source.part], [(text, train, tests)], names, options.seeds)
        begun = time.perf_counter()
        uncached.images(demo.contest.root, few, test_views=views)
        took = time.perf_counter() - begun
        base, seconds = base or scores, seconds or took
        cells = [str(views), f"{scores['zero_shot'][0]:.1f}"]
        for method in ("ensemble", "ensemble_refined"):
            gain = np.subtract(scores[method], base[method])
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
            cells += [said(scores[method]), f"{gain.mean():+.2f} ± {error:.2f}"]
        print("| " + " | ".join(cells + [f"x {took / seconds:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
