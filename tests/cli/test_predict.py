"""Answers to any pictures: what the arguments name, in which lists they are answered, what is printed, the status."""

import csv
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.classifier import FewShotClassifier
from jclip_fewshot.cli import predict
from jclip_fewshot.cli.predict import NONE_OF_THESE, Named, Printer, answer, chunks, listed
from jclip_fewshot.data import demo
from jclip_fewshot.errors import UserError
from tests.cli.scripts import call, call_here, fails

NAMES = ["cat", "dog", "elk"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.jpg", "b/c.PNG", "b/d.txt", "b/.hidden.jpg", "b/image_10.jpg", "b/image_2.jpg", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(arguments):
    return [picture.path for picture in listed(arguments) if picture]


def test_files_folders_and_patterns(folder):
    assert paths(["a.jpg", "b"]) == ["a.jpg", "b/c.PNG", "b/image_2.jpg", "b/image_10.jpg"]
    assert paths(["*.jpg"]) == ["a.jpg", "odd[1].jpg"]
    assert paths(["odd[1].jpg"]) == ["odd[1].jpg"]  # a file's own name is no pattern
    assert paths(["absent.jpg"]) == ["absent.jpg"]  # whoever reads it says so
    assert "no image (.jpg" in list(listed(["empty"]))[0].reason and list(listed(["*.gif"]))[0].reason


def test_names_from_a_pipe_are_answered_as_they_come(folder, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(reader))
    os.write(writer, b"a.jpg\r\n\nb/c.PNG\nb/")
    pictures = listed(["-"])
    lists = chunks(pictures)
    assert next(lists) == [Named("a.jpg"), Named("b/c.PNG")]  # although the pipe is open and a name cut in two
    os.write(writer, b"image_2.jpg\nlast")
    assert next(lists) == [Named("b/image_2.jpg")]
    os.close(writer)
    assert next(lists) == [Named("last")] and next(lists, None) is None


def test_lists_grow_and_lose_none():
    pictures = [Named(str(number)) for number in range(1500)]
    sizes = [len(chunk) for chunk in chunks(iter(pictures))]
    assert sizes == [16, 32, 64, 128, 256, 512, 492]
    assert [name for chunk in chunks(iter(pictures)) for name in chunk] == pictures
    assert [len(chunk) for chunk in chunks(iter([None, *pictures, None]), together=True)] == [1500]


def printed(capsys, probs, **settings):
    Printer(NAMES, **settings).write("a b.jpg", np.float32(probs))
    return capsys.readouterr().out


def test_three_forms(capsys):
    text = printed(capsys, [0.2, 0.7, 0.1], top=2)
    assert text == "a b.jpg\tdog 70.0 %\tcat 20.0 %\n"
    line = json.loads(printed(capsys, [0.2, 0.7, 0.1], form="json"))
    assert line["image"] == "a b.jpg" and line["answer"] == "dog"
    assert [one["class"] for one in line["classes"]] == ["dog", "cat", "elk"]
    header, row = csv.reader(io.StringIO(printed(capsys, [0.2, 0.7, 0.1], form="csv", top=1)))
    assert header == ["image", "answer", "class1", "probability1"] and row == ["a b.jpg", "dog", "dog", "0.700000"]


def test_json_stays_json_where_output_is_ascii(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace", write_through=True)
    monkeypatch.setattr("sys.stdout", out)
    Printer(NAMES, form="json").write("ü😀.jpg", np.float32([0.5, 0.25, 0.25]))
    assert json.loads(out.buffer.getvalue().decode("ascii"))["image"] == "ü😀.jpg"


def test_a_closed_standard_input_is_one_line(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input"):
        list(listed(["-"]))


def test_none_of_these_below_the_threshold(capsys):
    for p, said in ((0.51, False), (0.49, True)):
        probs = [p, 1 - p - 0.2, 0.2]
        probs = [max(probs), min(probs), 1 - max(probs) - min(probs)] if p > 0.5 else [0.49, 0.31, 0.2]
        assert (NONE_OF_THESE in printed(capsys, probs, reject=0.5)) == said
        assert (json.loads(printed(capsys, probs, reject=0.5, form="json"))["answer"] is None) == said
        assert (NONE_OF_THESE in printed(capsys, probs, reject=0.5, form="csv")) == said


class Source:
    """Reads every path but those that begin with "bad"."""

    clip = None  # no tower to tune

    def images(self, root, paths, stage="", test_views=1):
        self.views = test_views
        bad = {index: "the file is empty" for index, path in enumerate(paths) if path.startswith("bad")}
        return np.float32([[float(path.strip("bad")), 1] for path in paths]).reshape(-1, 2), bad


class Pipe:
    """Remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def answer(self, queries, refine):
        self.asked.append((len(queries.rows), refine))
        return type("Answers", (), {"final": np.repeat(np.float32([[0.2, 0.7, 0.1]]), len(queries.rows), axis=0)})


def test_what_cannot_be_read_is_named_and_the_rest_answered(capsys):
    pictures = [Named("1"), Named("bad2"), Named("gone", "no file has such a name"), Named("3")]
    assert answer(Pipe(), Source(), iter(pictures), Printer(NAMES, 1)) == 1
    said = capsys.readouterr()
    assert said.out == "1\tdog 70.0 %\n3\tdog 70.0 %\n"
    assert "bad2 cannot be read (the file is empty)" in said.err and "gone: no file has such a name" in said.err
    assert answer(Pipe(), Source(), iter([Named("1")]), Printer(NAMES, 1)) == 0
    for none in ([Named("bad2"), Named("gone", "no such")], []):
        with pytest.raises(UserError):
            answer(Pipe(), Source(), iter(none), Printer(NAMES, 1))


def test_views_reach_the_encoder():
    source = Source()
    answer(Pipe(), source, iter([Named("1")]), Printer(NAMES, 1), views=5)
    assert source.views == 5


def test_refining_waits_for_all(monkeypatch, capsys):
    monkeypatch.setattr(predict, "FIRST", 2)
    pictures, found = [Named(str(number)) for number in range(5)], {}
    for refine in (False, True):
        pipe = Pipe()
        answer(pipe, Source(), iter([*pictures, None]), Printer(NAMES, 1), refine=refine)
        found[refine] = pipe.asked
    assert found[True] == [(5, "auto")] and found[False][0] == (2, "off") and sum(n for n, _ in found[False]) == 5


def test_the_command_on_a_run(contest, trained):
    """As test.py answers without refinement, from a feature file, with paths below the data folder."""
    assert call(contest, "test.py", "--run", trained, "--refine", "off", "--quiet").returncode == 0
    wanted = dict(line.split(" ", 1) for line in (contest / "result.txt").read_text().splitlines())
    classes = [line.split()[0] for line in (contest / "classes.txt").read_text().splitlines()]
    done = call(contest, "jclip_fewshot", "predict", trained, "TestSetA", "absent.jpg", "--json", "--quiet")
    assert done.returncode == 1 and "absent.jpg cannot be read" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 30
    for line in lines:
        assert [one["class"] for one in line["classes"]] == [
            classes[int(number)] for number in wanted[line["image"].split("/")[1]].split()]
    fails(call_here(contest, "jclip_fewshot", "predict", trained, "absent.jpg", "--quiet"), "no picture could be read")
    fails(call_here(contest, "jclip_fewshot", "predict", trained, "TestSetA", "--reject", "2"), "--reject takes")


def test_a_classifier_that_python_saved_answers_too(tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        for number in range(3):
            pixels = np.clip(np.array(colour) + rng.integers(-30, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
    paths = [str(tmp_path / f"{name}{number}.png") for name in ("red", "blue") for number in range(2)]
    classifier = FewShotClassifier(str(demo.CHECKPOINT), cache=None, augment=0, methods="gda")
    classifier.fit(paths, ["red", "red", "blue", "blue"]).save(tmp_path / "clf.npz")
    done = call(tmp_path, "jclip_fewshot", "predict", "clf.npz", "red2.png", "blue2.png", "--json", "--cache", "")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = classifier.predict_proba([str(tmp_path / "red2.png"), str(tmp_path / "blue2.png")])
    for line, probs in zip(lines, wanted):
        assert [one["class"] for one in line["classes"]] == [classifier.class_names_[k] for k in np.argsort(-probs)]
        np.testing.assert_allclose([one["probability"] for one in line["classes"]], sorted(probs)[::-1], atol=2e-3)
    fails(call_here(tmp_path, "jclip_fewshot", "predict", "clf.npz", "red2.png", "--features", "f.npz"),
          "is a classifier")
    (tmp_path / "clf.npz").write_text("no archive")
    fails(call_here(tmp_path, "jclip_fewshot", "predict", "clf.npz", "red2.png"), "clf.npz: cannot be read")


def test_export_runs_and_cache_on_a_run(contest, trained):
    done = call(contest, "jclip_fewshot", "export", trained, "c.npz", "--quiet")
    assert done.returncode == 0 and "held-out top-1" in done.stdout, done.stderr
    assert np.load(contest / "c.npz")["weight"].shape == (6, 32)
    fails(call_here(contest, "jclip_fewshot", "export", trained, "c.pt"), "neither in .npz")
    assert call(contest, "test.py", "--run", trained, "--quiet").returncode == 0
    done = call_here(contest, "jclip_fewshot", "runs")
    assert done.returncode == 0 and "base" in done.stdout and "held out" in done.stdout
    done = call_here(contest, "jclip_fewshot", "runs", "--compare", trained, trained)
    assert done.returncode == 0 and "30 images" in done.stdout and "p = 1" in done.stdout
