"""Run folders: written whole, never written over, opened again, mistakes named."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jclip_fewshot import run as runs
from jclip_fewshot.config import TestConfig, TrainConfig
from jclip_fewshot.data.data_set import TestSet
from jclip_fewshot.errors import UserError
from jclip_fewshot.records import Record
from jclip_fewshot.run import Run, repeated
from jclip_fewshot.storage.arrays import Field, load_arrays, save_arrays
from jclip_fewshot.storage.json_files import read_json

from .records import RECORD, TEST, as_record, changed


class Pipe:
    """Has a state to save."""

    def state(self):
        return {"x": np.zeros(3)}

    def report_arrays(self):
        return {}


def finished(folder, name="", record=RECORD, **config):
    """A run with these settings among its own."""
    folder.mkdir(exist_ok=True)
    record = as_record(Record, record, folder)
    record.config = replace(record.config, **config)
    return Run.create(folder, name, [("a/1.jpg", 0)], Pipe(), record)


def test_arrays_round_trip_with_the_same_bytes(tmp_path):
    arrays = {"b": np.arange(3), "a/x": np.eye(2, dtype=np.float32), "names": np.array(["gda", "tip"])}
    save_arrays(tmp_path / "a.npz", arrays)
    time.sleep(2.1)  # zip stamps have two seconds
    save_arrays(tmp_path / "b.npz", dict(reversed(list(arrays.items()))))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = load_arrays(tmp_path / "a.npz")
    assert set(loaded) == set(arrays) and all((loaded[name] == arrays[name]).all() for name in arrays)


def test_damaged_and_absent_arrays(tmp_path):
    save_arrays(tmp_path / "a.npz", {"x": np.zeros(1000)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("cut.npz", "text.npz"):
        with pytest.raises(UserError, match="cannot be read"):
            load_arrays(tmp_path / name)
    with pytest.raises(UserError, match="missing"):
        load_arrays(tmp_path / "absent.npz")


def test_a_run_is_opened_as_it_was_made(tmp_path):
    made = finished(tmp_path, "one")
    again = Run.open(tmp_path / "one")
    assert again == made and again.board == "A" and set(again.arrays()) == {"x"}
    assert sorted(path.name for path in again.folder.iterdir()) == ["model.npz", "record.json", "shots.txt"]


def test_the_newest_finished_run_of_its_kind_is_chosen(tmp_path):
    first = finished(tmp_path, "first")
    time.sleep(0.05)
    demo = finished(tmp_path, "demo", demo=True)
    (tmp_path / "unfinished").mkdir()
    assert Run.chosen("", tmp_path).folder == first.folder
    assert Run.chosen("", tmp_path, demo=True).folder == demo.folder
    assert Run.chosen(demo.folder, "elsewhere").folder == demo.folder


def test_runs_of_both_boards_are_told_apart_or_refused(tmp_path):
    a = finished(tmp_path, "a")
    time.sleep(0.05)
    b = finished(tmp_path, "b", board="B")
    with pytest.raises(UserError, match=r"both boards: .*--split A \(.*a\) or --split B \(.*b\)"):
        Run.chosen("", tmp_path)
    assert Run.chosen("", tmp_path, split="A").folder == a.folder
    assert Run.chosen("", tmp_path, split="B").folder == b.folder
    contest = SimpleNamespace(plain=False, class_names=["Cat_a", "Dog_b"])
    for run, own in ((a, "A"), (b, "B")):
        for split in ("", own, "val"):
            run.require_fit(contest, split)
    for run, other in ((a, "B"), (b, "A")):
        with pytest.raises(UserError, match=f"cannot answer --split {other}: .*train.py --board {other}"):
            run.require_fit(contest, other)


def test_a_broken_run_does_not_hide_the_good_one(tmp_path, capsys):
    good = finished(tmp_path, "good")
    time.sleep(0.05)
    for name, content in [("cut", "{"), ("odd", json.dumps(changed(RECORD, "config", None))), ("deep", "[" * 99_999)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.RECORD).write_text(content)
    assert Run.chosen("", tmp_path) == good
    assert capsys.readouterr().err.count("left out") == 3


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="python train.py --demo makes one"):
        Run.chosen("", tmp_path, demo=True)
    for given, flags in (((False, 1), ""), ((True, 7), " --demo-seed 7"), ((False, 1, "B"), " --board B")):
        with pytest.raises(UserError, match=f"python train.py{flags} makes one"):
            Run.chosen("", tmp_path, *given)
    with pytest.raises(UserError, match="--run .*no finished run there"):
        Run.open(tmp_path)
    finished(tmp_path, "seven", demo=True, demo_seed=7)
    assert Run.chosen("", tmp_path, True, 7).folder.name == "seven"
    with pytest.raises(UserError, match="python train.py --demo makes one"):
        Run.chosen("", tmp_path, True, 1)


def test_a_run_of_other_classes_is_refused(tmp_path):
    run = finished(tmp_path)
    run.require_fit(SimpleNamespace(plain=False, class_names=["Cat_a", "Dog_b"]))
    with pytest.raises(UserError, match="learned 2 classes that are not the 3"):
        run.require_fit(SimpleNamespace(plain=False, class_names=["a", "b", "c"]))


def test_a_run_of_an_earlier_version_says_how_to_train_it_again(tmp_path):
    run = finished(tmp_path, "old")
    save_arrays(run.folder / "model.npz", {"names": np.array(["gda"]), "heads/gda/b_": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="earlier version .* --from-run .*old trains it again"):
        Run.open(run.folder).pipeline  # noqa: B018  reads it


def test_runs_that_end_in_the_same_second_get_a_folder_each(tmp_path):
    run = finished(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Run.create(tmp_path, "", [], Pipe(), run.record), range(24)))
    assert len({one.folder for one in made}) == 24 and all((one.folder / runs.MODEL).is_file() for one in made)


def test_a_folder_that_exists_is_never_written_over(tmp_path):
    (tmp_path / "mine/report").mkdir(parents=True)
    for name in ("result.txt", "validate.json", "report/index.html"):
        (tmp_path / "mine" / name).write_text("mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    finished(tmp_path, "base")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("mine", "file", "link", "base"):
        with pytest.raises(UserError, match=f"--name {name}: .* exists"):
            finished(tmp_path, name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    finished(tmp_path, "empty")


def test_a_dangling_link_as_the_folder_of_runs_is_found_before_the_work(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "unplugged/disk")
    for name in ("", "one"):
        with pytest.raises(UserError, match="--runs .*leads to nothing"):
            runs.require_new(tmp_path / "runs", name)
        with pytest.raises(UserError, match="--runs .*leads to nothing"):
            runs.new_folder(tmp_path / "runs", name, "A")


def test_a_run_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    def full(path, record):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(OSError, match="No space left on device"):  # the command line says it, and what to do
        finished(tmp_path, "base")
    assert not (tmp_path / "base").exists()

    def full_beside_another(path, record):
        path.with_name("another.txt").write_text("of another process")
        full(path, record)
    monkeypatch.setattr(runs, "write_json", full_beside_another)
    with pytest.raises(OSError, match="No space left on device"):
        finished(tmp_path, "base")
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["another.txt"]


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 300, "a\nb", "a\0b", " a"])
def test_names_that_are_no_folder(tmp_path, name):
    with pytest.raises(UserError, match="--name .*plain name"):
        runs.require_new(tmp_path, name)


def test_names_that_become_folders(tmp_path):
    for name in ("A", "B", "test", "val-2", "一"):
        runs.require_new(tmp_path, name)
    for name in (".", "..", "a/b", "..\\x", "a\nb", "a:b", " a", "x" * 101, "a\0", "\udc80"):
        with pytest.raises(UserError, match="plain name"):
            runs.require_new(tmp_path, name)


def test_runs_on_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--runs .*file"):
        runs.require_new(tmp_path / "file", "")


def test_the_answers_to_a_test_set_are_read_back(tmp_path):
    run = finished(tmp_path, "one")
    with pytest.raises(UserError, match="has not answered test set A: python test.py --run .*--split A does"):
        run.tested("A")
    run.save_test("A", as_record(runs.TestRecord, TEST, tmp_path), {"best": [[0], [1]]})
    assert run.splits() == ["A"] and run.tested("A").images == 2
    assert run.answers("A", {"best": Field("whole", "N T")})["best"].tolist() == [[0], [1]]


def test_the_submission_and_its_copy(tmp_path, capsys):
    run, result = finished(tmp_path / "runs", "one"), tmp_path / "result.txt"
    names = ["image_2.jpg", "image_1.jpg"]
    for best in (np.array([[0, 1], [1, 0]]), np.array([[1, 0], [1, 0]])):
        archive = run.save_answers(result, "A", True, TestSet(tmp_path, names, names), best, np.array([0.9, 0.8]))
        assert archive == tmp_path / "result.zip"
        assert (run.folder / "result.txt").read_bytes() == result.read_bytes()
    assert result.read_text() == "image_1.jpg 1 0\nimage_2.jpg 1 0\n" and capsys.readouterr().err == ""
    named = "image,class1,class2\nimage_2.jpg,Dog_b,Cat_a\nimage_1.jpg,Dog_b,Cat_a\n"
    assert (tmp_path / "result_names.csv").read_text() == named == (run.folder / "result_names.csv").read_text()
    result.write_text("somebody else's")
    run.save_answers(result, "val", False, TestSet(tmp_path, names[1:], names[1:]), np.array([[0, 1]]), np.ones(1))
    assert (tmp_path / "result.previous.txt").read_text() == "somebody else's"
    assert "is moved to" in capsys.readouterr().err
    assert (run.folder / "result_val.txt").read_bytes() == result.read_bytes()


def test_given_flags_win_over_the_repeated_run_and_are_listed(tmp_path, capsys):
    record = {**RECORD, "settings": {"tip_adapter": {}, "ensemble": {}}}
    folder = str(finished(tmp_path, "base", record, methods="tip_adapter", seed=3, shots=2, data=str(tmp_path)).folder)
    settings = TrainConfig(from_run=folder)
    same = repeated(settings, {"from_run": folder})
    assert (same.methods, same.seed, same.shot_list) == ("tip_adapter", 3, f"{folder}/shots.txt")
    assert capsys.readouterr().err == ""
    other = repeated(settings, {"from_run": folder, "methods": "gda"})
    assert (other.methods, other.seed, other.shot_list) == ("gda", 3, f"{folder}/shots.txt")
    assert "but --methods gda" in capsys.readouterr().err
    drawn = repeated(settings, {"from_run": folder, "shots": 8})
    assert (drawn.shots, drawn.shot_list, drawn.methods) == (8, "", "tip_adapter")  # drawn anew, or 8 would be ignored


def test_a_repeated_run_takes_the_precision_and_the_methods_that_auto_took_then(tmp_path):
    record = {**RECORD, "encoder": {**RECORD["encoder"], "precision": "bfloat16"},
              "settings": {"zero_shot@a": {}, "zero_shot@b": {}, "gda@a": {}, "last_block": {}, "ensemble": {}}}
    folder = str(finished(tmp_path, "base", record, data=str(tmp_path), methods="auto").folder)
    same = repeated(TrainConfig(from_run=folder), {"from_run": folder})
    assert (same.precision, same.methods) == ("bfloat16", "zero_shot,gda,last_block")
    given = {"from_run": folder, "precision": "float32", "seed": 2}
    other = repeated(TrainConfig(**given), given)
    assert (other.precision, other.methods) == ("float32", "auto")  # of other shots the methods may be others


def test_what_a_run_names_is_found_where_it_lies_now(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for place in (old / "weights", old / "data"):
        place.mkdir(parents=True)
    (old / "weights/clip.pt").write_text("")
    monkeypatch.chdir(old)
    run = finished(Path("runs"), "base", {**RECORD, "folder": str(old)})
    assert run.where("data") == "data"
    old.rename(new)
    monkeypatch.chdir(tmp_path)
    run = Run.open("new/runs/base")
    assert Path(run.where("data")).samefile(new / "data")
    assert Path(run.where(str(old / "weights/clip.pt"))).samefile(new / "weights/clip.pt")
    assert run.where("ViT-B/32") == "ViT-B/32"


def test_flags_of_the_wrong_kind_of_source_are_refused(tmp_path):
    clip = finished(tmp_path, "clip")
    table = finished(tmp_path, "table", changed(RECORD, "encoder", {"features": "f.npz"}))
    for run, given, said in [
            (clip, {"features": ("f.npz",)}, "--features: 1 given, but .*none such, but --model"),
            (clip, {"model": ("a", "b")}, r"--model: 2 given, but .*1 such \(ViT-B/32\)"),
            (clip, {"features_extra": ("a",)}, "--features-extra: 1 given"),
            (table, {"model": ("ViT-B/32",)}, "--model: 1 given, but .*none such, but --features"),
            (table, {"weights": "w"}, "--weights: .*feature files alone")]:
        with pytest.raises(UserError, match=said):
            run.where_sources(TestConfig(**given))
    assert clip.where_sources(TestConfig(model=("x.pt",), weights="w")) == [("x.pt", "w")]
    assert table.where_sources(SimpleNamespace(model=(), weights="", features=())) == [("f.npz", "")]


def test_the_record_is_plain_json(tmp_path):
    record = json.loads((finished(tmp_path, "one").folder / "record.json").read_text())
    assert record["config"]["data"] == "Dataset" and record["shots"]["labels"] == [0, 1]
    assert read_json(tmp_path / "one/record.json", Record).config.shots == 2
