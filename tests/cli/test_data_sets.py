"""Data sets, targets and moved runs through the scripts, as a user meets them."""

import csv
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.cli import commands, doctor
from jclip_fewshot.config import CheckConfig
from jclip_fewshot.data import demo
from jclip_fewshot.errors import UserError
from tests.cli.scripts import TRAIN, call, fails

NAMES = ("brown_bear", "polar_bear", "black_bear")
PATH = re.compile(r"\S*/\S*")  # paths stay whole in a narrow terminal
ENCODE = ("train.py", "--data", "data", "--model", demo.CHECKPOINT, "--methods", "tip_adapter", "--augment", "1")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ and holdout/ with a folder a class, PNG, WebP and BMP; a class with fewer images than shots."""
    folder = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (3, 3))

    def add(path, label):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-40, 40, (40, 50, 3))
        Image.fromarray(np.clip(colours[label] + noise, 0, 255).astype(np.uint8)).save(path)

    for label, name in enumerate(NAMES):
        for number in range(5 if label else 2):
            add(folder / "data/train" / name / f"{number}.{('png', 'webp', 'BMP')[label]}", label)
        for number in range(3):
            add(folder / "data/test" / name / f"{number}.PNG", label)
            add(folder / "data/holdout" / f"{name} {number}.jpg", label)
    return folder


def test_a_plain_tree_end_to_end(tree):
    done = call(tree, *ENCODE, "--name", "base")
    assert done.returncode == 0, done.stderr
    assert "1 class has fewer than 4 images" in done.stderr
    assert "3 classes: black_bear (5), brown_bear (2), polar_bear (5); test sets: test" in " ".join(done.stderr.split())
    record = json.loads((tree / "runs/base/record.json").read_text())
    assert record["domains"] == ["", "", ""] and len(record["shots"]["files"]) == 2 + 4 + 4
    done = call(tree, "test.py")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout and "refining the set" in done.stdout  # answers are known by the folders
    rows = list(csv.DictReader((tree / "result.csv").open()))
    assert len(rows) == 9 and rows[0]["path"] == "test/black_bear/0.PNG" and rows[0]["label"] in NAMES
    assert all(1 / 3 < float(row["probability"]) <= 1 for row in rows)
    assert (tree / "runs/base/result.csv").read_bytes() == (tree / "result.csv").read_bytes()
    assert "features" not in np.load(tree / "runs/base/test_test.npz").files
    done = call(tree, "test.py", "--out", "txt")
    assert done.returncode == 0, done.stderr
    assert (tree / "result.txt").read_text().startswith("black_bear/0.PNG ")
    assert (tree / "runs/base/result.zip").read_bytes() == (tree / "result.zip").read_bytes()
    done = call(tree, "jclip_fewshot", "check", "result.txt", "--data", "data")
    assert done.returncode == 0 and "9 images, 3 classes" in done.stdout
    fails(call(tree, "test.py", "--out", "csv", "--result", "mine.txt"), "--result mine.txt and --out csv")

    done = call(tree, "test.py", "--split", "holdout", "--out", "txt")
    assert done.returncode == 0, done.stderr
    assert "brown_bear 0.jpg " in (tree / "result.txt").read_text()
    assert (tree / "runs/base/result_holdout.txt").is_file() and (tree / "runs/base/test_holdout.json").is_file()
    done = call(tree, "jclip_fewshot", "check", "result.txt", "--data", "data", "--split", "holdout")
    assert done.returncode == 0, done.stderr


def test_a_table_end_to_end_with_the_rest_held_out(contest, tmp_path):
    """A CSV without a test set: the shots are drawn, the other labelled images scored; from another folder too."""
    rows = [line.rsplit(" ", 1) for line in (contest / "train.txt").read_text().splitlines()]
    names = [line.split()[0] for line in (contest / "classes.txt").read_text().splitlines()]
    shutil.copytree(contest / "TrainSet", tmp_path / "data/TrainSet")
    (tmp_path / "mine.csv").write_text("path,label\n" + "".join(f"{path},{names[int(k)]}\n" for path, k in rows))
    done = call(tmp_path, "train.py", "--data", "data", "--labels", "mine.csv", "--features",
                contest / "features.npz", "--heads", "tip_adapter", "--name", "csv")
    assert done.returncode == 0, done.stderr
    assert "6 classes: Cat_a (6), " in done.stderr and "no test set" in done.stderr
    (tmp_path / "below").mkdir()
    done = call(tmp_path / "below", "test.py", "--run", "../runs/csv")
    assert done.returncode == 0, done.stderr
    assert "12 labelled images that are no shots" in done.stderr and "ensemble" in done.stdout
    shots = json.loads((tmp_path / "runs/csv/record.json").read_text())["shots"]["files"]
    answered = [row["path"] for row in csv.DictReader((tmp_path / "below/result.csv").open())]
    assert sorted(answered + shots) == sorted(path for path, _ in rows)
    done = call(tmp_path, "jclip_fewshot", "report", "runs/csv")
    assert done.returncode == 0, done.stderr


def test_check_names_the_test_set_that_a_file_answers(contest, trained, tmp_path):
    shutil.copytree(contest / "TestSetA", tmp_path / "TestSetA")
    shutil.copytree(contest / "TestSetA", tmp_path / "TestSetB")
    (tmp_path / "TestSetB/image_1.jpg").rename(tmp_path / "TestSetB/image_99.jpg")
    for board in ("", "_b"):
        shutil.copy(contest / "classes.txt", tmp_path / f"classes{board}.txt")
    assert call(contest, "test.py", "--run", trained, "--result", tmp_path / "result.txt").returncode == 0
    text = (tmp_path / "result.txt").read_text().replace("image_1.jpg", "image_99.jpg")
    (tmp_path / "result.txt").write_text(text)
    fails(call(tmp_path, "jclip_fewshot", "check", "result.txt", "--data", "."), "answers test set B", "--split B")


def test_validate_on_a_plain_tree_and_its_repeat_command(tree):
    line = ("jclip_fewshot", "validate", "--data", "data", "--model", demo.CHECKPOINT, "--methods", "tip_adapter",
            "--shots", "1", "--seeds", "2", "--augment", "1", "--per-class", "1", "--name", "local")
    done = call(tree, *line)
    assert done.returncode == 0, done.stderr
    assert "fit 2 of 2" in done.stderr and "images" in done.stdout
    command = json.loads((tree / "runs/local/validate.json").read_text())["command"].split()
    assert command[1:4] == ["-m", "jclip_fewshot", "validate"]


def test_one_random_view_is_not_the_plain_image(tree):
    assert call(tree, *ENCODE[:-1], "0", "--name", "plain").returncode == 0
    rows = [np.load(tree / "runs" / name / "model.npz")["shots/features"] for name in ("base", "plain")]
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_a_foreign_result_is_kept(contest, trained):
    (contest / "mine.txt").write_text("a rival's\n")
    done = call(contest, "test.py", "--run", trained, "--result", "mine.txt")
    assert done.returncode == 0 and "mine.previous.txt" in done.stderr
    assert (contest / "mine.previous.txt").read_text() == "a rival's\n"
    done = call(contest, "test.py", "--run", trained, "--result", "mine.txt")
    assert done.returncode == 0 and "previous" not in done.stderr


@pytest.mark.parametrize("target", [".", "/dev/null", "features.npz/result.txt"])
def test_a_bad_target_is_found_before_the_work(contest, trained, target):
    fails(call(contest, "test.py", "--run", trained, "--result", target), "--result")
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_bad_names_are_found_before_the_work(contest, trained, tmp_path):
    assert call(tmp_path, "train.py", "--name", "x" * 300).returncode == 2
    odd = contest / "TestSetA" / "image  99.jpg"
    odd.write_bytes(b"")
    try:
        fails(call(contest, "test.py", "--run", trained), "'image  99.jpg'", "rename")
    finally:
        odd.unlink()


def test_label_mistakes_are_found_before_the_work(contest, trained):
    labels = contest / "labels_TestSetA.txt"
    whole = labels.read_text()
    labels.write_text(whole.replace("image_3.jpg 3\n", ""))
    (contest / "kept.txt").write_text("old\n")
    try:
        done = call(contest, "test.py", "--run", trained, "--result", "kept.txt")
        fails(done, "no answer for 1 test images")
        assert (contest / "kept.txt").read_text() == "old\n"
    finally:
        labels.write_text(whole)


def test_a_moved_run_says_where_its_features_are_or_is_told(contest, trained, tmp_path):
    moved = tmp_path / "elsewhere" / "runs" / "base"
    moved.parent.mkdir(parents=True)
    moved.mkdir()
    for name in ("record.json", "model.npz", "shots.txt"):
        (moved / name).write_bytes((trained / name).read_bytes())
    record = json.loads((moved / "record.json").read_text())
    (moved / "record.json").write_text(json.dumps({**record, "folder": str(tmp_path / "gone")}))
    fails(call(tmp_path, "test.py", "--run", moved, "--data", contest), "features.npz")
    done = call(tmp_path, "test.py", "--run", moved, "--data", contest, "--features", contest / "features.npz")
    assert done.returncode == 0, done.stderr


def test_verbose_in_a_file_shows_the_trace(contest):
    (contest / "verbose.toml").write_text("verbose = true\n")
    done = call(contest, *TRAIN, "--config", "verbose.toml", "--board", "B")
    assert done.returncode == 2 and "Traceback" in done.stderr and "classes_b.txt" in done.stderr


def test_tables_and_help_in_a_narrow_terminal(contest, trained):
    done = call(contest, "test.py", "--run", trained, COLUMNS="60")
    assert done.returncode == 0 and max(map(len, PATH.sub("", done.stdout).splitlines())) <= 60, done.stdout
    for line in (("train.py", "-h"), ("jclip_fewshot", "evaluate", "-h"), ("jclip_fewshot",),
                 ("jclip_fewshot", "doctor", "--data", "."),
                 ("jclip_fewshot", "runs", "--compare", "runs/base", "runs/base")):
        done = call(contest, *line, COLUMNS="60")
        said = PATH.sub("", done.stdout.split("\nusage:")[-1])  # examples to copy, above the usage, stay whole too
        assert said and max(map(len, said.splitlines())) <= 60, done.stdout + done.stderr


def test_check_and_doctor_take_the_format_where_two_fit(tmp_path):
    for part, names in (("train", "ab"), ("test", "c")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.jpg").write_bytes(b"")
    (tmp_path / "train.csv").write_text("path,label\ntrain/a/1.jpg,a\ntrain/b/1.jpg,b\n")
    (tmp_path / "result.txt").write_text("c/1.jpg 0 1\n")
    settings = CheckConfig(result=str(tmp_path / "result.txt"), data=str(tmp_path))
    with pytest.raises(UserError, match="choose with --format"):
        commands.check(settings)
    assert commands.check(replace(settings, format="tree")) == 0
    assert commands.check(replace(settings, labels=str(tmp_path / "train.csv"))) == 0
    assert not doctor.finding("data set", doctor._data, str(tmp_path), "", "").ok
    assert doctor._data(str(tmp_path), "tree", "").startswith(f"{tmp_path}: tree of 2 classes")
