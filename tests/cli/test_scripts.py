"""train.py, test.py and the commands as a user calls them: files out, mistakes in one line with status 2."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from jclip_fewshot.data import demo
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.shots import choose_shots
from jclip_fewshot.data.submission import check_result
from jclip_fewshot.errors import UserError
from tests.cli.scripts import TRAIN, call, call_here, fails
from tests.conftest import ROOT, hear_ctrl_c
from tests.evaluation.suites import small_suite


def test_from_photographs_to_a_valid_submission(contest, trained):
    done = call(contest, "test.py", "--run", trained)
    assert done.returncode == 0, done.stderr
    names = read_data_set(contest).split().names
    assert not check_result(contest / "result.txt", names, 6).problems
    with zipfile.ZipFile(contest / "result.zip") as archive:
        assert archive.read("result.txt") == (contest / "result.txt").read_bytes()
    assert "ensemble" in done.stdout and "top-1" in done.stdout  # the answers are known: a score table
    assert "Top-1 on 24 held-out shots" in done.stdout
    record = json.loads((trained / "record.json").read_text())
    assert len(record["shots"]["files"]) == 24 and record["shots"]["rule"].startswith("random")
    assert record["versions"]["jittor"] and record["settings"]["tip_adapter"]
    tested = json.loads((trained / "test_A.json").read_text())
    assert tested["scores"]["ensemble"]["top1"] > 50 and tested["images"] == 30


def test_the_same_seed_gives_the_same_file_byte_for_byte(contest, trained):
    results = []
    assert call(contest, *TRAIN, "--name", "two", "--quiet").returncode == 0
    for name in ("base", "two"):
        done = call(contest, "test.py", "--run", f"runs/{name}", "--result", f"{name}.txt", "--quiet")
        assert done.returncode == 0, done.stderr
        results.append(((contest / f"{name}.txt").read_bytes(), (contest / f"{name}.zip").read_bytes(),
                        (contest / f"runs/{name}/model.npz").read_bytes()))
    assert results[0] == results[1]


def test_a_mistake_is_said_before_jittor_starts(contest, trained):
    for command in ([*TRAIN[:2], "absent"], ["test.py", "--run", trained, "--split", "B"]):
        done = call(contest, *command)
        fails(done)
        assert "Jittor" not in done.stderr and "Building" not in done.stderr


def test_a_name_that_is_taken_is_refused_before_the_work(contest, trained):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    for line in (TRAIN, ("train.py", "--from-run", trained), ("jclip_fewshot", "validate", "--run", trained)):
        done = call(contest, *line, "--name", "base")
        fails(done, "--name base: runs/base exists")
        assert "Jittor" not in done.stderr
    assert {path: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_a_run_answers_its_own_board(contest, tmp_path):
    """Board B: the last class has no image; the test images are the same."""
    root = tmp_path / "both"
    shutil.copytree(contest, root, ignore=shutil.ignore_patterns("runs", "result*"))
    classes = (root / "classes.txt").read_text()
    (root / "classes_b.txt").write_text(classes)
    shutil.copytree(root / "TestSetA", root / "TestSetB")
    arrays = dict(np.load(root / "features.npz"))
    paths = [path for path in arrays["path"].tolist() if path.startswith("TestSetA")]
    rows = arrays["feature"][[arrays["path"].tolist().index(path) for path in paths]]
    np.savez(root / "features.npz", **{**arrays, "feature": np.concatenate([arrays["feature"], rows]), "path": np.array(
        [*arrays["path"].tolist(), *(path.replace("SetA", "SetB") for path in paths)])})
    for board in ("A", "B"):
        assert call(root, *TRAIN, "--board", board, "--name", board, "--quiet").returncode == 0
    for run, split in (("A", "B"), ("B", "A")):
        done = call(root, "test.py", "--run", f"runs/{run}", "--split", split)
        fails(done, f"classes of board {run} and cannot answer --split {split}")
        assert not (root / "result.txt").exists() and "Jittor" not in done.stderr
    fails(call_here(root, "test.py"), "runs of both boards", "--split A (runs/A)", "--split B (runs/B)")
    for board in ("A", "B"):
        assert call(root, "test.py", "--split", board, "--quiet").returncode == 0
        assert (root / f"runs/{board}/test_{board}.json").is_file()


def test_names_alone_to_a_valid_submission(contest, tmp_path):
    """Neither train.txt nor a training image is needed."""
    for name in ("classes.txt", "labels_TestSetA.txt", "features.npz"):
        shutil.copy(contest / name, tmp_path / name)
    shutil.copytree(contest / "TestSetA", tmp_path / "TestSetA")
    done = call(tmp_path, *TRAIN, "--methods", "auto", "--shots", "0", "--name", "names")
    assert done.returncode == 0, done.stderr
    done = call(tmp_path, "test.py", "--run", "runs/names")
    assert done.returncode == 0 and "zero_shot_refined" in done.stdout, done.stderr
    assert not check_result(tmp_path / "result.txt", read_data_set(tmp_path, labelled=False).split().names, 6).problems
    assert call_here(tmp_path, "jclip_fewshot", "report", "runs/names").returncode == 0
    record = json.loads((tmp_path / "runs/names/record.json").read_text())
    assert record["shots"]["rule"] == "none: class names alone" and record["shots"]["files"] == []


def test_quiet_says_results_and_warnings_alone(contest, trained):
    done = call(contest, "test.py", "--run", trained, "--quiet")
    assert done.returncode == 0 and done.stderr == "" and "result.txt (30 images)" in done.stdout


def test_check_finds_what_is_wrong(contest, trained):
    call(contest, "test.py", "--run", trained)
    assert call_here(contest, "jclip_fewshot", "check", "result.txt", "--data", ".").returncode == 0
    (contest / "bad.txt").write_text((contest / "result.txt").read_text().replace("image_3.jpg ", "image_3.png "))
    done = call_here(contest, "jclip_fewshot", "check", "bad.txt", "--data", ".")
    assert done.returncode == 2 and "image_3" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("flags, said", [
    (["--data", "absent"], ["no folder absent", "--data"]),
    (["--shots", "9"], ["fewer than the 9 shots", "--shots 6"]),
    (["--shots", "-1"], ["--shots takes a number from 0 up"]),
    (["--support", "absent"], ["--support absent", "no such folder"]),
    (["--support", "TrainSet/Cat"], ["'a' is no class"]),
    (["--descriptions", "absent.json"], ["absent.json"]),
    (["--methods", "tip_adaptor"], ["did you mean 'tip_adapter'"]),
    (["--features", "absent.npz"], ["absent.npz", "no such file"]),
    (["--shot-list", "absent.txt"], ["absent.txt"]),
    (["--board", "B"], ["classes_b.txt"]),
    (["--name", "a/b"], ["plain name"]),
    (["--device", "cuda"], ["--device cuda: "]),
])
def test_mistakes_of_train(contest, flags, said):
    if "cuda" in flags:
        from jclip_fewshot.backend import toolkit
        with contextlib.suppress(UserError):
            toolkit.find_gpu()
            pytest.skip("this machine has a GPU")
    fails((call if "cuda" in flags else call_here)(contest, *TRAIN, *flags), *said)


def test_a_run_without_weights_or_network_says_where_they_come_from(contest):
    done = call(contest, "train.py", "--data", ".", "--weights", "empty", https_proxy="http://127.0.0.1:9")
    fails(done, "ViT-B-32.pt", "SHA-256", "empty")


@pytest.mark.parametrize("flags, said", [
    (["--run", "absent"], ["--run absent: no finished run"]),
    (["--runs", "absent"], ["train.py makes one"]),
    (["--split", "B"], ["cannot answer --split B"]),
    (["--split", "val"], ["no folder", "val"]),
    (["--data", "absent"], ["no folder absent"]),
])
def test_mistakes_of_test(contest, trained, flags, said):
    fails(call_here(contest, "test.py", *([] if "--runs" in flags else ["--run", trained]), *flags), *said)


def test_another_data_set_is_refused(contest, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(contest, other, ignore=shutil.ignore_patterns("runs"))
    (other / "classes.txt").write_text((other / "classes.txt").read_text().replace("Cat_a", "Cat_z"))
    fails(call_here(contest, "test.py", "--run", trained, "--data", other), "learned 6 classes", "train again")


def test_a_failed_test_leaves_the_old_result_alone(contest, trained):
    (contest / "kept.txt").write_text("old\n")
    fails(call_here(contest, "test.py", "--run", trained, "--split", "B", "--result", "kept.txt"))
    assert (contest / "kept.txt").read_text() == "old\n"


def test_an_unknown_flag_and_command(contest):
    assert call_here(contest, "train.py", "--shotz", "3").returncode == 2
    fails(call_here(contest, "jclip_fewshot", "docto"), "no command 'docto'")


def test_without_a_command_the_three_starts_are_shown(contest):
    for flags in ([], ["-h"]):
        done = call_here(contest, "jclip_fewshot", *flags)
        assert done.returncode == 0
        for words in ("the contest", "your own pictures", "FewShotClassifier", "train --demo", "doctor"):
            assert words in done.stdout


def test_doctor_looks_at_every_encoder(contest):
    done = call_here(contest, "jclip_fewshot", "doctor", "--data", ".", "--model", "ViT-B/32", "--model", "RN50")
    assert done.returncode == 2 and "ViT-B/32 is not in" in done.stdout and "RN50 is not in" in done.stdout


def test_doctor_says_the_next_command_with_its_data(tmp_path, monkeypatch, capsys):
    from jclip_fewshot.cli import doctor
    from jclip_fewshot.config import DoctorConfig
    monkeypatch.setattr(doctor, "_checkpoint", lambda *_: "")
    monkeypatch.setattr(doctor, "_data", lambda *_: "")
    for program, said in (("/usr/bin/jclip-fewshot", "ready: jclip-fewshot train --data 'mine too', then "
                           "jclip-fewshot test"),
                          ("train.py", "ready: python train.py --data 'mine too', then python test.py")):
        monkeypatch.setattr(sys, "argv", [program])
        monkeypatch.setenv("COLUMNS", "200")
        assert doctor.report(DoctorConfig(data="mine too", device="cpu")) == 0
        assert capsys.readouterr().out.splitlines()[-1] == said


def test_doctor_says_what_to_do(contest):
    done = call_here(contest, "jclip_fewshot", "doctor", "--data", ".", "--weights", "empty")
    assert done.returncode == 2 and "✗ checkpoint" in done.stdout and "✓ data set" in done.stdout
    assert "ViT-B-32.pt" in done.stdout


def test_evaluate_and_compare(contest, tmp_path):
    small_suite(tmp_path / "s.npz")
    line = ("jclip_fewshot", "evaluate", "--suite", "s.npz", "--methods", "tip_adapter", "--json", "a.json")
    done = call_here(tmp_path, *line)
    assert done.returncode == 0 and "± 95 %" in done.stdout, done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["suite"] == "s"
    done = call_here(tmp_path, *line, "--compare", "a.json")
    assert done.returncode == 0 and "wins" in done.stdout
    fails(call_here(tmp_path, "jclip_fewshot", "evaluate", "--suite", "absent.npz"), "absent.npz", "missing")
    tasks = (*line[:-1], "t.json", "--tasks", "4", "--task-classes", "2")
    assert call_here(tmp_path, *tasks).returncode == 0
    done = call_here(tmp_path, *tasks, "--compare", "t.json")
    assert done.returncode == 0 and "difference" in done.stdout and "± 95 %" in done.stdout, done.stderr
    done = call_here(tmp_path, *line[:-2], "--shots", "2", "--seeds", "3", "--json", "seeds.json")
    assert done.returncode == 0 and "3 seeds" in done.stdout, done.stderr
    found = json.loads((tmp_path / "seeds.json").read_text())["top1_by_seed"]
    assert all(len(values) == 3 for values in found.values()) and len(set(found["tip_adapter"])) > 1
    fails(call_here(tmp_path, *line, "--shots", "8"), "fewer than --shots 8; the most that all have is 3")
    fails(call_here(tmp_path, *line, "--seeds", "2", "--compare", "a.json"), "leave --seeds out")


def test_validate_scores_held_out_images(contest, trained):
    done = call_here(contest, "jclip_fewshot", "validate", "--data", ".", "--features", "features.npz", "--shots",
                     "1,2", "--seeds", "2", "--per-class", "3", "--methods", "tip_adapter", "--name", "local")
    assert done.returncode == 0, done.stderr
    assert " held-out images" in done.stdout and "±" in done.stdout
    saved = json.loads((contest / "runs/local/validate.json").read_text())
    assert len(saved["curve"]["2"]["ensemble"]["top1"]) == 2
    done = call_here(contest, "jclip_fewshot", "validate", "--run", "base", "--seeds", "1", "--shots", "2", "--name",
                "as-base")
    assert done.returncode == 0 and "Settings of runs/base, but --shots 2 --seeds 1" in done.stderr, done.stderr
    config = json.loads((contest / "runs/as-base/validate.json").read_text())["config"]
    assert (config["methods"], config["features"], config["shots"]) == ("tip_adapter,gda", ["features.npz"], "2")
    fails(call_here(contest, "jclip_fewshot", "validate", "--data", ".", "--features", "features.npz", "--shots",
                    "six"), "--shots")


def test_genuine_photographs(shared, tmp_path):
    """240 test photographs of 30 classes, features of OpenAI's ViT-B/32: at least 94 % (zero-shot 92.5)."""
    photos, scores = shared / "photos", []
    for seed in range(2):
        done = call(tmp_path, "train.py", "--data", photos, "--features", photos / "features_vitb32.npz",
                    "--seed", seed, "--methods", "zero_shot,tip_adapter", "--name", f"seed{seed}", "--quiet")
        assert done.returncode == 0, done.stderr
        done = call(tmp_path, "test.py", "--run", f"runs/seed{seed}", "--quiet")
        assert done.returncode == 0, done.stderr
        scores.append(json.loads((tmp_path / f"runs/seed{seed}/test_A.json").read_text())["scores"]["ensemble"]["top1"])
    assert len((tmp_path / "result.txt").read_text().splitlines()) == 240
    assert np.mean(scores) >= 94, scores


