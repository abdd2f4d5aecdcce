"""How long the training-free methods take to choose their settings: python benchmarks/heads.py [--classes 374]

Times the fit (leave-one-shot-out search and all) of every method without training on random features of the
contest's size, compared with the search that it replaces: Tip-Adapter's grid of 200 α × 20 β, one at a time,
each scored on the shots left out.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import top1
from jclip_fewshot.methods.plan import choose
from jclip_fewshot.methods.rows.tip_adapter import cache_logits, class_mean_values
from jclip_fewshot.task import Task, zero_shot_logits


def random_shots(classes: int, per_class: int, width: int, domains: int = 4, seed: int = 0) -> Task:
    """Features about as far apart as CLIP's: a common direction, the class, the image."""
    rng = np.random.default_rng(seed)
    text = unit_rows(1.2 * rng.normal(size=width) + 0.7 * rng.normal(size=(classes, width)))
    labels = np.repeat(np.arange(classes), per_class)
    common = rng.normal(size=width)
    noise = 0.6 * rng.normal(size=(len(labels), width))
    rows = unit_rows(common + 0.5 * text[labels] * np.sqrt(width) + noise)
    return Task(rows, labels, text, np.arange(classes) * domains // classes)


def grid_search(task: Task, alphas: int = 200, betas: int = 20) -> float:
    """Best held-out top-1 of Tip-Adapter over the plain grid."""
    zero_shot, best = zero_shot_logits(task.features, task.text), 0.0
    for beta in np.linspace(0.5, 10, betas):
        cache = np.zeros_like(zero_shot)
        for fold in task.folds():
            values = class_mean_values(fold.task.labels, task.num_classes)
            cache[fold.left_out] = cache_logits(task.features[fold.left_out], fold.task.features, values, beta)
        for alpha in np.linspace(0.1, 20, alphas):
            best = max(best, top1(zero_shot + np.float32(alpha) * cache, task.labels))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=374)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    names = choose("fast").names
    for name in names:  # compile the operators
        METHODS[name]().fit(random_shots(12, 3, given.width)).logits(random_shots(12, 3, given.width).features)
    task = random_shots(given.classes, given.shots, given.width)
    print(f"{given.classes} classes, {len(task)} shots, width {given.width}")
    print(f"{'method':12} {'search + fit':>12} {'held-out':>9} {'logits':>8}   (seconds; logits: of all shots)")
    total = 0.0
    for name in names:
        begun = time.perf_counter()
        method = METHODS[name]().fit(task)
        fitted = time.perf_counter()
        method.held_out_logits()
        left_out = time.perf_counter()
        method.logits(task.features)
        done = time.perf_counter()
        total += left_out - begun
        print(f"{name:12} {fitted - begun:12.2f} {left_out - fitted:9.2f} {done - left_out:8.2f}")
    print(f"{'together':12} {total:12.2f}")
    begun = time.perf_counter()
    grid_search(task)
    print(f"{'grid':12} {time.perf_counter() - begun:12.2f}   Tip-Adapter alone, 200 α × 20 β one at a time")


if __name__ == "__main__":
    main()
