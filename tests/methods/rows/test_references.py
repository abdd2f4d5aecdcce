"""Every head against the stored answers to a small case: what a clone without the development data can check."""

import numpy as np
import pytest

from jclip_fewshot.task import Task
from tests.methods.rows.references import FILE, case


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_the_case_is_the_stored_one(stored):
    for name, value in case().items():
        np.testing.assert_allclose(value, stored[name], atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_head_equals_its_stored_answers(stored, name):
    task = Task(stored["features"], stored["labels"], stored["text"], stored["domains"])
    head = HEADS[name]().fit(task)
    for got, kind in ((head.logits(stored["queries"]), "logits"), (head.held_out_logits(), "held_out")):
        expected = stored[f"heads/{name}/{kind}"]
        assert np.abs(got - expected).max() < 2e-3 * np.ptp(expected)  # trained heads sum in another order elsewhere
        assert np.array_equal(got.argmax(1), expected.argmax(1))