def test_a_run_is_repeated_byte_for_byte(contest, trained):
    done = call(contest, "train.py", "--from-run", trained, "--name", "again", "--quiet")
    assert done.returncode == 0, done.stderr
    for run, result in ((trained, "first.txt"), ("runs/again", "second.txt")):
        assert call(contest, "test.py", "--run", run, "--result", result, "--quiet").returncode == 0
    assert (contest / "first.txt").read_bytes() == (contest / "second.txt").read_bytes()
    assert (contest / "runs/again/shots.txt").read_text() == (trained / "shots.txt").read_text()
    fails(call_here(contest, "train.py", "--from-run", "absent"), "--from-run absent")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The demo contest, a few of its test images, one cut short, one empty, one that is no image."""
    folder = tmp_path_factory.mktemp("drawn")
    root, _ = demo.prepare(folder / "data")
    tests = sorted((root / "TestSetA").iterdir())
    for path in tests[24:]:
        path.unlink()
    (root / "labels_TestSetA.txt").unlink()
    tests[3].write_bytes(tests[3].read_bytes()[:200])
    tests[5].write_bytes(b"")
    tests[7].write_text("no image")
    return folder, sorted(path.name for path in (tests[3], tests[5], tests[7]))


ENCODE = ("train.py", "--data", "data", "--model", demo.CHECKPOINT, "--methods", "tip_adapter", "--augment", "0")


def test_broken_test_images_are_named_and_answered(drawn):
    folder, broken = drawn
    assert call(folder, *ENCODE, "--name", "base").returncode == 0
    done = call(folder, "test.py", "--run", "runs/base", "--quiet")
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 3 and all(any(name in line for line in warned) for name in broken)
    assert sorted(json.loads((folder / "runs/base/test_A.json").read_text())["unreadable"]) == broken
    assert len((folder / "result.txt").read_text().splitlines()) == 24
    assert call_here(folder, "jclip_fewshot", "check", "result.txt", "--data", "data").returncode == 0


def test_a_test_set_without_one_readable_image_is_refused(drawn):
    folder, _ = drawn
    assert call(folder, *ENCODE, "--name", "unread").returncode == 0
    shutil.copytree(folder / "data", folder / "broken")
    for path in (folder / "broken/TestSetA").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    (folder / "result.txt").write_text("an older result")
    fails(call(folder, "test.py", "--run", "runs/unread", "--data", "broken"),
          "none of the 24 images can be read", "TestSetA")
    assert (folder / "result.txt").read_text() == "an older result"


def test_a_broken_training_image_stops_unless_it_may_be_skipped(drawn):
    folder, _ = drawn
    shot = (folder / "runs/base/shots.txt").read_text().split()[0]
    whole = (folder / "data" / shot).read_bytes()
    (folder / "data" / shot).write_bytes(whole[:300])
    try:
        fails(call(folder, *ENCODE, "--name", "broken"), shot, "--skip-bad")
        done = call(folder, *ENCODE, "--name", "skipped", "--skip-bad")
        assert done.returncode == 0 and f"warning: training image {shot}" in done.stderr
        assert shot not in (folder / "runs/skipped/shots.txt").read_text()
    finally:
        (folder / "data" / shot).write_bytes(whole)


def test_ctrl_c_says_so_and_leaves_no_half_run(drawn):
    folder, _ = drawn
    line = [sys.executable, str(ROOT / ENCODE[0]), *map(str, ENCODE[1:]), "--augment", "40", "--name", "stopped"]
    child = subprocess.Popen(line, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
                             universal_newlines=True, preexec_fn=hear_ctrl_c)
    for said in child.stderr:
        if "-wide features" in said:  # encoding has begun
            break
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "stopped" in said and "Traceback" not in said
    assert not (folder / "runs/stopped/record.json").exists()


def test_representative_shots_are_chosen_from_a_pool(drawn):
    folder, _ = drawn
    done = call(folder, *ENCODE, "--select", "representative", "--pool", "8", "--name", "chosen")
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "runs/chosen/record.json").read_text())
    assert record["shots"]["rule"].startswith("representative") and len(record["shots"]["files"]) == 72 * 4
    assert record["shots"]["files"] != [path for path, _ in choose_shots(read_data_set(folder / "data"))]


def test_the_whole_demo(tmp_path):
    """make demo's two commands with a few of the heads; the parts are told apart by their scores."""
    assert call(tmp_path, "train.py", "--demo", "--methods", "tip_adapter,gda,proker", "--augment", "2").returncode == 0
    done = call(tmp_path, "test.py", "--demo")
    assert done.returncode == 0, done.stderr
    scores = json.loads(next((tmp_path / "runs").glob("*/test_A.json")).read_text())["scores"]
    assert 35 < scores["zero_shot"]["top1"] < scores["tip_adapter"]["top1"] < scores["ensemble"]["top1"] < 95
    assert len((tmp_path / "demo/result.txt").read_text().splitlines()) >= 600
    assert not (tmp_path / "result.txt").exists()
    assert "report: " in done.stdout and next((tmp_path / "runs").glob("*/report/index.html")).stat().st_size > 1e5
