#!/usr/bin/env python3
"""Learns from a few images a class and leaves a run folder that test.py reads.

    python train.py --data Dataset            the contest: 4 images of each of 374 classes
    python train.py --data Dataset --board B  board B: 29 more classes, without images
    python train.py --demo                    the built-in small contest; needs no download

Images and class names are turned into CLIP features once and kept in .cache/; the heads learn from
features alone, choose their settings by leave-one-shot-out, and an ensemble combines them.
"""

import time

from jclip_fewshot import command, competition, demo, prompts, ranks, runs, selection
from jclip_fewshot.command import tell
from jclip_fewshot.config import TrainConfig, parse
from jclip_fewshot.heads import Shots
from jclip_fewshot.sources import labelled_rows, open_source
from jclip_fewshot.stack import Stack, domain_indices, head_names, settings_table


def main() -> None:
    settings = parse(TrainConfig, __doc__)
    if settings.from_run:
        settings = runs.repeated(settings)
    names = head_names(settings.heads)
    device = command.set_up(settings)
    watch = runs.Stopwatch()

    # 1. What is there to learn from?
    if settings.demo:
        settings = demo.settings(settings)
    contest = competition.read_contest(settings.data, settings.board)
    for note in contest.notes:
        tell(note)
    sentences = prompts.class_sentences(contest.class_names, contest.domains, settings.prompts)

    # 2. Images and sentences become unit feature rows.
    source = open_source(settings)
    text = source.texts(contest.class_names, sentences)
    watch.lap("sentences")
    shots = selection.choose(contest, settings, source, text)
    rows, shots, bad = labelled_rows(source, contest.root, shots, settings.skip_bad, views=settings.augment)
    watch.lap("shots")
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return

    # 3. Each head learns from the shots; the ensemble learns how far to trust each head.
    data = Shots(rows, [label for _, label in shots], text, domain_indices(contest.domains))
    tell(f"{len(data)} shots of {int(data.seen.sum())} of {data.num_classes} classes")
    stack = Stack(names, settings.seed).fit(data, lambda name, seconds: tell(f"  {name:15} {seconds:6.1f} s"))
    watch.lap("heads")

    # 4. Everything that test.py needs, and a record that a person can read and repeat.
    folder = runs.new_run(settings.runs, settings.name, settings.board)
    competition.write_shot_list(folder / runs.SHOTS, shots)
    runs.save_arrays(folder / runs.MODEL, stack.state())
    runs.save_record(folder, {
        "command": runs.command_line(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": runs.versions(),
        "device": str(device), "config": vars(settings), "encoder": source.record(),
        "classes": contest.class_names, "domains": contest.domains,
        "shots": {"rule": selection.rule(settings), "files": [path for path, _ in shots],
                  "labels": [label for _, label in shots], "unreadable": bad},
        "settings": stack.settings(), "histories": stack.histories(),
        "seconds": {**watch.seconds, **{f"head {name}": s for name, s in stack.seconds_.items()}}})
    print(settings_table(stack.settings()))
    print(f"run saved: {folder}  (next: python test.py{' --demo' if settings.demo else ''})")


if __name__ == "__main__":
    command.run(main)
