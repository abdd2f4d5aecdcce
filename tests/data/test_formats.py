"""Every format of a data set: what is recognised, read, refused, and that all of them say the same."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from jclip_fewshot import config
from jclip_fewshot.data import prompts
from jclip_fewshot.data.data_set import HELD_OUT, UNKNOWN
from jclip_fewshot.data.formats import FORMATS, read_data_set, recognised
from jclip_fewshot.data.shots import choose_shots, read_shot_list
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods.rows.gda import GDA
from jclip_fewshot.task import Task, domain_indices
from tests.conftest import ROOT
from tests.data import layouts
from tests.small_contest import small_contest


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def fails_with(*parts):
    return pytest.raises(UserError, match=".*".join(parts))


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    """Three classes, four training and two test images each."""
    root = tmp_path_factory.mktemp("contest")
    names = ["barrel", "cellphone", "sea_horse"]
    train = [(f"TrainSet/{name}/{number}.jpg", label) for label, name in enumerate(names) for number in range(4)]
    test = [(f"image_{number}.jpg", number % 3) for number in range(6)]
    put(root, *(path for path, _ in train), *(f"TestSetA/{path}" for path, _ in test))
    for file, rows in (("classes.txt", [(name, label) for label, name in enumerate(names)]), ("train.txt", train),
                       ("labels_TestSetA.txt", test)):
        (root / file).write_text("".join(f"{text} {label}\n" for text, label in rows))
    return root


def described(data, now):
    """What a data set says, paths and classes by what they are called in the contest's layout."""
    before = {path: old for old, path in now.items()}
    test = data.split()
    return ({(before[path], data.class_names[label]) for path, label in data.train},
            {before[path]: data.class_names[test.labels[name]] for path, name in zip(test.files, test.names)})


@pytest.mark.parametrize("kind", layouts.KINDS)
def test_every_format_says_the_same(contest, tmp_path, kind):
    now = layouts.make(kind, contest, tmp_path / "data")
    data = read_data_set(tmp_path / "data")
    assert data.format == layouts.KINDS[kind] == recognised(tmp_path / "data")[0]
    assert sorted(data.class_names) == ["barrel", "cellphone", "sea_horse"]
    train, test = layouts.rows_of(contest)
    assert described(data, now) == (set(train), dict(test))
    assert data.summary().startswith(f"{data.format} of 3 classes: barrel (4)")
    assert [label for _, label in choose_shots(data, 2)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", layouts.KINDS)
def test_real_photographs_in_every_format(shared, tmp_path, kind):
    now = layouts.make(kind, shared / "photos", tmp_path / "data")
    data, train_and_test = read_data_set(tmp_path / "data"), layouts.rows_of(shared / "photos")
    assert described(data, now) == (set(train_and_test[0]), dict(train_and_test[1]))
    assert len(data.class_names) == 30 and data.domains == ["Caltech-101"] * 30


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return small_contest(tmp_path_factory.mktemp("demo")) / "data"


@pytest.mark.parametrize("kind", layouts.KINDS)
def test_the_drawn_contest_in_every_format(demo, tmp_path, kind):
    now = layouts.make(kind, demo, tmp_path / "data")
    data, train_and_test = read_data_set(tmp_path / "data"), layouts.rows_of(demo)
    assert described(data, now) == (set(train_and_test[0]), dict(train_and_test[1]))
    domains = dict(zip(data.class_names, data.domains))
    assert domains == dict(zip(read_data_set(demo).class_names, read_data_set(demo).domains))


def answers(data, features, now):
    """{image before: its class's name} by heads that need no training, from the photographs' rows; all six shots."""
    rows = dict(zip(features["path"].tolist(), features["feature"]))
    before = {path: old for old, path in now.items()}
    order = [features["classes"].tolist().index(name) for name in data.class_names]
    shots, tests = choose_shots(data, 6), data.split()
    task = Task(np.stack([rows[before[path]] for path, _ in shots]), [label for _, label in shots],
                features["text"][order], domain_indices(data.domains))
    found = GDA().fit(task).logits(np.stack([rows[before[path]] for path in tests.files]))
    return {before[path]: data.class_names[best] for path, best in zip(tests.files, found.argmax(axis=1))}


def test_the_same_answers_whatever_the_format(shared, tmp_path):
    root = shared / "photos"
    features = np.load(root / "features_vitb32.npz")
    data = read_data_set(root)
    expected = answers(data, features, {path: path for path in features["path"].tolist()})
    truth = dict(layouts.rows_of(root)[1])
    assert np.mean([expected[path] == name for path, name in truth.items()]) > 0.9
    for kind in ("tree", "kaggle csv", "coop"):
        now = layouts.make(kind, root, tmp_path / kind)
        assert answers(read_data_set(tmp_path / kind), features, now) == expected, kind


def test_a_tree_without_a_test_set_holds_the_rest_out(contest, tmp_path):
    layouts.make("single tree", contest, tmp_path)
    data = read_data_set(tmp_path)
    assert data.default_split == HELD_OUT and "no test set" in data.summary()
    shots = choose_shots(data, 2, seed=3)
    rest = data.split(used=[path for path, _ in shots])
    assert sorted([*rest.files, *(path for path, _ in shots)]) == sorted(path for path, _ in data.train)
    assert rest.labels == {path: label for path, label in data.train if (path, label) not in shots}
    assert "12 labelled images that are no shots" in rest.notes[0]
    with fails_with("every labelled image is a shot"):
        data.split(used=[path for path, _ in data.train])


def test_two_formats_that_fit_alike_are_asked_for(contest, tmp_path):
    now = layouts.make("tree", contest, tmp_path)
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{now[path]},{name}\n" for path, name
                                                                in layouts.rows_of(contest)[0]))
    with fails_with("may be read in two ways, as table .*train.csv.* or tree .*choose with --format table or tree"):
        read_data_set(tmp_path)
    assert read_data_set(tmp_path, format="tree").train == read_data_set(tmp_path, format="table").train


