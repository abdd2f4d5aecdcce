"""Which run a report is about."""

import json
import os

import numpy as np
import pytest

from jclip_fewshot.data.data_set import UNKNOWN
from jclip_fewshot.errors import UserError
from jclip_fewshot.report.reading import find_run, read_run
from jclip_fewshot.storage.arrays import save_arrays

from ..records import RECORD, VALIDATION, changed
from .samples import NAMES, make_contest, make_run


def put(folder, name, content, age):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(folder / name, (1e9 - age, 1e9 - age))


def test_broken_runs_do_not_hide_the_newest_good_one(tmp_path, capsys):
    put(tmp_path / "old", "record.json", RECORD, 9)
    put(tmp_path / "good", "record.json", RECORD, 5)
    put(tmp_path / "cut", "record.json", "{", 1)
    put(tmp_path / "odd", "validate.json", changed(VALIDATION, "curve", {}), 2)
    assert find_run("", tmp_path) == tmp_path / "good"
    assert capsys.readouterr().err.count("looking at the run before it") == 2
    put(tmp_path / "validated", "validate.json", VALIDATION, 0)
    assert find_run("", tmp_path) == tmp_path / "validated"


def test_no_sound_run_at_all(tmp_path):
    put(tmp_path / "cut", "record.json", "{", 1)
    with pytest.raises(UserError, match="no finished run"):
        find_run("", tmp_path)


def test_images_of_no_known_class_are_not_judged(tmp_path):
    run = make_run(tmp_path / "runs/one", make_contest(tmp_path / "data", labelled=True))
    file = run / "test_A.npz"
    arrays = dict(np.load(file))
    truth = np.arange(1, 31) % len(NAMES)
    truth[:3] = UNKNOWN
    save_arrays(file, {**arrays, "truth": truth})
    answers = read_run(run).answers
    assert len(answers.names) == len(answers.paths) == len(answers.probs) == len(answers.truth) == 26
    assert answers.truth.min() == 0 and "image_1.jpg" not in answers.names
    assert (np.diff(answers.probs.max(axis=1)[answers.sure]) <= 0).all()
