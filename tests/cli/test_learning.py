"""Scripts that learn from more than shots' rows: tuned methods, support images, images without labels.

On eight classes of the built-in contest, with its small CLIP.
"""

import json
import shutil

import numpy as np
import pytest

from jclip_fewshot.data import demo
from tests.cli.scripts import call, call_here, fails
from tests.small_contest import CLASSES, SHOTS, TESTS, small_contest

LEARN = ("train.py", "--data", "data", "--model", demo.CHECKPOINT, "--augment", "2", "--methods", "zero_shot,gda")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_contest(tmp_path_factory.mktemp("learning"))


def trained_as(home, name, *flags):
    """(record of the run, what train.py said)"""
    done = call(home, *LEARN, "--name", name, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads((home / "runs" / name / "record.json").read_text()), done.stderr


def scores_of(home, name, *flags):
    done = call(home, "test.py", "--run", f"runs/{name}", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads((home / "runs" / name / "test_A.json").read_text())["scores"]


def test_tuned_methods_from_the_shots_to_the_report(home):
    record, said = trained_as(home, "tuned", "--shots", "3", "--methods", "gda,token_gda,last_block")
    assert "tuning token_gda, last_block: about" in said
    assert record["settings"]["last_block"]["alpha"] in (0.5, 0.75, 1.0)
    for name in ("token_gda", "last_block"):
        wanted = record["settings"][name]["in_ensemble"]
        assert wanted != (f"{name} gets no weight" in said)
    scores = scores_of(home, "tuned")
    assert {"token_gda", "last_block", "ensemble", "ensemble_tuned"} <= set(scores)
    done = call_here(home, "jclip_fewshot", "report", "runs/tuned")
    assert done.returncode == 0, done.stderr
    page = (home / "runs/tuned/report/index.html").read_text(encoding="utf-8")
    assert "last_block" in page and "token_gda" in page
    done = call(home, "train.py", "--from-run", "runs/tuned", "--name", "again", "--cache", "other")  # trains anew
    assert done.returncode == 0, done.stderr
    assert (home / "runs/again/model.npz").read_bytes() == (home / "runs/tuned/model.npz").read_bytes()


def test_classes_without_a_shot_keep_their_share_beside_tuned_methods(home, tmp_path):
    """Board B: two more classes, known by their names alone."""
    shutil.copytree(home / "data", tmp_path / "data")
    data = tmp_path / "data"
    (data / "TestSetA").rename(data / "TestSetB")
    (data / "labels_TestSetA.txt").rename(data / "labels_TestSetB.txt")
    classes = (data / "classes.txt").read_text().splitlines()
    (data / "classes.txt").rename(data / "classes_b.txt")
    (data / "classes.txt").write_text("\n".join(classes[:CLASSES - 2]) + "\n")
    lines = (data / "train.txt").read_text().splitlines()
    (data / "train.txt").write_text("\n".join(lines[:SHOTS * (CLASSES - 2)]) + "\n")
    record, _ = trained_as(tmp_path, "b", "--shots", "4", "--board", "B", "--methods", "gda,token_gda,last_block")
    assert any(record["settings"][name]["in_ensemble"] for name in ("token_gda", "last_block"))
    done = call(tmp_path, "test.py", "--run", "runs/b", "--refine", "off")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "runs/b/test_B.npz") as saved:
        probs, truth = saved["probs"], saved["truth"]
    unseen = truth >= CLASSES - 2
    assert (probs.argmax(axis=1) == truth)[unseen].mean() >= 0.5  # none where they are pushed out
    assert (probs.argmax(axis=1) == truth)[~unseen].mean() > 0.5


def test_support_images_alone_and_beside_shots(home):
    record, said = trained_as(home, "found", "--shots", "0", "--support", "found", "--methods", "gda,token_gda")
    stay = record["shots"]["support"]
    assert 8 <= stay < 20 and f"{stay} of 20 support images stay" in said
    assert len(record["shots"]["files"]) == stay == len(record["shots"]["labels"])
    assert all(name.startswith("support/") for name in record["shots"]["files"])
    scores = scores_of(home, "found")
    assert scores["ensemble"]["top1"] >= scores["zero_shot"]["top1"]

    record, _ = trained_as(home, "both", "--shots", "2", "--support", home / "found", "--methods", "gda,token_gda")
    assert 16 < len(record["shots"]["files"]) == 16 + record["shots"]["support"]
    assert "ensemble" in scores_of(home, "both")
    _, said = trained_as(home, "none without", "--shots", "1", "--support", "found", "--support-for", "without-shots")
    assert "0 of 20 support images stay" in said


def test_a_support_image_that_cannot_be_read_is_left_out(home, tmp_path):
    shutil.copytree(home / "found", tmp_path / "found")
    broken = next((tmp_path / "found").glob("*/1.jpg"))
    broken.write_bytes(broken.read_bytes()[:100])
    _, said = trained_as(home, "broken", "--shots", "0", "--support", tmp_path / "found")
    assert f"support image {broken} cannot be read" in said and "of 19 support images stay" in said
    for path in (tmp_path / "found").glob("*/*.jpg"):
        path.write_bytes(b"no image")
    done = call(home, *LEARN, "--shots", "0", "--support", tmp_path / "found")
    fails(done, "none of the 20 support images can be read")


def test_methods_that_learn_without_labels(home):
    flags = ("--methods", "lafter_text,clip_pr", "--unlabelled", "data/TestSetA")
    record, said = trained_as(home, "free", "--shots", "0", *flags)
    assert f"{TESTS} images without labels" in said
    assert {"lafter_text", "clip_pr"} <= set(record["settings"])
    assert {"lafter_text", "clip_pr"} <= set(scores_of(home, "free"))
    done = call(home, "jclip_fewshot", "export", "runs/free", "free.npz")
    assert done.returncode == 0 and (home / "free.npz").is_file(), done.stderr
    record, said = trained_as(home, "transductive", "--shots", "2", "--transductive", "--methods", "clip_pr")
    assert record["config"]["transductive"] is True and f"{TESTS} images without labels" in said
    assert "clip_pr" in scores_of(home, "transductive")


def test_the_test_images_of_a_plain_tree(home, tmp_path):
    shutil.copytree(home / "data/TrainSet", tmp_path / "data/train")
    shutil.copytree(home / "data/TestSetA", tmp_path / "data/test")
    done = call(tmp_path, *LEARN, "--shots", "2", "--transductive")
    assert done.returncode == 0 and f"{TESTS} images without labels" in done.stderr, done.stderr


@pytest.mark.parametrize("flags, said", [
    (["--methods", "upl"], ["upl learns from images without labels", "--unlabelled", "--transductive"]),
    (["--methods", "laftr"], ["did you mean 'lafter'"]),
    (["--support-for", "without-shots"], ["--support-for without-shots", "give --support"]),
    (["--support", "data/TestSetA"], ["lies beside the class folders"]),
    (["--unlabelled", "runs-that-are-not"], ["no such folder"]),
    (["--shots", "0", "--methods", "last_block"], ["last_block learns from labelled images"]),
    (["--methods", "last_blocks"], ["did you mean 'last_block'"]),
])
def test_mistakes(home, flags, said):
    fails(call_here(home, *LEARN, *flags), *said)
