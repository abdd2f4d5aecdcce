"""Methods on rows against their stored answers to a small case: what a clone without the development data can check."""

import numpy as np
import pytest

from jclip_fewshot.methods import METHODS
from jclip_fewshot.task import Task
from tests.methods.rows.references import FILE, case

with np.load(FILE) as arrays:
    STORED = {name: arrays[name] for name in arrays.files}
NAMES = sorted({name.split("/")[1] for name in STORED if name.startswith("methods/")})


def test_the_case_is_the_stored_one():
    for name, value in case().items():
        np.testing.assert_allclose(value, STORED[name], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_equals_its_stored_answers(name):
    task = Task(STORED["features"], STORED["labels"], STORED["text"], STORED["domains"])
    method = METHODS[name]().fit(task)
    for got, kind in ((method.logits(STORED["queries"]), "logits"), (method.held_out_logits(), "held_out")):
        expected = STORED[f"methods/{name}/{kind}"]
        assert np.abs(got - expected).max() < 2e-3 * np.ptp(expected)  # training sums in another order elsewhere
        assert np.array_equal(got.argmax(1), expected.argmax(1))
