"""What more views of each test image give, and what they cost. docs/views.md has the table.

    OMP_NUM_THREADS=1 python benchmarks/views.py [--views 1 2 5 10] [--seeds 5] [--model FILE]

The built-in contest; the mean top-1 over draws of the shots, ± the standard deviation over the draws, and the
difference to one view, draw by draw, with its standard error. Cost: the time to encode, relative to one view.
"""

import argparse
import time

import numpy as np
from demo_rows import QUICK, DemoRows, said

from jclip_fewshot.data.demo import SEED
from jclip_fewshot.features.sources import open_source
from jclip_fewshot.pipeline import head_names


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--seed", type=int, default=SEED, help="of the contest")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the shots")
    parser.add_argument("--heads", default=QUICK)
    parser.add_argument("--model", default="", help="[the contest's own CLIP]")
    parser.add_argument("--cache", default=".cache")
    options = parser.parse_args()
    demo, names = DemoRows(options.seed), head_names(options.heads)
    source = open_source(options.model or str(demo.checkpoint), "weights", cache=options.cache)
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
