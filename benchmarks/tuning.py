#!/usr/bin/env python3
"""What tuning CLIP's towers gives and costs.

    python benchmarks/tuning.py --demo --seeds 1 2 3 --json OUT.json    built-in contests of these seeds: top-1
    python benchmarks/tuning.py --demo --seeds 1 --draws 5              five draws of the shots of one contest
    python benchmarks/tuning.py [--torch-python PATH]                   seconds a method at contest size, random weights

--demo writes {"methods": {name: [top-1 a seed]}}: every method, `ensemble` (of those on frozen rows), `ensemble_tuned`,
and `ensemble+NAME`, the ensemble with one method that tunes a tower. Contest size: K = 374 classes, S = 1,496 shots,
ViT-B/32; seconds are extrapolated from measured steps, and given as a share of Jittor's 1024³ product as well, and
beside the same steps in OpenAI's model by PyTorch where that is installed (tuning_torch.py).
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jclip_fewshot.cli import command
from jclip_fewshot.clip.checkpoint import Architecture
from jclip_fewshot.clip.model import CLIP
from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.config import MachineConfig, TrainConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data import demo
from jclip_fewshot.encoders.base import ROWS, UNPROJECTED, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.evaluation.scores import percent, truth_of
from jclip_fewshot.features.activations import Activations, Views
from jclip_fewshot.methods import METHODS, training
from jclip_fewshot.methods.plan import matrix_rate
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.methods.towers.base import block_flops
from jclip_fewshot.pipeline import TOGETHER, Pipeline
from jclip_fewshot.problem import queries_of, read_problem
from jclip_fewshot.task import Task

CLASSES, SHOTS = 374, 4  # the contest's
TOKENS = 13  # its longest "a photo of a {}."
BATCH, SENTENCES = 32, 16  # images and, in the measured steps of clip_lora, sentences a step


def contest_scores(seed: int, cache: Path, methods: str, draw: int) -> dict:
    """{method: top-1} of the whole pipeline on the built-in contest of a seed."""
    settings = demo.settings(TrainConfig(demo=True, demo_seed=seed, methods=methods, cache=str(cache), seed=draw))
    problem = read_problem(settings, SHOTS)
    encoded, root = problem.encode(), problem.data.root
    rows, shots, _ = encoded.shots(SHOTS, draw)
    task = encoded.task(rows, [label for _, label in shots])
    begun = time.process_time()
    pipeline = Pipeline(problem.choice, draw).fit(task, encoded.given([path for path, _ in shots], draw),
                                                  lambda name, s: tell(f"  {name:15} {s:6.1f} s"))
    tell(f"fit: {time.process_time() - begun:.0f} s of processor time")
    tests = problem.data.split("A")
    features, _ = encoded.source.images(root, tests.files)
    answers = pipeline.answer(queries_of(encoded.source, root, tests.files, features), every_method=True)
    truth = truth_of(tests.labels, tests.names)
    scores = {name: percent(answer.argmax(axis=1) == truth) for name, answer in answers.by_method().items()}
    scores.setdefault("ensemble_tuned", scores["ensemble"])  # no tower was tuned
    frozen = pipeline.rows_ensemble_
    for name, method in pipeline.methods_.items():
        if method.asks_images:
            joined = Ensemble().fit({TOGETHER: np.log(frozen.held_out_probs_), name: method.held_out_logits()}, task)
            probs = joined.probs({**answers.logits, TOGETHER: np.log(answers.on_rows)})
            scores[f"ensemble+{name}"] = percent(probs.argmax(axis=1) == truth)
    return scores


def on_contests(seeds: list, draws: int, listed: str) -> dict:
    """{method: [top-1 of every contest and draw]}"""
    methods: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            for draw in range(draws):
                for name, top1 in contest_scores(seed, Path(temporary, "cache"), listed, draw).items():
                    methods.setdefault(name, []).append(top1)
                gained = methods["ensemble_tuned"][-1] - methods["ensemble"][-1]
                tell(f"contest {seed}, draw {draw}: ensemble {methods['ensemble'][-1]:.2f}, tuned {gained:+.2f}")
    return methods


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="built-in contests instead of contest size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="of the contests [1]")
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="draws of the shots a contest [1]")
    parser.add_argument("--methods", default="auto", metavar="LIST", help="as train.py's [auto]")
    parser.add_argument("--json", default="", metavar="OUT", help="write the numbers there")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps that are timed [5]")
    parser.add_argument("--turns", type=int, default=2, metavar="N", help="how often they are [2]")
    parser.add_argument("--torch-python", default="", metavar="PATH",
                        help="an interpreter that has torch, to compare with [this one where it has]")
    given = parser.parse_args()
    command.set_up(MachineConfig())
    if given.demo:
        methods = on_contests(given.seeds, given.draws, given.methods)
        for name, values in methods.items():
            print(f"{name:26} {np.mean(values):6.2f}   " + " ".join(f"{value:.2f}" for value in values))
        result = {"methods": methods, "seeds": given.seeds, "draws": given.draws}
    else:
        torch_python = given.torch_python or (sys.executable if importlib.util.find_spec("torch") else "")
        result = at_contest_size(given.steps, given.turns, torch_python)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def contest_case(classes: int, depth: Depth) -> tuple:
    """(task, activations) of the contest's shots of some of its classes, drawn at random, for a random ViT-B/32."""
    model = CLIP(Architecture(512, 224, 12, 768, 32, 77, 49408, 512, 12))
    model.eval()
    encoder, rng = ClipEncoder(model, "ViT-B/32, random", "0" * 32), np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), SHOTS)
    views = rng.standard_normal((len(labels), 1) + encoder.shape_at(depth), np.float32)
    activations = Activations(encoder, [])
    activations._at[depth] = Views(list(views.astype(np.float16)))
    activations.class_tokens = encoder.tokens(["a photo of a golden retriever dog."] * CLASSES)
    return Task(rng.standard_normal((len(labels), 512)), labels, rng.standard_normal((CLASSES, 512))), activations