def test_folders_that_systems_leave_are_no_classes(tmp_path):
    put(tmp_path, "train/dog/1.jpg", "train/cat/1.jpg", "train/dog/@eaDir/1.jpg", "train/@eaDir/a/1.jpg",
        "train/$RECYCLE.BIN/1.jpg", "train/lost+found/1.jpg", "train/__MACOSX/dog/1.jpg", "train/.thumbs/1.jpg",
        "$RECYCLE.BIN/1.jpg", "@eaDir/train/1.jpg")
    data = read_data_set(tmp_path)
    assert data.class_names == ["cat", "dog"] and len(data.train) == 2


def test_every_kind_of_image_is_one_for_every_command(tmp_path):
    for number, suffix in enumerate(("jpg", "JPEG", "jfif", "png", "webp", "bmp", "gif", "tif", "TIFF", "avif")):
        put(tmp_path, f"train/a/{number}.{suffix}", f"train/b/{number}.{suffix}", f"test/{number}.{suffix}")
    data = read_data_set(tmp_path)
    assert len(data.train) == 20 and len(data.split().names) == 10


def test_folders_inside_a_class_are_of_that_class(tmp_path):
    put(tmp_path, "train/dolphin/1.jpg", "train/dolphin/2023 summer/2.jpg", "train/seal/1.jpg",
        "test/dolphin/far/3.jpg", "test/seal/4.jpg")
    data = read_data_set(tmp_path)
    assert data.class_names == ["dolphin", "seal"] and data.train[1] == ("train/dolphin/2023 summer/2.jpg", 0)
    assert "1 image in folders inside class folders" in " ".join(data.notes)
    assert data.split().labels == {"dolphin/far/3.jpg": 0, "seal/4.jpg": 1}


@pytest.mark.parametrize("paths, classes, tests", [
    ([f"train/{name}/images/1.jpg" for name in ("n01", "n02")] + ["val/images/2.jpg"], ["n01", "n02"], ("val",)),
    ([f"CUB/images/{name}/1.jpg" for name in ("001.Crow", "002.Jay")] + ["CUB/parts/parts.txt"],
     ["001.Crow", "002.Jay"], ()),
    ([f"{name}/1.jpg" for name in ("bus", "car", "train")], ["bus", "car", "train"], ()),
    ([f"flowers/flowers/{name}/1.jpg" for name in ("daisy", "rose")] + ["notebook.ipynb"], ["daisy", "rose"], ()),
    ([f"data/train/{name}/1.jpg" for name in ("a", "b")] + ["src/a.py", "models/a.h5"], ["a", "b"], ()),
    ([f"{part}/{part}/{name}/1.jpg" for part in ("seg_train", "seg_test") for name in ("sea", "street")]
     + ["seg_pred/seg_pred/1.jpg"], ["sea", "street"], ("seg_test", "seg_pred")),
])
def test_trees_as_people_have_them(tmp_path, paths, classes, tests):
    put(tmp_path, *paths)
    if (tmp_path / "CUB").exists():
        (tmp_path / "CUB/classes.txt").write_text("1 001.Crow\n2 002.Jay\n")
    data = read_data_set(tmp_path)
    assert data.class_names == classes and data.splits == tests and data.domains == [""] * len(classes)
    assert all(data.split(name).names for name in tests)


