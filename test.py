#!/usr/bin/env python3
"""Answers a test set with a trained run and writes result.txt and result.zip, ready to submit.

    python test.py                        the newest run, its own data set and board
    python test.py --demo                 the built-in small contest, scored against its known answers
    python test.py --data DIR --split val a plain tree: the images in DIR/val

Everything about the method comes from the run; the flags here say only which images to answer, and
where checkpoint, features and images lie now if they were moved.
"""

from pathlib import Path

from jclip_fewshot import runs
from jclip_fewshot.backend import ranks
from jclip_fewshot.cli import command
from jclip_fewshot.cli.flags import parse
from jclip_fewshot.config import TestConfig
from jclip_fewshot.console import tell, warn
from jclip_fewshot.data.contest import default_split, read_contest, read_labels, test_images
from jclip_fewshot.data.submission import move_aside, require_names, require_target, write_result
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, gain_text, score, score_table, truth_of, with_unreadable
from jclip_fewshot.features.sources import reopen_source
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.report.run import write_report
from jclip_fewshot.storage.arrays import load_arrays


def main() -> None:
    settings = parse(TestConfig, __doc__)
    device = command.set_up(settings)
    watch = runs.Stopwatch()

    # 1. The run: what was learned, and from what.
    folder = runs.find_run(settings.run, settings.runs, settings.demo, settings.demo_seed)
    record = runs.load_record(folder)
    config, domains = record["config"], record["domains"]
    pipeline = Pipeline.from_state(load_arrays(folder / runs.MODEL))
    tell(f"run {folder}: {', '.join(pipeline.names)}")

    # 2. The test images and, where somebody has them, their answers; every mistake in them is found here.
    root = settings.data or runs.where_now(folder, record, config["data"])
    contest = read_contest(root, config["board"])
    runs.require_same_classes(folder, record, contest.class_names)
    own_split = default_split(root, config["board"]) if not settings.split else config["board"]
    split = settings.split or own_split
    tests = test_images(root, split)
    require_names(tests.folder, tests.names)
    if tests.ignored:
        tell(f"{tests.folder}: {tests.ignored} files that are no images are left out")
    labels = read_labels(contest, split)
    truth = None if labels is None else truth_of(labels, tests.names)
    result = Path(settings.result or (contest.root / "result.txt" if config["demo"] else "result.txt"))
    require_target(result)
    runs.require_writable_run(folder)

    # 3. Images become unit feature rows. One that cannot be read is answered by the prior.
    source = reopen_source(record["encoder"], runs.sources_now(folder, record, settings), record["shots"]["files"],
                           record["classes"], pipeline.task_, **settings.encoding)
    features, bad = source.images(contest.root, tests.files)
    if not ranks.first():  # under mpirun the other processes have done their part of the encoding
        return
    if len(bad) == len(tests.names):
        index, reason = next(iter(bad.items()))
        raise UserError(f"{tests.folder}: none of the {len(tests.names)} images can be read ({tests.names[index]}: "
                        f"{reason}); unpack the test set again")
    for index, reason in bad.items():
        warn(f"{tests.names[index]} cannot be read ({reason}); its line holds the likeliest classes of the rest")
    watch.lap("features")

    # 4. Heads and ensemble answer each image by itself; the refinement looks at all of them.
    readable = [index for index in range(len(tests.names)) if index not in bad]
    answers = pipeline.answer(features[readable], settings.refine)
    if answers.refinement:
        tell(answers.refinement.report())
    watch.lap("answers")

    # 5. The submission: written whole, read back and checked; a copy of it stays in the run.
    best = with_unreadable(best_classes(answers.final), answers.final, readable, len(tests.names))
    for path in (result, result.with_suffix(".zip")):
        aside = move_aside(path, runs.kept_results(folder, path.suffix))
        tell(f"{path} was not of these runs: it is {aside} now") if aside else None
    archive = write_result(result, tests.names, best, len(contest.class_names))
    write_result(runs.own_result(folder, split, own_split), tests.names, best, len(contest.class_names))
    print(f"{result}: {len(tests.names)} images; submit {archive}")

    # 6. Where the answers are known: the score of every method.
    scores = {}
    if truth is not None:
        scores = {name: score(with_unreadable(best_classes(a), a, readable, len(truth)), truth, domains)
                  for name, a in answers.by_method().items()}
        print(score_table(scores))
        print(gain_text(scores)) if answers.refinement else None
    runs.save_test(folder, split, {
        "device": str(device), "config": vars(settings), "images": len(tests.names),
        "unreadable": {tests.names[i]: r for i, r in bad.items()},
        "refinement": answers.refinement.record() if answers.refinement else None, "scores": scores,
        "seconds": watch.seconds}, runs.test_arrays(tests.names, best, answers, readable, features, truth))
    if config["demo"]:
        print(f"report: {write_report(folder, split)}")


if __name__ == "__main__":
    command.run(main)
