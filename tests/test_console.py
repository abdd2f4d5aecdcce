"""What is seen while waiting, without a terminal."""

import sys
import types

import pytest

from jclip_fewshot import console


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_ten_seconds(clock, capsys):
    with console.progress(stage="images", unit="images", total=1300, initial=196) as bar:
        for _ in range(60):
            clock[0] += 0.5
            bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["images: 396 of 1,300 images, 20 images/s, 45 s left",
                     "images: 596 of 1,300 images, 20 images/s, 35 s left",
                     "images: 796 of 1,300 images, 20 images/s, 25 s left"]


def test_lines_count_what_is_iterated_and_know_no_end_where_there_is_none(clock, capsys):
    for _ in console.progress([1, 2, 3], stage="head", unit="epochs"):
        clock[0] += 6
    for _ in console.progress(iter([1, 2]), stage="read", unit="files"):
        clock[0] += 100
    assert capsys.readouterr().err.splitlines() == [
        "head: 2 of 3 epochs, 0.167 epochs/s, 6 s left", "read: 1 files", "read: 2 files, 0.01 files/s"]


def test_the_first_step_which_compiles_does_not_count_in_the_time_left(clock, capsys):
    with console.progress(stage="tuning", unit="steps", total=120) as bar:
        for seconds in (300, 2, 2, 2, 2, 2):
            clock[0] += seconds
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "tuning: 1 of 120 steps", "tuning: 6 of 120 steps, 0.5 steps/s, 3 min 48 s left"]


def test_looking_without_finding_anything_new_is_no_first_step(clock, capsys):
    with console.progress(stage="build", unit="files", total=314) as bar:
        for done in (0, 0, 1, 0, 18):  # as files appear
            clock[0] += 10
            bar.update(done)
    assert capsys.readouterr().err.splitlines() == [
        "build: 0 of 314 files", "build: 0 of 314 files", "build: 1 of 314 files", "build: 1 of 314 files",
        "build: 19 of 314 files, 0.9 files/s, 5 min 28 s left"]


def test_quiet_says_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", True)
    for _ in console.progress(range(3), stage="head", unit="epochs"):
        clock[0] += 60
    assert capsys.readouterr().err == ""


def test_a_notebook_gets_tqdms_own_bar(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    made = []
    monkeypatch.setattr("tqdm.auto.tqdm", lambda *_, **about: made.append(about["desc"]))
    console.progress(range(3), stage="head", unit="epochs")
    assert made == ["head"]


def test_durations():
    assert [console.duration(seconds) for seconds in (4.4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 5 min"]
