"""docs/adding_a_method.md followed to the letter: each of its files is a method once it stands in the table."""

import re

import numpy as np
import pytest

from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import Method
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from tests.conftest import ROOT

FILES = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8"),
                   re.DOTALL)


def test_the_page_has_a_method_of_each_room():
    assert [path.split("/")[2] for path, _ in FILES] == ["rows", "towers", "unlabelled"]


@pytest.mark.parametrize("path, code", FILES, ids=[path.rpartition("/")[2] for path, _ in FILES])
def test_a_file_and_a_line_are_a_method(path, code, everything, monkeypatch, tmp_path):
    task, given, queries = everything
    found: dict = {"__name__": path}
    exec(compile(code, path, "exec"), found)
    method, = (one for one in found.values() if isinstance(one, type) and issubclass(one, Method)
               and one.__module__ == path)
    monkeypatch.setitem(METHODS, method.name, method)  # the line
    pipeline = Pipeline(["gda", method.name], seed=4).fit(task, given)
    answers = pipeline.answer(queries, every_method=True)
    logits = answers.by_method()[method.name]
    assert logits.shape == (len(queries.rows), task.num_classes) and np.isfinite(logits).all()
    if not method.asks_images:  # the safeguards of a tower leave these few images to zero-shot
        assert np.abs(logits - task.zero_shot(queries.rows)).max() > 1e-3
    assert pipeline.methods_[method.name].held_out_logits().shape == (len(task), task.num_classes)
    save_arrays(tmp_path / "model.npz", pipeline.state())
    again = Pipeline.from_state(load_arrays(tmp_path / "model.npz", STATE_SCHEMA))
    np.testing.assert_array_equal(again.answer(queries, every_method=True).by_method()[method.name], logits)
    np.testing.assert_array_equal(again.answer(queries).final, answers.final)
