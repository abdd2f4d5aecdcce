"""What a second encoder gives, with its text tower and without. docs/notes/encoders.md has the table.

    OMP_NUM_THREADS=1 python benchmarks/encoders.py [--seed 1] [--seeds 5] [--shots 4] [--methods ...]

The built-in contest and its two small CLIPs. Every row of the table is a set of encoders: the mean top-1 over draws of
the shots, ± the standard deviation over the draws. "without text": the second CLIP's image rows alone, as of an encoder
that has no text tower. The last column is the difference to the better encoder alone, draw by draw, after refinement.
"""

import argparse

import numpy as np
from demo_rows import QUICK, DemoRows, said

from jclip_fewshot.data.demo import SECOND_CHECKPOINT, SEED
from jclip_fewshot.features.sources import open_source

ANSWERS = ("ensemble", "ensemble_refined")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED, help="of the contest")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the shots")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--methods", default=QUICK)
    parser.add_argument("--second", default=str(SECOND_CHECKPOINT))
    parser.add_argument("--cache", default=".cache")
    options = parser.parse_args()
    demo, names = DemoRows(options.seed), options.methods
    sources = [open_source(str(path), "weights", cache=options.cache) for path in (demo.checkpoint, options.second)]
    first, second = (source.part for source in sources)
    rows = [demo.encode(source) for source in sources]
    sets = {first.name: ([first], [rows[0]]), second.name: ([second], [rows[1]]),
            f"{first.name}, {second.name}": ([first, second], rows),
            f"{first.name}, {second.name} without text": ([first, second._replace(has_text=False)], rows),
            f"{second.name}, {first.name} without text": ([second, first._replace(has_text=False)], rows[::-1])}
    found = {title: demo.scores(*encoders, names, options.seeds, options.shots) for title, encoders in sets.items()}
    better = max(list(found)[:2], key=lambda title: np.mean(found[title]["ensemble_refined"]))
    print("| encoders | zero-shot | ensemble | refined | against the better one alone |\n|---|---|---|---|---|")
    for title, scores in found.items():
        zero_shot = next(said(values[:1]) for name, values in scores.items() if name.startswith("zero_shot"))
        gain = np.subtract(scores["ensemble_refined"], found[better]["ensemble_refined"])
        cells = [title, zero_shot.split(" ")[0], *(said(scores[method]) for method in ANSWERS), f"{gain.mean():+.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
