#!/usr/bin/env python3
"""Answer a test set with a trained run and write result.txt and result.zip, ready to submit.

    python test.py                        the newest run, its own data set and board
    python test.py --demo                 the built-in small contest, scored against its known answers
    python test.py --data DIR --split val a plain tree: the images in DIR/val

Everything about the method comes from the run; the flags here say only which images to answer, and
where checkpoint, features and images lie now if they were moved.
"""

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

import shlex

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse
from jclip_fewshot.config import TestConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data.listing import count_of
from jclip_fewshot.evaluation import scores as scoring
from jclip_fewshot.features.sources import test_rows
from jclip_fewshot.problem import queries_of
from jclip_fewshot.provenance import Stopwatch, made_by, next_command
from jclip_fewshot.records import TestRecord
from jclip_fewshot.report.analysis import nearest_shots
from jclip_fewshot.report.page import report_line
from jclip_fewshot.run import Run


def main() -> None:
    settings, _ = parse(TestConfig, __doc__)
    command.speak_as(settings)
    watch = Stopwatch()

    # 1. The test images and, where somebody has them, their answers. What is wrong with them is found now.
    run = Run.chosen(settings.run, settings.runs, settings.demo, settings.demo_seed, settings.split)
    data, split, tests, result = run.questions(settings)
    names, demo = tests.names, run.record.config.demo
    truth = None if tests.labels is None else scoring.truth_of(tests.labels, names)

    # 2. The run: what was learned, and from what.
    device = command.set_up(settings)
    tell(f"run {run.folder}: {', '.join(run.pipeline.methods_)}")

    # 3. Images become unit feature rows. One that cannot be read is answered by the prior.
    source = run.source(settings, **settings.encoding)
    features, bad = test_rows(source, data.root, tests, settings.views)
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return
    readable = [index for index in range(len(names)) if index not in bad]
    rows = features[readable]
    watch.lap("features")

    # 4. Methods and ensemble answer each image by itself; the refinement looks at all of them.
    files = [tests.files[index] for index in readable]
    answers = run.pipeline.answer(queries_of(source, data.root, files, rows, settings.views), settings.refine,
                                  every_method=truth is not None)
    if answers.refinement:
        tell(answers.refinement.report())
    watch.lap("answers")

    # 5. The answers: written whole, the contest's submission read back and checked; a copy of them stays in the run.
    best = scoring.with_unreadable(scoring.best_classes(answers.final), answers.final, readable, len(names))
    probability = np.full(len(names), np.nan)
    probability[readable] = answers.final.max(axis=1)
    archive = run.save_answers(result, split, split == data.default_split, tests, best, probability)

    # 6. Where the answers are known: the score of every method. Where not, what the shots say.
    scores = {} if truth is None else scoring.score_methods(answers.by_method(), readable, truth, data.domains)
    print(f"{scoring.score_table(scores)}\n\n{scoring.gain_text(scores)}" if scores else "", end="")
    print(run.record.estimate())
    record = TestRecord(
        **made_by(), device=str(device), config=settings, images=len(names),
        unreadable={names[index]: reason for index, reason in bad.items()},
        refinement=answers.refinement.record() if answers.refinement else None, scores=scores, seconds=watch.seconds)
    run.save_test(split, record, {
        "names": names, "best": best, "probs": answers.final, "before": answers.probs, "readable": readable,
        **nearest_shots(rows, answers.final, truth if truth is None else truth[readable], run.pipeline.task_),
        **({} if truth is None else {"truth": truth})})
    print(f"Saved: {result} ({count_of(len(names), 'image')})")
    if archive:
        print(f"Next:  submit {archive}")
    print(report_line(run.folder, split) if demo else
          f"Report: {next_command('report')} {shlex.quote(str(run.folder))}")


if __name__ == "__main__":
    command.run(main)
