"""Run folders: written whole, read back, mistakes named."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jclip_fewshot import runs
from jclip_fewshot.config import TrainConfig
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import load_arrays, save_arrays

from .storage.samples import RECORD, changed


def finished(folder, name, demo=False, **record):
    run = runs.new_run(folder, name, "A")
    runs.save_record(run, {**changed(RECORD, "config", "demo", demo), **record})
    return run


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


def test_records_hold_numpy_values(tmp_path):
    run = finished(tmp_path, "one", score=np.float32(0.5), ids=np.arange(2))
    assert runs.load_record(run)["score"] == 0.5
    assert json.loads((run / runs.RECORD).read_text())["ids"] == [0, 1]


def test_the_newest_finished_run_of_its_kind_is_found(tmp_path):
    first = finished(tmp_path, "first")
    time.sleep(0.05)
    demo = finished(tmp_path, "demo", demo=True)
    runs.new_run(tmp_path, "unfinished", "A")
    assert runs.find_run("", tmp_path) == first
    assert runs.find_run("", tmp_path, demo=True) == demo
    assert runs.find_run(demo, "elsewhere") == demo


def test_a_broken_run_does_not_hide_the_good_one(tmp_path, capsys):
    good = finished(tmp_path, "good")
    time.sleep(0.05)
    for name, content in [("cut", "{"), ("odd", json.dumps(changed(RECORD, "config", None))), ("deep", "[" * 99_999)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.RECORD).write_text(content)
    assert runs.find_run("", tmp_path) == good
    assert capsys.readouterr().err.count("looking at the run before it") == 3


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="python train.py --demo makes one"):
        runs.find_run("", tmp_path, demo=True)
    with pytest.raises(UserError, match="no finished run there"):
        runs.find_run(tmp_path, tmp_path)
    with pytest.raises(UserError, match="plain name"):
        runs.new_run(tmp_path, "../outside", "A")


def test_a_broken_record_is_named(tmp_path):
    run = finished(tmp_path, "one")
    (run / runs.RECORD).write_text("{")
    with pytest.raises(UserError, match="record.json: not JSON"):
        runs.load_record(run)


def test_a_run_of_other_classes_is_refused(tmp_path):
    runs.require_same_classes(tmp_path, {"classes": ["a", "b"]}, ["a", "b"])
    with pytest.raises(UserError, match="learned 2 classes that are not the 3"):
        runs.require_same_classes(tmp_path, {"classes": ["a", "b"]}, ["a", "b", "c"])


def test_stopwatch_counts_each_stage():
    watch = runs.Stopwatch()
    time.sleep(0.02)
    watch.lap("sleep")
    watch.lap("nothing")
    assert watch.seconds["sleep"] > 0.015 > watch.seconds["nothing"] >= 0


def test_the_command_is_a_line_that_a_shell_runs(monkeypatch):
    module = str(Path(runs.__file__).with_name("__main__.py"))
    monkeypatch.setattr(sys, "argv", [module, "report", "--out", "a b", "--help"])
    line = runs.command_line()
    assert line.endswith(" -m jclip_fewshot report --out 'a b' --help")
    done = subprocess.run(line, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "usage: python -m jclip_fewshot report" in done.stdout
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "a b"])
    assert runs.command_line().endswith("python train.py --data 'a b'")
    assert runs.next_command("test") == "python test.py"
    monkeypatch.setattr(sys, "argv", ["../a b/train.py"])
    assert runs.next_command("test") == "python '../a b/test.py'"
    for program in ("python -m jclip_fewshot", "jclip-fewshot"):  # as the command table names its scripts
        monkeypatch.setattr(sys, "argv", [f"{program} train", "--data", "a b"])
        assert runs.command_line().endswith(f"{program.replace('python ', '')} train --data 'a b'")
        assert "'python" not in runs.command_line() and runs.next_command("test") == f"{program} test"
    assert runs.runs_flag("runs") == "" and runs.runs_flag("my runs") == " --runs 'my runs'"


def test_the_commit_of_a_checkout_is_read_from_its_files(tmp_path):
    commit, git = "0123456789abcdef0123456789abcdef01234567", tmp_path / "one/.git"
    assert runs.git_commit(tmp_path / "one") == "absent"
    git.mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert runs.git_commit(tmp_path / "one") == "absent"
    (git / "packed-refs").write_text(f"# pack-refs\n{'0' * 40} refs/heads/other\n{commit} refs/heads/main\n")
    assert runs.git_commit(tmp_path / "one") == commit
    (git / "refs/heads").mkdir(parents=True)
    (git / "refs/heads/main").write_text("f" * 40 + "\n")
    assert runs.git_commit(tmp_path / "one") == "f" * 40
    tree = git / "worktrees/two"
    tree.mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/.git").write_text(f"gitdir: {tree}\n")
    (tree / "commondir").write_text("../..\n")
    (tree / "HEAD").write_text("ref: refs/heads/main\n")
    assert runs.git_commit(tmp_path / "two") == "f" * 40
    (tree / "HEAD").write_text(commit + "\n")
    assert runs.git_commit(tmp_path / "two") == commit


def trained(folder, name="", **config):
    record = changed(RECORD, "config", "demo", False)
    record = {**record, "config": {**record["config"], **config}}
    return runs.save_run(folder, name, "A", [("a/1.jpg", 0)], {"x": np.zeros(3)}, record)


def test_runs_that_end_in_the_same_second_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: trained(tmp_path), range(24)))
    assert len(set(folders)) == 24 and all((folder / runs.MODEL).is_file() for folder in folders)


def test_a_name_used_twice_leaves_no_answers_of_the_older_run(tmp_path, capsys):
    folder = trained(tmp_path, "base")
    assert capsys.readouterr().err == ""
    runs.save_test(folder, "A", {"scores": {}}, {"probs": np.zeros(3)})
    for name in ("result.txt", "result.zip", "notes.txt"):
        (folder / name).write_text("old")
    (folder / "report").mkdir()
    (folder / "report/index.html").write_text("old")
    assert trained(tmp_path, "base") == folder
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "test_A.json" in said[0] and "removed" in said[0]
    assert sorted(path.name for path in folder.iterdir()) == ["model.npz", "notes.txt", "record.json",
                                                              "shots.txt"]


def test_a_run_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    def full(path, record):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(runs, "save_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        trained(tmp_path, "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 300, "a\nb", "a\0b", " a"])
def test_names_that_are_no_folder(tmp_path, name):
    with pytest.raises(UserError, match="--name .*plain name"):
        runs.require_new_run(tmp_path, name)


def test_runs_on_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--runs .*file"):
        runs.require_new_run(tmp_path / "file", "")


def test_given_flags_win_over_the_repeated_run_and_are_listed(tmp_path, capsys):
    record = {**changed(RECORD, "config", "demo", False),
              "config": vars(TrainConfig(heads="tip_adapter", seed=3, shots=2, data=str(tmp_path)))}
    folder = runs.save_run(tmp_path, "base", "A", [("a/1.jpg", 0)], {}, record)
    settings = TrainConfig(from_run=str(folder))
    same = runs.repeated(settings, {"from_run": str(folder)})
    assert (same.heads, same.seed, same.shot_list) == ("tip_adapter", 3, str(folder / "shots.txt"))
    assert capsys.readouterr().err == ""
    other = runs.repeated(settings, {"from_run": str(folder), "heads": "gda"})
    assert (other.heads, other.seed, other.shot_list) == ("gda", 3, str(folder / "shots.txt"))
    assert "but --heads gda" in capsys.readouterr().err
    drawn = runs.repeated(settings, {"from_run": str(folder), "shots": 8})
    assert (drawn.shots, drawn.shot_list, drawn.heads) == (8, "", "tip_adapter")  # drawn anew, or 8 would be ignored


def test_a_repeated_run_takes_the_precision_and_the_members_that_auto_took_then(tmp_path):
    config = vars(TrainConfig(data=str(tmp_path)))
    encoder = {"model": "m", "weights": "w", "weights_digest": "d", "precision": "bfloat16"}
    record = {**RECORD, "config": config, "encoder": encoder,
              "settings": {"gda": {}, "last_block": {"in_ensemble": False}, "token_gda": {"in_ensemble": True}}}
    folder = runs.save_run(tmp_path, "base", "A", [("a/1.jpg", 0)], {}, record)
    same = runs.repeated(TrainConfig(from_run=str(folder)), {"from_run": str(folder)})
    assert (same.precision, same.tune) == ("bfloat16", "last_block,token_gda")
    given = {"from_run": str(folder), "precision": "float32", "seed": 2}
    other = runs.repeated(TrainConfig(**given), given)
    assert (other.precision, other.tune) == ("float32", "auto")  # of other shots the members may be others
    plain = runs.save_run(tmp_path, "plain", "A", [("a/1.jpg", 0)], {}, {**record, "settings": {"gda": {}}})
    assert runs.repeated(TrainConfig(from_run=str(plain)), {"from_run": str(plain)}).tune == "off"


def test_what_a_run_names_is_found_where_it_lies_now(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for place in (old / "weights", old / "data"):
        place.mkdir(parents=True)
    (old / "weights/clip.pt").write_text("")
    monkeypatch.chdir(old)
    folder = trained("runs", "base")
    record = runs.load_record(folder)
    assert runs.where_now(folder, record, "data") == "data"
    old.rename(new)
    monkeypatch.chdir(tmp_path)
    folder = Path("new/runs/base")
    assert Path(runs.where_now(folder, record, "data")).samefile(new / "data")
    assert Path(runs.where_now(folder, record, str(old / "weights/clip.pt"))).samefile(new / "weights/clip.pt")
    assert runs.where_now(folder, record, "ViT-B/32") == "ViT-B/32"


def test_flags_of_the_wrong_kind_of_source_are_refused(tmp_path):
    given = SimpleNamespace(model=(), weights="", features=("f.npz",), features_extra=())
    with pytest.raises(UserError, match="trained with the checkpoint ViT-B/32"):
        runs.sources_now(tmp_path, {"encoder": {"model": "ViT-B/32", "weights": "weights"}}, given)
    given = SimpleNamespace(model=("ViT-B/32",), weights="", features=(), features_extra=())
    with pytest.raises(UserError, match="trained with the feature file f.npz"):
        runs.sources_now(tmp_path, {"encoder": {"features": "f.npz"}}, given)


def test_the_demo_of_another_seed_is_another_kind(tmp_path):
    folder = runs.new_run(tmp_path, "seven", "A")
    record = changed(RECORD, "config", "demo", True)
    runs.save_record(folder, {**record, "config": {**record["config"], "demo_seed": 7}})
    assert runs.find_run("", tmp_path, True, 7) == folder
    with pytest.raises(UserError, match="python train.py --demo makes one"):
        runs.find_run("", tmp_path, True, 1)