@pytest.mark.parametrize("paths, words", [
    (["train/dolphin/2022/1.jpg", "train/seal/1.jpg"], "which folders are the classes"),
    ([f"train/{name}/{year}/1.jpg" for name in ("orca", "seal") for year in (2022, 2023)], "2022, 2023 lie in"),
    (["a/b/c/1.jpg", "a/b/d/1.jpg", "x/y/z/1.jpg"], "which folders are the classes"),
    (["train_images/1.jpg", "test_images/2.jpg"], "train_images holds images, but no class folders.*--labels"),
    (["images/train/1.jpg", "labels/train/1.txt", "images/val/1.jpg"], "YOLO keeps boxes"),
    (["train/images/1.jpg", "train/labels/1.txt", "valid/images/1.jpg"], "YOLO keeps boxes"),
    (["barrel/1.jpg"], "one class folder alone.*folders: barrel"),
    (["train/a/1.jpg", "train/b/1.jpg", "Training/a/1.jpg", "Training/b/1.jpg"], "both look like the training images"),
    (["1.jpg", "2.jpg"], "no class folder with images .folders: none; 2 images"),
])
def test_trees_that_leave_their_classes_open_are_refused(tmp_path, paths, words):
    with fails_with(words):
        read_data_set(put(tmp_path, *paths))


