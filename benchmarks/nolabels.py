"""What each method without labels is worth on the built-in contest: the tables of docs/notes/nolabels.md.

    python benchmarks/nolabels.py [--seed 1] [--part prompts|names|support|shots] [--work DIR]

prompts: zero-shot by every prompt set. names: class names and the test images without labels. support: a folder drawn
from the same world in which 20 % of the pictures show another class. shots: 4 shots, and what is added to them.
Top-1 and top-5 in percent; seconds of the fit, beside other work on this machine.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jclip_fewshot.backend.numerics import softmax
from jclip_fewshot.combine.refinement import refine
from jclip_fewshot.config import TrainConfig
from jclip_fewshot.data import demo, prompts
from jclip_fewshot.data.demo.drawing import draw
from jclip_fewshot.data.demo.world import contest_classes
from jclip_fewshot.evaluation.scores import best_classes, percent, truth_of
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.problem import queries_of, read_problem, with_support

WRONG, SUPPORT = 0.2, 8  # share of wrong pictures, pictures a class
NAMES = "clip_dn,calip,upl,lafter_text,lafter,clip_pr,clip_pr_tower"
WITH_SHOTS = "auto,fixmatch,vpt,cocoop"


class Bench:
    """The contest of a seed."""

    def __init__(self, seed: int, work: Path) -> None:
        self.seed, self.work, self.classes = seed, work, contest_classes(seed)

    def run(self, title: str, methods: str, shots: int = 0, refine: str = "off", **more) -> tuple:
        """Print a row a method, and return the pipeline, the test images' rows and their true classes."""
        settings = demo.settings(TrainConfig(demo=True, demo_seed=self.seed, methods=methods, shots=shots, **more))
        problem = read_problem(settings, shots)
        encoded, data = problem.encode(), problem.data
        rows, chosen, _ = encoded.shots(shots, 0)
        task = encoded.task(rows, [label for _, label in chosen])
        task, found = with_support(task, *encoded.support())
        pipeline = Pipeline(problem.choice).fit(task, encoded.given([path for path, _ in chosen + found], 0))
        tests = data.split()
        truth = truth_of(tests.labels, tests.names)
        features, _ = encoded.source.images(data.root, tests.files)
        queries = queries_of(encoded.source, data.root, tests.files, features)
        for name, answer in pipeline.answer(queries, refine, every_method=True).by_method().items():
            self.row(f"{title}{name}", answer, truth, pipeline.seconds_.get(name))
        return pipeline, features, truth

    @staticmethod
    def row(name: str, answer: np.ndarray, truth: np.ndarray, seconds: float | None = None) -> None:
        hits = best_classes(answer) == truth[:, None]
        took = "      –" if seconds is None else f"{seconds:7.1f}"
        print(f"| {name:44} | {percent(hits[:, 0]):5.1f} | {percent(hits.any(axis=1)):5.1f} | {took} |", flush=True)

    def descriptions(self) -> str:
        """A sentence an attribute that the class's name tells, in the words of the world's captions."""
        found = {}
        for one in self.classes:
            name = prompts.display_names([one.name], [one.domain])[0]
            said = [f"{name}, {value} {kind}" for kind, value in one.scene.items() if value in one.name.lower()]
            found[one.name] = said or [name]
        path = self.work / f"descriptions{self.seed}.json"
        path.write_text(json.dumps(found))
        return str(path)

    def support(self) -> str:
        """A folder a class of drawn pictures, a fifth of them of another class."""
        for label, one in enumerate(self.classes):
            folder = self.work / f"support{self.seed}" / one.name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(SUPPORT):
                rng = np.random.default_rng([self.seed, 77, label, number])
                shown = self.classes[int(rng.integers(len(self.classes)))] if rng.random() < WRONG else one
                if not (folder / f"{number}.jpg").is_file():
                    draw(shown.domain, shown.scene, rng, (90, 90)).save(folder / f"{number}.jpg")
        return str(self.work / f"support{self.seed}")


def by_prompts(bench: Bench) -> None:
    for one in ("seeds", "templates", "openai80", "both"):
        bench.run(f"prompts {one}: ", "zero_shot", prompt_set=one)
    for one in ("descriptions", "both"):
        bench.run(f"own descriptions, {one}: ", "zero_shot", prompt_set=one, descriptions=bench.descriptions())


def by_names(bench: Bench) -> None:
    bench.run("", "zero_shot", refine="auto")
    pipeline, features, truth = bench.run("", NAMES, transductive=True)
    for name, method in pipeline.methods_.items():
        if not method.asks_images:
            refined = refine(softmax(method.logits(features)), features, pipeline.task_)
            bench.row(f"{name}, refined", refined.probs, truth)


def by_support(bench: Bench) -> None:
    bench.run("support: ", "auto,sus_x,sus_x_f", refine="auto", support=bench.support())


def by_shots(bench: Bench) -> None:
    bench.run("4 shots: ", WITH_SHOTS, 4, "auto", transductive=True)


PARTS = {"prompts": by_prompts, "names": by_names, "support": by_support, "shots": by_shots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=demo.SEED, metavar="N", help="of the contest")
    parser.add_argument("--part", choices=tuple(PARTS), help="of the tables [all]")
    parser.add_argument("--work", type=Path, default=Path("bench_nolabels"), metavar="DIR", help="drawn pictures")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    print(f"| {'method':44} | top-1 | top-5 | seconds |\n|---|---|---|---|")
    for part in [given.part] if given.part else PARTS:
        PARTS[part](Bench(given.seed, given.work))


if __name__ == "__main__":
    main()
