#!/usr/bin/env python3
"""What tuning CLIP's towers gives and costs.

    python benchmarks/tuning.py --demo --seeds 1 2 3 --json OUT.json    built-in contests of these seeds: top-1
    python benchmarks/tuning.py --demo --seeds 1 --draws 5              five draws of the shots of one contest
    python benchmarks/tuning.py                                         seconds a method at contest size, random weights

--demo writes {"methods": {name: [top-1 a seed]}}: every head, every tuned member, `ensemble` (heads on frozen rows),
`ensemble_tuned`, and `ensemble+NAME`, the ensemble with one tuned member. Contest size: K = 374 classes, S = 1,496
shots, ViT-B/32; seconds are extrapolated from measured steps, and given as a share of Jittor's 1024³ product as well.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jclip_fewshot.cli import command
from jclip_fewshot.clip.model import CLIP
from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.config import MachineConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data import demo, prompts
from jclip_fewshot.data.contest import read_contest, read_labels, test_images
from jclip_fewshot.data.shots import choose
from jclip_fewshot.encoders import UNPROJECTED, ClipEncoder
from jclip_fewshot.features.bank import Bank
from jclip_fewshot.features.sources import labelled_rows, open_source
from jclip_fewshot.pipeline import HEADS_TOGETHER, Pipeline, head_names
from jclip_fewshot.task import Task, domain_indices
from jclip_fewshot.tuning import training
from jclip_fewshot.tuning.members import block_operations
from jclip_fewshot.tuning.plan import MEMBERS, matrix_rate, plan, tuned_rows

CLASSES, SHOTS = 374, 4  # the contest's


def contest_scores(folder: Path, cache: Path, tune: str, draw: int) -> dict:
    """{method: top-1} of the whole pipeline on a contest."""
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
    answers = pipeline.answer(features, "auto", tuned_rows(source, contest.root, tests.files), every_member=True)
    known = read_labels(contest, "A")
    truth = np.array([known[name] for name in tests.names])

    def top1(answer: np.ndarray) -> float:
        return float(100 * (answer.argmax(axis=1) == truth).mean())
    scores = {name: top1(answer) for name, answer in answers.by_method().items()}
    scores.setdefault("ensemble_tuned", scores["ensemble"])  # no member was tuned
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
    given = parser.parse_args()
    command.set_up(MachineConfig())
    if given.demo:
        methods = on_contests(given.seeds, given.draws, given.tune)
        for name, values in methods.items():
            print(f"{name:26} {np.mean(values):6.2f}   " + " ".join(f"{value:.2f}" for value in values))
        result = {"methods": methods, "seeds": given.seeds, "draws": given.draws}
    else:
        result = at_contest_size(given.steps)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def contest_case() -> tuple:
    """(task, bank) of 64 shots of the contest's size, numbers drawn; ViT-B/32 with random weights."""
    model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
    model.eval()
    encoder, rng = ClipEncoder(model, "ViT-B/32, random", "0" * 32), np.random.default_rng(0)
    labels = np.repeat(np.arange(16), SHOTS)
    text = rng.standard_normal((CLASSES, 512))
    depths = {depth: rng.standard_normal((len(labels), 1) + encoder.shape_at(depth)).astype(np.float16)
              for depth in (0, 11, UNPROJECTED)}
    bank = Bank.of_arrays(encoder, depths)
    bank.class_tokens = encoder.tokens(["a photo of a golden retriever dog."] * CLASSES)
    return Task(rng.standard_normal((len(labels), 512)), labels, text), bank


def timed(name: str, task: Task, bank: Bank, steps: int) -> float:
    """Seconds of a step of a member's training, the first ones left out."""
    marks: list = []

    class Timed(MEMBERS[name]):
        pass
    member = Timed()
    if name == "last_block":
        member.epochs, member.most_steps = steps + 2, steps + 2
    elif name == "prolip":
        member.steps = steps + 2
    else:
        member.steps = lambda task: steps + 2
    original = training.jt.sync

    def marked(values) -> None:
        original(values)
        training.jt.sync_all(True)
        marks.append(time.perf_counter())
    training.jt.sync = marked
    try:
        member.train(task, bank, np.arange(len(task)), "")
    finally:
        training.jt.sync = original
    return float(np.median(np.diff(marks)[1:steps + 1]))


def at_contest_size(steps: int) -> dict:
    """Seconds of the trainings (four folds and the whole) at K = 374, S = 1,496 on a ViT-B/32 with random weights."""
    rate = matrix_rate()
    print(f"Jittor's 1024³ product: {rate / 1e9:.0f} GFLOP/s")
    task, bank = contest_case()
    length, width = bank.encoder.shape_at(0)
    block = block_operations(length, width)
    tokens, shots = 13, CLASSES * SHOTS  # the contest's longest "a photo of a {}."
    sentence = 12 * block_operations(tokens, 512)
    batch = {"last_block": 2 * 32 * (4.0 * length * width ** 2 + 20.0 * width ** 2),
             "prolip": 3 * 2.0 * len(task) * 512 * (width + len(np.unique(task.labels))),
             "clip_lora": 2 * (32 * 12 * block + 16 * sentence)}
    whole = {"last_block": batch["last_block"], "prolip": 3 * 2.0 * shots * 512 * (width + CLASSES),
             "clip_lora": 2 * (32 * 12 * block + CLASSES * sentence)}
    total = {"last_block": 5 * min(1000, 33 * shots // 32), "prolip": 5 * 300, "clip_lora": 5 * 2000}
    found = {}
    for name in batch:
        seconds = timed(name, task, bank, steps)
        share = batch[name] / seconds / rate
        all_of_it = seconds * whole[name] / batch[name] * total[name]
        found[name] = {"seconds_a_measured_step": seconds, "share_of_matrix_rate": share, "steps": total[name],
                       "seconds_extrapolated": all_of_it}
        print(f"{name:12} {seconds:8.3f} s a measured step, {share:5.2f} of the product's rate; {total[name]} steps at "
              f"contest size: {all_of_it:8.0f} s (extrapolated)", flush=True)
    return found


if __name__ == "__main__":
    command.run(main)
