"""300 damaged files against the readers, and the fuzzer itself against readers that fail."""

import contextlib
import mmap
import time
from pathlib import Path

import pytest

from jclip_fewshot.errors import UserError

from . import fuzz


@pytest.mark.parametrize("label", sorted(fuzz.KINDS))
def test_every_case_ends_well_or_in_one_line(label):
    found = fuzz.run(label, first=0, cases=50)
    assert found.failures == [] and found.counts["read"] + found.counts["refused"] == 50
    assert found.counts["refused"] > 5 or label == "images"


def traceback(path):
    return {}["x"]


def hang(path):
    while True:
        time.perf_counter()


def eat(path):
    with mmap.mmap(-1, 200 << 20) as memory:  # pages of its own: what this process has freed would not count
        for place in range(0, len(memory), 4096):
            memory[place] = 1


def swallow(path):
    with contextlib.suppress(Exception):
        hang(path)


def endless(path):
    raise UserError("word " * 2000)


@pytest.mark.parametrize("read, said", [(traceback, "KeyError"), (hang, "took more than"), (eat, "MB, more than"),
                                        (swallow, "took more than"), (endless, "the line is none")])
def test_the_fuzzer_notices(tmp_path, monkeypatch, read, said):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    if read is eat and not fuzz.reset_peak():
        pytest.skip("no /proc to measure memory with")
    kind = fuzz.Kind({"a": b"x"}, lambda name, path: read(path), [])
    assert said in fuzz.try_case(kind, "a", tmp_path / "a", fuzz.MEMORY)


def test_a_case_is_made_from_its_number(tmp_path):
    kind = fuzz.record_kind(Path(tmp_path))
    cases = [fuzz.make_case(kind, "record", 0, index) for index in range(30)]
    assert cases == [fuzz.make_case(kind, "record", 0, index) for index in range(30)] and len(set(cases)) > 20
