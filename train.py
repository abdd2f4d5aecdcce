#!/usr/bin/env python3
"""Learns from a few images a class and leaves a run folder that test.py reads.

    python train.py --data Dataset            the contest: 4 images of each of 374 classes
    python train.py --data Dataset --board B  board B: 29 more classes, without images
    python train.py --data Dataset --shots 0  no training image at all: the class names alone
    python train.py --demo                    the built-in small contest; needs no download

Images and class names are turned into CLIP features once and kept in .cache/; the heads learn from
features alone, choose their settings by leave-one-shot-out, and an ensemble combines them.
"""

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

from jclip_fewshot import runs
from jclip_fewshot.backend import ranks
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse_given
from jclip_fewshot.config import TrainConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data import demo, prompts
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.shots import caution, choose, rule, shortage
from jclip_fewshot.data.support import named_below
from jclip_fewshot.evaluation.scores import settings_table
from jclip_fewshot.features.sources import labelled_rows, open_source
from jclip_fewshot.methods.towers.plan import plan, tune_names
from jclip_fewshot.pipeline import Pipeline, head_names
from jclip_fewshot.task import Task, domain_indices
from jclip_fewshot.without_labels import encode_support, encode_without_labels, list_without_labels


def main() -> None:
    settings, given = parse_given(TrainConfig, __doc__)
    if settings.from_run:
        settings = runs.repeated(settings, given)
    names = head_names(settings.heads)
    tune_names(settings.tune)  # complains before the work
    runs.require_new_run(settings.runs, settings.name)
    command.speak_as(settings)
    watch = runs.Stopwatch()

    # 1. What is there to learn from?
    if settings.demo:
        settings = demo.settings(settings)
    contest = read_data_set(settings.data, settings.board, settings.domains,
                            settings.shots > 0 or bool(settings.shot_list), settings.format, settings.labels)
    tell(contest.summary())
    for note in contest.notes + [shortage(contest, settings.shots)]:
        tell(note) if note else None
    sentences = prompts.class_sentences(contest.class_names, contest.domains, settings.prompts, settings.names,
                                        settings.templates, settings.prompt_set, settings.descriptions)
    listed = list_without_labels(settings, contest.class_names)
    device = command.start_jittor(settings)  # Jittor starts when there is something to do

    # 2. Images and sentences become unit feature rows.
    source = open_source(settings.model, settings.weights, settings.features, settings.features_extra,
                         **settings.encoding)
    text = source.texts(contest.class_names, sentences)
    watch.lap("sentences")
    draw = {name: getattr(settings, name) for name in ("shots", "seed", "select", "pool", "shot_list")}
    shots = choose(contest, source, text, **draw)
    rows, shots, bad = labelled_rows(source, contest.root, shots, settings.skip_bad, settings.augment, settings.seed)
    support = encode_support(settings, listed, source)
    without_labels = encode_without_labels(settings, listed, contest, source, sentences)
    watch.lap("shots")
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return

    # 3. Each head learns from the shots; the ensemble learns how far to trust each head.
    task = Task(rows, [label for _, label in shots], text, domain_indices(contest.domains), source.scale,
                source.parts)
    task, found = support.added_to(task, unseen_only=settings.support_for != "all")
    files = [path for path, _ in shots + found]
    tell(f"{len(task)} shots of {int(task.seen.sum())} of {task.num_classes} classes")
    plain = prompts.plain_sentences(contest.class_names, contest.domains, settings.prompts, settings.names)
    tuning = plan(settings.tune, task, source, contest.root, files, settings.augment, settings.seed, plain)
    members = without_labels.learn(contest, source, text, settings.seed)
    watch.lap("without labels")
    pipeline = Pipeline(names, settings.seed, members, without_labels.unlabelled)
    pipeline.fit(task, lambda name, seconds: tell(f"  {name:15} {seconds:6.1f} s"), tuning)
    watch.lap("heads")

    # 4. Everything that test.py needs, and a record that a person can read and repeat.
    arrays = {**pipeline.state(), **pipeline.alpha_beta()}
    folder = runs.save_run(settings.runs, settings.name, settings.board, shots, arrays, {
        "device": str(device), "config": vars(settings), "encoder": source.record(),
        "classes": contest.class_names, "domains": contest.domains,
        "shots": {"rule": rule(**draw), "files": [path for path, _ in shots + named_below(settings.support, found)],
                  "labels": task.labels.tolist(), "unreadable": bad, "support": len(found)},
        "without_labels": {"unlabelled": settings.unlabelled, "transductive": settings.transductive,
                           "members": [member.name for member in members]},
        "settings": pipeline.settings(), "histories": pipeline.histories(),
        "seconds": {**watch.seconds, **{f"head {name}": s for name, s in pipeline.seconds_.items()}}})
    print(settings_table(pipeline.settings()))
    note = caution(settings.select, settings.shot_list)
    if note:
        tell(note)
    print(f"run saved: {folder}  (next: {runs.next_command('test')}"
          f"{runs.demo_flags(settings.demo, settings.demo_seed)}{runs.runs_flag(settings.runs)})")


if __name__ == "__main__":
    command.run(main)
