#!/usr/bin/env python3
"""What tuning CLIP's towers gives and costs.

    python benchmarks/tuning.py --demo --seeds 1 2 3 --json OUT.json    built-in contests of these seeds: top-1
    python benchmarks/tuning.py --demo --seeds 1 --draws 5              five draws of the shots of one contest
    python benchmarks/tuning.py                                         seconds a method at contest size, random weights
    python benchmarks/tuning.py --torch-python PATH                     and the same steps by OpenAI's model in PyTorch

--demo writes {"methods": {name: [top-1 a seed]}}: every head, every tuned member, `ensemble` (heads on frozen rows),
`ensemble_tuned`, and `ensemble+NAME`, the ensemble with one tuned member. Contest size: K = 374 classes, S = 1,496
shots, ViT-B/32; seconds are extrapolated from measured steps, and given as a share of Jittor's 1024³ product as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jclip_fewshot.cli import command  # noqa: E402
from jclip_fewshot.combine.ensemble import Ensemble  # noqa: E402
from jclip_fewshot.config import MachineConfig  # noqa: E402
from jclip_fewshot.console import tell  # noqa: E402
from jclip_fewshot.data import demo, prompts  # noqa: E402
from jclip_fewshot.data.contest import read_contest, read_labels, test_images  # noqa: E402
from jclip_fewshot.data.shots import choose  # noqa: E402
from jclip_fewshot.features.sources import labelled_rows, open_source  # noqa: E402
from jclip_fewshot.pipeline import HEADS_TOGETHER, Pipeline, head_names  # noqa: E402
from jclip_fewshot.task import Task, domain_indices  # noqa: E402
from jclip_fewshot.tuning.plan import matrix_rate, plan, tuned_rows  # noqa: E402

SHOTS = 4


def contest_scores(folder: Path, cache: Path, tune: str, draw: int) -> dict:
    """{method: top-1} of the whole stack on a contest."""
    contest = read_contest(folder, "A")
    source = open_source(str(demo.CHECKPOINT), "weights", cache=str(cache))
    text = source.texts(contest.class_names, prompts.class_sentences(contest.class_names, contest.domains))
    shots = choose(contest, source, text, SHOTS, draw)
    rows, shots, _ = labelled_rows(source, contest.root, shots, False, 10, draw)
    task = Task(rows, [label for _, label in shots], text, domain_indices(contest.domains), source.scale)
    tuning = plan(tune, task, source, contest.root, [path for path, _ in shots], 10, draw,
                  prompts.plain_sentences(contest.class_names, contest.domains))
    begun = time.process_time()
    pipeline = Pipeline(head_names(""), draw).fit(task, lambda name, s: tell(f"  {name:15} {s:6.1f} s"), tuning)
    tell(f"fit: {time.process_time() - begun:.0f} s of processor time")
    tests = test_images(folder, "A")
    features, _ = source.images(contest.root, tests.files)
    answers = pipeline.answer(features, "auto", tuned_rows(source, contest.root, tests.files))
    known = read_labels(contest, "A")
    truth = np.array([known[name] for name in tests.names])

    def top1(answer: np.ndarray) -> float:
        return float(100 * (answer.argmax(axis=1) == truth).mean())
    scores = {name: top1(answer) for name, answer in answers.by_method().items()}
    frozen = pipeline.frozen_ensemble_
    for name, member in pipeline.tuned_.items():
        joined = Ensemble().fit({HEADS_TOGETHER: np.log(frozen.held_out_probs_), name: member.held_out_logits()}, task)
        scores[f"ensemble+{name}"] = top1(joined.probs({**answers.logits, HEADS_TOGETHER: np.log(answers.frozen)}))
    return scores


def on_contests(seeds: list, draws: int, tune: str) -> dict:
    """{method: [top-1 of every contest and draw]}"""
    methods: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            folder = demo.make_contest(Path(temporary, f"contest{seed}"), seed)
            for draw in range(draws):
                for name, top1 in contest_scores(folder, Path(temporary, "cache"), tune, draw).items():
                    methods.setdefault(name, []).append(top1)
                gained = methods["ensemble_tuned"][-1] - methods["ensemble"][-1]
                tell(f"contest {seed}, draw {draw}: ensemble {methods['ensemble'][-1]:.2f}, tuned {gained:+.2f}")
    return methods


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="built-in contests instead of contest size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="of the contests [1]")
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="draws of the shots a contest [1]")
    parser.add_argument("--tune", default="auto", metavar="LIST", help="as train.py's [auto]")
    parser.add_argument("--json", default="", metavar="OUT", help="write the numbers there")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps that are timed [5]")
    parser.add_argument("--torch-python", default="", metavar="PATH", help="a Python that has torch: the same steps")
    given = parser.parse_args()
    command.set_up(MachineConfig())
    if given.demo:
        methods = on_contests(given.seeds, given.draws, given.tune)
        for name, values in methods.items():
            print(f"{name:26} {np.mean(values):6.2f}   " + " ".join(f"{value:.2f}" for value in values))
        result = {"methods": methods, "seeds": given.seeds, "draws": given.draws}
    else:
        result = at_contest_size(given.steps, given.torch_python)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def at_contest_size(steps: int, torch_python: str) -> dict:
    """Seconds of each method's trainings (four folds and the whole) on a ViT-B/32 with random weights."""
    from benchmarks.tuning_steps import NAMES, jittor_steps
    rate = matrix_rate()
    print(f"Jittor's 1024³ product: {rate / 1e9:.0f} GFLOP/s")
    found = {}
    for name in NAMES:
        seconds, operations, total = jittor_steps(name, steps)
        found[name] = {"seconds_a_step": seconds, "share_of_matrix_rate": operations / seconds / rate,
                       "seconds_extrapolated": seconds * total, "steps": total}
        print(f"{name:12} {seconds:8.3f} s a step  {operations / seconds / rate:5.2f} of the product's rate  "
              f"{seconds * total:9.0f} s for {total} steps (five trainings; extrapolated)", flush=True)
        if torch_python:
            run = subprocess.run([torch_python, str(ROOT / "benchmarks" / "tuning_steps.py"), name, str(steps)],
                                 capture_output=True, text=True)
            if run.returncode:
                print(f"{name:12} PyTorch: {run.stderr.strip().splitlines()[-1] if run.stderr else 'failed'}")
                continue
            other = float(run.stdout.split()[-1])
            found[name]["seconds_a_step_torch"] = other
            print(f"{name:12} {other:8.3f} s a step in PyTorch: ours take {seconds / other:.2f} of that", flush=True)
    return found


if __name__ == "__main__":
    command.run(main)