def test_a_tree_of_any_depth_is_read_or_refused(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    here = os.getcwd()
    os.chdir(tmp_path / "a")
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(here)
        assert read_data_set(tmp_path).class_names == ["a", "b"]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # pytest's own removal recurses too deep


def test_scores_do_not_vanish_without_a_word(tmp_path):
    put(tmp_path, *(f"{part}/{name}/{number}.jpg" for part in ("train", "test") for name in ("barrel", "chair")
                    for number in range(3)))
    assert len(read_data_set(tmp_path).split().labels) == 6
    (tmp_path / "test/barrel").rename(tmp_path / "test/Barrel")
    tests = read_data_set(tmp_path).split()
    assert len(tests.labels) == 6 and "Barrel is taken for the class barrel" in tests.notes[0]
    put(tmp_path, "test/loose.jpg")
    tests = read_data_set(tmp_path).split()
    assert tests.labels["loose.jpg"] == UNKNOWN and sum(label == UNKNOWN for label in tests.labels.values()) == 1
    assert "6 alone are scored, as the class of 1 of 7 images is not known (loose.jpg has no class)" in tests.notes[-1]
    (tmp_path / "test/loose.jpg").rename(tmp_path / "test/Barrel/loose.jpg")
    put(tmp_path, "test/chairs/1.jpg")
    tests = read_data_set(tmp_path).split()
    assert len(tests.names) == 8 and tests.labels["chairs/1.jpg"] == UNKNOWN
    assert "chairs is no class; did you mean 'chair'" in tests.notes[-1]


def test_unlabelled_images_are_answered_without_a_word_about_scores(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "test/2.jpg")
    tests = read_data_set(tmp_path).split()
    assert tests.names == ["1.jpg", "2.jpg"] and tests.labels is None and tests.notes == []


def test_names_packed_on_a_mac_or_listed_on_windows(tmp_path):
    name, packed = "café", unicodedata.normalize("NFD", "café")
    put(tmp_path, f"TrainSet/{packed}/{packed}.jpg", "TrainSet/tea/1.jpg", f"TestSetA/{packed}.jpg")
    (tmp_path / "classes.txt").write_text(f"{name} 0\ntea 1\n")
    (tmp_path / "train.txt").write_text(f"TrainSet\\{name}\\{name}.jpg 0\n.\\TrainSet\\tea\\1.jpg 1\n")
    (tmp_path / "labels_TestSetA.txt").write_text(f"{name}.jpg 0\n")
    data = read_data_set(tmp_path)
    assert data.train == [(f"TrainSet/{packed}/{packed}.jpg", 0), ("TrainSet/tea/1.jpg", 1)]
    assert data.split().labels == {f"{packed}.jpg": 0}
    for file in ("classes.txt", "train.txt"):
        (tmp_path / file).unlink()
    (tmp_path / "labels_TestSetA.txt").unlink()
    assert read_data_set(tmp_path).class_names == [name, "tea"]


@pytest.mark.parametrize("path", ["/etc/passwd.jpg", "../other/1.jpg", "TrainSet/../../1.jpg", "C:\\photos\\1.jpg"])
def test_listed_paths_that_lead_out_are_found_before_the_work(contest, tmp_path, path):
    shots = tmp_path / "shots.txt"
    shots.write_text(f"{path} 0\n")
    with fails_with("line 1: .* is not below"):
        read_shot_list(shots, read_data_set(contest))
    put(tmp_path, "TrainSet/a/1.jpg")
    (tmp_path / "classes.txt").write_text("a 0\nb 1\n")
    (tmp_path / "train.txt").write_text(f"TrainSet/a/1.jpg 0\n{path} 1\n")
    with fails_with("train.txt, line 2: .* is not below"):
        read_data_set(tmp_path)


def test_absolute_paths_inside_are_shortened(contest, tmp_path):
    shots = tmp_path / "shots.txt"
    shots.write_text(f"{contest}/TrainSet/barrel/1.jpg 0\nTrainSet/barrel/../barrel/2.jpg 0\n")
    found = read_shot_list(shots, read_data_set(contest))
    assert found == [("TrainSet/barrel/1.jpg", 0), ("TrainSet/barrel/2.jpg", 0)]


def test_a_shot_list_takes_no_test_image_and_says_which_classes_it_leaves_out(contest, tmp_path, capsys):
    shots, data = tmp_path / "shots.txt", read_data_set(contest)
    shots.write_text("TrainSet/barrel/1.jpg 0\nTestSetA/image_1.jpg 1\n")
    with fails_with("line 2: TestSetA/image_1.jpg is an image of the test set A"):
        read_shot_list(shots, data)
    shots.write_text("TrainSet/barrel/1.jpg 0\n")
    assert len(read_shot_list(shots, data)) == 1
    assert "no image of 2 of 3 classes (cellphone for one)" in capsys.readouterr().err


def test_classes_called_by_codes_are_said(tmp_path):
    put(tmp_path, "train/0/1.jpg", "train/1/1.jpg", "train/n02084071/1.jpg", "train/dog/1.jpg")
    assert any("3 classes are called by a number or code (0, 1, n02084071)" in note
               for note in read_data_set(tmp_path).notes)


def test_a_number_in_front_of_every_name_is_left_out_of_the_prompts(tmp_path):
    data = read_data_set(put(tmp_path, "train/001.Black_footed_Albatross/1.jpg", "train/002.Crow/1.jpg"))
    assert data.class_names == ["001.Black_footed_Albatross", "002.Crow"]
    assert any("the number in front of 2 class names" in note for note in data.notes)
    assert prompts.plain_sentences(data.class_names, data.domains) == ["a photo of a Black footed Albatross.",
                                                                       "a photo of a Crow."]


def test_names_and_lists_are_utf8_whatever_the_locale(tmp_path):
    """A script starts again in UTF-8 mode; a program that uses the package is told how to start."""
    charmap, locale = "ISO-8859-1", "en_US.ISO-8859-1"
    if not shutil.which("localedef") or subprocess.run(["localedef", "-i", "en_US", "-f", charmap, tmp_path / locale],
                                                       capture_output=True).returncode:
        pytest.skip("no localedef here, or no sources of the locale")
    names = "café", "骆驼"
    for name in names:
        put(tmp_path, *(f"data/train/{name}/{number}.jpg" for number in range(4)))
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": locale, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUTF8", None)
    line = [sys.executable, str(ROOT / "train.py"), "--data", "data", "--support", "absent"]
    said = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True).stderr.decode(charmap)
    shown = [name.encode(charmap, "backslashreplace").decode(charmap) for name in names]
    assert f"2 classes: {shown[0]} (4), {shown[1]} (4)" in said, said
    code = "from jclip_fewshot.data.formats import read_data_set; read_data_set('data')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert b"UserError" in done.stderr and b"set PYTHONUTF8=1" in done.stderr