def timed(name: str, task: Task, activations: Activations, steps: int) -> float:
    """Seconds of a step of a method's training, the first ones left out."""
    marks: list = []

    class Timed(METHODS[name]):
        pass
    method = Timed()
    if name == "last_block":
        method.epochs, method.most_steps = steps + 2, steps + 2
    elif name in ("prolip", "coop"):
        method.steps = steps + 2
    else:
        method.steps = lambda task: 2 * (steps + 2)  # more than half of 2SFS's are of the stage that is timed
    original = training.jt.sync

    def marked(values) -> None:
        original(values)
        training.jt.sync_all(True)
        marks.append(time.perf_counter())
    training.jt.sync = marked
    try:
        method.train(fits_of(task)[-1], activations, "")
    finally:
        training.jt.sync = original
    return float(np.median(np.diff(marks)[1:steps + 1]))


def by_torch(python: str, name: str, steps: int) -> float:
    """Seconds of a step of the same training in OpenAI's model by PyTorch."""
    sizes = {"classes": CLASSES, "shots": CLASSES * SHOTS, "batch": BATCH, "sentences": SENTENCES, "tokens": TOKENS}
    done = subprocess.run([python, str(ROOT / "benchmarks/tuning_torch.py"), name, json.dumps(sizes), str(steps)],
                          stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout)


def at_contest_size(steps: int, turns: int, torch_python: str) -> dict:
    """Seconds of the trainings (four folds and the whole) at K = 374, S = 1,496 on a ViT-B/32 with random weights.

    The product's rate, our steps and PyTorch's take turns, and each counts by its best one.
    """
    length, width = 50, 768
    block, sentence = block_flops(length, width), 12 * block_flops(TOKENS, 512)
    last = 2 * BATCH * (4.0 * length * width ** 2 + 20.0 * width ** 2)
    projection = 3 * 2.0 * CLASSES * SHOTS * 512 * (width + CLASSES)
    towers = 2 * BATCH * 12 * block
    # classes whose shots are drawn, depth of the activations, operations of a measured step and of the contest's, steps
    methods = {"last_block": (CLASSES, 11, last, last, 5 * min(1000, 33 * CLASSES * SHOTS // BATCH)),
               "prolip": (CLASSES, UNPROJECTED, projection, projection, 5 * 300),
               "coop": (SENTENCES, ROWS, 2 * SENTENCES * sentence, 2 * CLASSES * sentence, 5 * 100),
               "two_stage": (SENTENCES, 0, towers + 2 * SENTENCES * sentence, towers + 2 * CLASSES * sentence, 5 * 720),
               "clip_lora": (SENTENCES, 0, towers + 2 * SENTENCES * sentence, towers + 2 * CLASSES * sentence, 10000)}
    found = {}
    for name, (classes, depth, measured, whole, total) in methods.items():
        task, activations = contest_case(classes, depth)
        rates, ours, theirs = [], [], []
        for _ in range(turns):
            rates.append(matrix_rate())
            ours.append(timed(name, task, activations, steps))
            if torch_python:
                theirs.append(by_torch(torch_python, name, steps))
        rate, seconds = max(rates), min(ours)
        found[name] = {"seconds_a_measured_step": seconds, "share_of_matrix_rate": measured / seconds / rate,
                       "steps": total, "seconds_extrapolated": seconds * whole / measured * total,
                       "pytorch_seconds_a_step": min(theirs, default=None)}
        beside = f"; PyTorch {min(theirs):.3f} s a step, {min(theirs) / seconds:.2f} of ours" if theirs else ""
        share = found[name]["share_of_matrix_rate"]
        print(f"{name:12} {seconds:8.3f} s a measured step, {share:.2f} of the rate of the 1024³ product "
              f"({rate / 1e9:.0f} GFLOP/s); {total} steps at contest size: "
              f"{found[name]['seconds_extrapolated']:.0f} s (extrapolated){beside}", flush=True)
    return found


if __name__ == "__main__":
    command.run(main)
