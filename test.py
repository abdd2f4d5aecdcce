#!/usr/bin/env python3
"""Answers a test set with a trained run and writes result.txt and result.zip, ready to submit.

    python test.py              the newest run, its own data set and board
    python test.py --demo       the built-in small contest, scored against its known answers

Everything about the method comes from the run; the flags here say only which images to answer.
"""

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

import time

from jclip_fewshot import runs
from jclip_fewshot.backend import ranks
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse
from jclip_fewshot.config import TestConfig
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data.contest import read_contest, read_labels, test_images
from jclip_fewshot.data.submission import write_result
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, score, score_table, truth_of, with_unreadable
from jclip_fewshot.features.sources import reopen_source
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.report.analysis import nearest_shots
from jclip_fewshot.report.page import report_line
from jclip_fewshot.storage.arrays import load_arrays


def main() -> None:
    settings = parse(TestConfig, __doc__)
    device = command.set_up(settings)
    watch = runs.Stopwatch()

    # 1. The run: what was learned, and from what.
    folder = runs.find_run(settings.run, settings.runs, demo=settings.demo)
    record = runs.load_record(folder)
    pipeline = Pipeline.from_state(load_arrays(folder / runs.MODEL, STATE_SCHEMA))
    tell(f"run {folder}: {', '.join(pipeline.names)}")

    # 2. The test images become unit feature rows. One that cannot be read is answered by the prior.
    root = settings.data or record["config"]["data"]
    contest = read_contest(root, record["config"]["board"], labelled=False)
    runs.require_same_classes(folder, record, contest.class_names)
    split = settings.split or record["config"]["board"]
    tests = test_images(root, split)
    if tests.ignored:
        tell(f"{tests.folder}: {tests.ignored} files that are no .jpg or .jpeg are left out")
    source = reopen_source(record, settings)
    features, bad = source.images(contest.root, [str(path.relative_to(contest.root)) for path in tests.paths])
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return
    if len(bad) == len(tests.names):
        index, reason = next(iter(bad.items()))
        raise UserError(f"{tests.folder}: none of the {len(tests.names)} images can be read ({tests.names[index]}: "
                        f"{reason}); unpack the test set again")
    for index, reason in bad.items():
        warn(f"{tests.names[index]} cannot be read ({reason}); its line holds the likeliest classes of the rest")
    watch.lap("features")

    # 3. Heads and ensemble answer each image by itself; the refinement looks at all of them.
    readable = [index for index in range(len(tests.names)) if index not in bad]
    answers = pipeline.answer(features[readable], settings.refine)
    if answers.refinement:
        tell(answers.refinement.report())
    watch.lap("answers")

    # 4. The submission: written whole, read back and checked.
    best = with_unreadable(best_classes(answers.final), answers.final, readable, len(tests.names))
    archive = write_result(settings.result, tests.names, best, len(contest.class_names))
    print(f"{settings.result}: {len(tests.names)} images; submit {archive}")

    # 5. Where the answers are known: the score of every method.
    labels = read_labels(contest, split)
    scores = {}
    if labels is not None:
        truth = truth_of(labels, tests.names)
        scores = {name: score(with_unreadable(best_classes(a), a, readable, len(truth)), truth, contest.domains)
                  for name, a in answers.by_method().items()}
        print(score_table(scores))
    # the report shows the nearest shots of an image: of the class that was answered, and of the true one
    classes = {"guess": answers.final.argmax(axis=1), **({} if labels is None else {"truth": truth[readable]})}
    nearest = {}
    for kind, of in classes.items():
        found = nearest_shots(features[readable], of, pipeline.task_.features, pipeline.task_.labels)
        nearest.update({f"nearest_{kind}": found[0], f"nearest_{kind}_cosine": found[1]})
    runs.save_test(folder, split, {
        "command": runs.command_line(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "device": str(device),
        "config": vars(settings), "images": len(tests.names), "unreadable": {tests.names[i]: r for i, r in bad.items()},
        "refinement": answers.refinement.record() if answers.refinement else None, "scores": scores,
        "seconds": watch.seconds},
        {"names": tests.names, "best": best, "probs": answers.final, "before": answers.probs, "readable": readable,
         **nearest, **({} if labels is None else {"truth": truth})})
    if settings.demo:
        print(report_line(folder, split))


if __name__ == "__main__":
    command.run(main)