def table(root, text, name="train.csv"):
    put(root, *(f"images/{number}.jpg" for number in range(6)))
    (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("text, words", [
    ("path,label\nimages/0.jpg,a\nimages/9.jpg,b\nimages/1.jpg,b\nimages/2.jpg,a\n", "line 3: images/9.jpg is listed"),
    ("path,label\nimages/0.jpg,a\nimages/0.jpg,b\nimages/1.jpg,b\n", "line 3: images/0.jpg has class b here and a on"),
    ("path,label\nimages/0.jpg,a\nimages/1.jpg,\nimages/2.jpg,b\n", "line 3: .* is no class name"),
    ("path,label\nimages/0.jpg,a\nimages/1.jpg,b,c\n", "line 3: 3 cells under 2 column names"),
    ("path,label\nimages/0.jpg,a\nimages/1.jpg,a\n", "names 1 classes for 2 images"),
    (f"{'a' * 6000},{'a' * 6000}\nimages/0.jpg,a\n", "each once: a{60}…a{20}, a{60}…a{20}$"),
    ("path,label\nimages/0.jpg,a\nimages/1.jpg,b\n../x.jpg,b\n", "line 4: ../x.jpg is not below"),
])
def test_mistakes_in_a_table(tmp_path, text, words):
    with fails_with(words):
        read_data_set(table(tmp_path, text))


def test_a_table_by_name_whatever_its_columns(tmp_path):
    table(tmp_path, "n;what;who\n0;x;a\n1;y;b\n2;x;a\n3;y;b\n", "mine.csv")
    with fails_with("mine.csv: which columns hold .*'n', 'what', 'who'; call them path and label"):
        read_data_set(tmp_path, labels=tmp_path / "mine.csv")
    table(tmp_path, "n;what;label\n0;x;a\n1;y;b\n2;x;a\n3;y;b\n", "mine.csv")
    data = read_data_set(tmp_path, labels=tmp_path / "mine.csv")
    assert data.class_names == ["a", "b"] and data.train[0] == ("images/0.jpg", 0) and len(data.train) == 4
    assert data.default_split == HELD_OUT


def test_a_test_set_with_training_images_is_said(tmp_path):
    table(tmp_path, "path,label\nimages/0.jpg,a\nimages/1.jpg,b\nimages/2.jpg,a\n")
    table(tmp_path, "path,label\nimages/2.jpg,a\nimages/3.jpg,b\n", "test.csv")
    data = read_data_set(tmp_path)
    assert data.splits == ("test",) and data.split().notes == []
    assert "1 of the 2 test images are shots" in data.split(used=["images/2.jpg", "images/0.jpg"]).notes[0]


def test_the_column_of_the_classes_is_not_taken_for_paths(tmp_path):
    """Labels 0 and 1, and files called 0.jpg and 1.jpg."""
    put(tmp_path, *(f"images/{number}.jpg" for number in range(6)))
    (tmp_path / "mine.csv").write_text("label,picture\n0,3\n1,4\n0,5\n1,2\n")
    data = read_data_set(tmp_path)
    assert data.train == [("images/3.jpg", 0), ("images/5.jpg", 0), ("images/2.jpg", 1), ("images/4.jpg", 1)]


def test_the_settings_know_every_format():
    assert tuple(sorted(config.FORMATS)) == tuple(sorted(FORMATS))


def test_json_that_no_reader_takes(tmp_path):
    put(tmp_path, "images/0.jpg", "images/1.jpg")
    file = tmp_path / "split_zhou_X.json"
    for text, words in [("[" * 30000, "split_zhou_X.json.*must be"),
                        ('{"train": [["images/0.jpg", ' + "1" * 5000 + ', "a"]]}', r"range.*train\[0\]\[1\]"),
                        ('{"train": [["0.jpg", -1, "a"]]}', r"train\[0\]\[1\]"),
                        ("{", "split_zhou_X.json: cannot be read as JSON"),
                        ('{"train": [["0.jpg", 0, "a"], ["1.jpg", 0, "b"]]}', "class 0 is called 'b'"),
                        ('{"train": [["0.jpg", 0, "a"], ["1.jpg", 2, "b"]]}', "1 is missing"),
                        ('{"train": [["7.jpg", 0, "a"], ["8.jpg", 1, "b"]]}', "unpack the images beside it")]:
        file.write_text(text)
        with fails_with(words):
            read_data_set(tmp_path)
    file.unlink()
    (tmp_path / "train.jsonl").write_text('{"path": "images/0.jpg", "label": ' + "1" * 5000 + "}\n")
    with fails_with("train.jsonl, row 1: .*digits"):
        read_data_set(tmp_path)


def test_coop_splits_by_name(contest, tmp_path):
    layouts.make("coop", contest, tmp_path)
    data = read_data_set(tmp_path)
    assert data.splits == ("test", "val") and len(data.split("val").names) == 5
    content = json.loads((tmp_path / "split_zhou_Caltech101.json").read_text())
    assert data.class_names == [name for _, name in sorted({(label, name) for _, label, name in content["train"]})]
    with fails_with("--split train"):
        data.split("train")
