#!/usr/bin/env python3
"""Answers a test set with a trained run and writes result.txt and result.zip, ready to submit.

    python test.py                        the newest run, its own data set and board
    python test.py --demo                 the built-in small contest, scored against its known answers
    python test.py --data DIR --split val a plain tree: the images in DIR/val

Everything about the method comes from the run; the flags here say only which images to answer, and
where checkpoint, features and images lie now if they were moved.
"""

import jclip_fewshot.cli.start  # noqa: F401  first: Ctrl-C during the imports, and Python without the packages

# isort: split

import numpy as np

from jclip_fewshot import runs
from jclip_fewshot.backend import ranks
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse
from jclip_fewshot.config import TestConfig
from jclip_fewshot.console import tell
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.listing import count_of
from jclip_fewshot.data.submission import answers_file, require_names, require_target
from jclip_fewshot.evaluation import scores as scoring
from jclip_fewshot.features.sources import reopen_source, test_rows
from jclip_fewshot.methods.towers.plan import tuned_rows
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.report.analysis import nearest_arrays
from jclip_fewshot.report.page import report_line
from jclip_fewshot.storage.arrays import load_arrays


def main() -> None:
    settings = parse(TestConfig, __doc__)
    command.speak_as(settings)
    watch = runs.Stopwatch()

    # 1. The test images and, where somebody has them, their answers. What is wrong with them is found now.
    folder = runs.find_run(settings.run, settings.runs, settings.demo, settings.demo_seed)
    record = runs.load_record(folder)
    config, class_names = record["config"], record["classes"]
    root = settings.data or runs.where_now(folder, record, config["data"])
    labels = runs.where_now(folder, record, config["labels"]) if config.get("labels") else ""
    contest = read_data_set(root, config["board"], labelled=config["shots"] > 0, format=config.get("format", ""),
                            labels=labels)
    runs.require_same_classes(folder, record, contest.class_names)
    own_split = contest.default_split
    split = settings.split or own_split
    tests = contest.split(split, used=record["shots"]["files"])
    for note in tests.notes:
        tell(note)
    result = answers_file(settings.result, settings.out, contest.plain, root if config["demo"] else "")
    require_target(result)
    if result.suffix != ".csv":
        require_names(tests.folder, tests.names)
    truth = None if tests.labels is None else scoring.truth_of(tests.labels, tests.names)
    runs.require_writable_run(folder)

    # 2. The run: what was learned, and from what.
    device = command.start_jittor(settings)
    pipeline = Pipeline.from_state(load_arrays(folder / runs.MODEL, STATE_SCHEMA))
    task = pipeline.task_
    tell(f"run {folder}: {', '.join(pipeline.names)}")

    # 3. Images become unit feature rows. One that cannot be read is answered by the prior.
    where = runs.sources_now(folder, record, settings)
    source = reopen_source(record["encoder"], where, record["shots"]["files"], class_names, task, **settings.encoding)
    features, bad = test_rows(source, contest.root, tests, settings.views)
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return
    readable = [index for index in range(len(tests.names)) if index not in bad]
    rows = features[readable]
    watch.lap("features")

    # 4. Heads and ensemble answer each image by itself; the refinement looks at all of them.
    answers = pipeline.answer(rows, settings.refine,
                              tuned_rows(source, contest.root, [tests.files[index] for index in readable],
                                         settings.views), every_member=truth is not None)
    if answers.refinement:
        tell(answers.refinement.report())
    watch.lap("answers")

    # 5. The submission: written whole, read back and checked; a copy of it stays in the run.
    best = scoring.with_unreadable(scoring.best_classes(answers.final), answers.final, readable, len(tests.names))
    said = f"{result}: {count_of(len(tests.names), 'image')}"
    if result.suffix == ".csv":
        probability = np.full(len(tests.names), np.nan)
        probability[readable] = answers.final.max(axis=1)
        runs.save_table(result, folder, split, own_split, tests.files, [class_names[ids[0]] for ids in best],
                        probability)
    else:
        said += f"; submit {runs.save_result(result, folder, split, own_split, tests.names, best, len(class_names))}"
    print(said)

    # 6. Where the answers are known: the score of every method.
    scores = {} if truth is None else scoring.score_methods(answers.by_method(), readable, truth, record["domains"])
    if scores:
        print(scoring.score_table(scores))
        print(scoring.gain_text(scores), end="")
    runs.save_test(folder, split, {
        "device": str(device), "config": vars(settings), "images": len(tests.names),
        "unreadable": {tests.names[i]: r for i, r in bad.items()},
        "refinement": answers.refinement.record() if answers.refinement else None, "scores": scores,
        "seconds": watch.seconds},
        {"names": tests.names, "best": best, "probs": answers.final, "before": answers.probs, "readable": readable,
         **nearest_arrays(rows, answers.final, truth if truth is None else truth[readable], task),
         **({} if truth is None else {"truth": truth})})
    if config["demo"]:
        print(report_line(folder, split))


if __name__ == "__main__":
    command.run(main)
