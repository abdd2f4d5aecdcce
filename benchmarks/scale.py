"""Seconds and peak memory of every method at ImageNet's size, on rows that are made up.

    python benchmarks/scale.py [--classes 1000] [--shots 4] [--images 50000] [--methods auto]

Rows lie around class means, so that methods train as on real ones; scores mean nothing. A method's seconds are its fit
with its folds and its answers; megabytes are the peak of its fit above what was in use before.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jclip_fewshot.backend.numerics import unit_rows  # noqa: E402
from jclip_fewshot.evaluation.evaluate import (
    PeakMemory,  # noqa: E402
    evaluate,  # noqa: E402
)
from jclip_fewshot.evaluation.suites import Suite  # noqa: E402
from jclip_fewshot.pipeline import Pipeline  # noqa: E402
from jclip_fewshot.task import Task  # noqa: E402


def made_up(classes: int, shots: int, images: int, width: int) -> Suite:
    """Return a suite of rows around class means, half of whose direction the text tells."""
    rng = np.random.default_rng(0)
    means = unit_rows(rng.standard_normal((classes, width)).astype(np.float32) + 2)
    text = unit_rows(means + 0.02 * rng.standard_normal((classes, width)).astype(np.float32))

    def rows(labels: np.ndarray) -> np.ndarray:
        return unit_rows(means[labels] + 0.03 * rng.standard_normal((len(labels), width)).astype(np.float32))
    labels, truth = np.repeat(np.arange(classes), shots), rng.integers(classes, size=images)
    names = [f"class {k}" for k in range(classes)]
    return Suite("made up", Task(rows(labels), labels, text), rows(truth), truth, names, [""] * classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 1000), ("shots", 4), ("images", 50_000), ("width", 512)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"[{default}]")
    parser.add_argument("--methods", default="auto", metavar="LIST", help="as train.py's [auto]")
    given = parser.parse_args()
    suite = made_up(given.classes, given.shots, given.images, given.width)
    begun = time.perf_counter()
    results = evaluate(suite, Pipeline(given.methods), lambda name: print(f"  {name}", file=sys.stderr, flush=True))
    print(f"{'method':20} {'top-1':>6} {'seconds':>8} {'MB':>6}")
    for name, row in results["methods"].items():
        print(f"{name:20} {row['top1']:6.1f} {row['seconds']:8.1f} {row['megabytes']:6.0f}")
    seconds = time.perf_counter() - begun
    print(f"{given.classes} classes x {given.shots} shots, {given.images} images: {seconds:.0f} s "
          f"({time.process_time():.0f} s of CPU), peak {PeakMemory.highest / 1024:.1f} GB")


if __name__ == "__main__":
    main()
