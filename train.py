#!/usr/bin/env python3
"""Learn from a few images of each class and save a run that test.py reads.

    python train.py --data Dataset            the contest: 4 images of each of 374 classes
    python train.py --data Dataset --board B  board B: 29 more classes, without images
    python train.py --data Dataset --shots 0  no training image at all: only the class names
    python train.py --demo                    the built-in small contest; needs no download

CLIP turns images and class names into features once; .cache/ keeps them. Each method learns from the features and
chooses its settings by leaving shots out; an ensemble combines the methods.
"""

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

import shlex

from jclip_fewshot.backend import ranks
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse
from jclip_fewshot.config import TrainConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data import demo
from jclip_fewshot.data.formats.folders import named_below
from jclip_fewshot.data.shots import caution, rule
from jclip_fewshot.evaluation.scores import settings_table
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.problem import read_problem, with_support
from jclip_fewshot.provenance import Stopwatch, made_by, next_command
from jclip_fewshot.records import Record, Shots
from jclip_fewshot.run import Run, repeated, require_new


def main() -> None:
    settings, given = parse(TrainConfig, __doc__)
    if settings.from_run:
        settings = repeated(settings, given)
    require_new(settings.runs, settings.name)
    command.speak_as(settings)
    watch = Stopwatch()

    # 1. What is there to learn from? Mistakes in it are found now, before Jittor starts.
    if settings.demo:
        settings = demo.settings(settings)
    problem = read_problem(settings, settings.shots)
    device = command.set_up(settings)

    # 2. Images and sentences become unit feature rows.
    problem = problem.encode()
    watch.lap("sentences")
    rows, shots, bad = problem.shots(settings.shots, settings.seed)
    support, images = problem.support()
    unlabelled = problem.unlabelled(shots)  # here, so that under mpirun every process does its part
    watch.lap("shots")
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return

    # 3. Each method learns from the shots; the ensemble learns how far to trust each method.
    task = problem.task(rows, [label for _, label in shots])
    task, found = with_support(task, support, images, unseen_only=settings.support_for != "all")
    files = [path for path, _ in shots + found]
    tell(f"{len(task)} shots of {int(task.seen.sum())} of {task.num_classes} classes")
    pipeline = Pipeline(problem.choice, settings.seed)
    pipeline.fit(task, problem.given(files, settings.seed, unlabelled),
                 lambda name, seconds: tell(f"  {name:15} {seconds:6.1f} s"))
    watch.lap("methods")

    # 4. Everything that test.py needs, and a record that a person can read and repeat.
    record = Record(
        **made_by(), device=str(device), config=settings, encoder=problem.source.record(),
        classes=problem.data.class_names, domains=problem.data.domains, shots=Shots(
            rule=rule(settings.shots, settings.seed, settings.select, settings.pool, settings.shot_list),
            files=[path for path, _ in shots + named_below(settings.support, found)],
            labels=task.labels.tolist(), unreadable=bad, support=len(found)),
        without_labels={"unlabelled": settings.unlabelled, "transductive": settings.transductive},
        settings=pipeline.settings(), histories=pipeline.histories(),
        seconds={**watch.seconds, **{f"method {name}": s for name, s in pipeline.seconds_.items()}})
    run = Run.create(settings.runs, settings.name, shots, pipeline, record)
    print(f"{settings_table(pipeline.settings())}\n\n{record.summary()}")
    note = caution(settings.select, settings.shot_list)
    if note:
        tell(note)
    print(f"Saved: {run.folder}\nNext:  {next_command('test')} --run {shlex.quote(str(run.folder))}")


if __name__ == "__main__":
    command.run(main)
