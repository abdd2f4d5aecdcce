"""The contest's files: what is read, what is written, and which mistakes are named how."""

import os
import random
import time
import zipfile

import numpy as np
import pytest

from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.formats.contest import CLASS_LISTS, read_classes
from jclip_fewshot.data.listing import natural_key
from jclip_fewshot.data.prompts import domain_of, domains_of
from jclip_fewshot.data.shots import choose_shots, read_shot_list, shortage, write_shot_list
from jclip_fewshot.data.submission import check_result, move_aside, require_names, require_target, write_result
from jclip_fewshot.errors import UserError

CLASSES = ["Animal_Polar_bear", "Animal_Owl", "Stanford-Cars_Dodge_Charger_SRT-8_2009"]


def test_images(root, split=""):
    return read_data_set(root, labelled=False).split(split)


test_images.__test__ = False


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


@pytest.fixture
def dataset(tmp_path):
    """Three classes; the last one, board B's only addition, has no training image. No final newlines."""
    root = tmp_path / "Dataset"
    root.mkdir()
    (root / "classes.txt").write_text("\n".join(f"{name} {i}" for i, name in enumerate(CLASSES[:2])))
    (root / "classes_b.txt").write_text("\n".join(f"{name} {i}" for i, name in enumerate(CLASSES)) + "\n")
    lines = []
    for label, name in enumerate(["Polar_bear", "Owl"]):
        for i in range(12, 0, -1):
            path = f"TrainSet/Animal/{name}/{i}.jp{'e' * (i == 3)}g"
            touch(root / path)
            lines.append(f"{path} {label}")
    (root / "train.txt").write_text("\n".join(lines))
    for name in ["image_10.jpg", "image_9.JPG", "image_1.jpeg", "image_2.JPEG", "._image_1.jpg", "Thumbs.db",
                 "a.png"]:
        touch(root / "TestSetA" / name)
    return root


def fails_with(*parts):
    return pytest.raises(UserError, match=".*".join(parts))


def test_reads_both_boards(dataset):
    a, b = read_data_set(dataset, "A"), read_data_set(dataset, "B")
    assert (a.class_names, b.class_names) == (CLASSES[:2], CLASSES)
    assert b.domains == ["Animal", "Animal", "Stanford-Cars"]
    assert a.train == b.train and len(a.train) == 24
    assert a.train[:3] == [(f"TrainSet/Animal/Polar_bear/{name}", 0) for name in ("1.jpg", "2.jpg", "3.jpeg")]
    assert a.train[11] == ("TrainSet/Animal/Polar_bear/12.jpg", 0) and a.train[12][1] == 1
    assert a.notes == []
    assert b.notes == ["1 of 3 classes have no training image; text alone knows them"]


def test_test_images_come_in_natural_order_and_others_are_counted(dataset):
    found = test_images(dataset, "A")
    assert found.names == ["a.png", "image_1.jpeg", "image_2.JPEG", "image_9.JPG", "image_10.jpg"]
    assert found.folder == dataset / "TestSetA" and found.files == [f"TestSetA/{name}" for name in found.names]
    assert "2 files left out, no images: .db, .jpg" in found.notes[0]
    touch(dataset / "TestSetA/more/image_11.jpg")
    with fails_with("more: 1 image in a folder inside TestSetA, and result.txt has no line for them"):
        test_images(dataset, "A")
    touch(dataset / "TestSetA/image_12.heic")
    (dataset / "TestSetA/more").rename(dataset / "TestSetA/@eaDir")
    with fails_with("TestSetA: 1 image of a kind that cannot be read"):
        test_images(dataset, "A")


def test_nothing_hangs_on_the_order_of_a_folder_listing(dataset, monkeypatch):
    (dataset / "classes.txt").unlink(), (dataset / "classes_b.txt").unlink(), (dataset / "train.txt").unlink()
    before = read_data_set(dataset), test_images(dataset)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(1).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert (read_data_set(dataset), test_images(dataset)) == before


def test_lists_with_windows_lines_byte_order_mark_and_any_order(dataset):
    lines = [f"{name}\t{i}\r\n" for i, name in enumerate(CLASSES)]
    (dataset / "classes_b.txt").write_bytes(("\ufeff" + "".join(lines[::-1]) + "\r\n").encode())
    assert read_classes(dataset, "B") == CLASSES


@pytest.mark.parametrize("text, message", [
    ("Animal_Bear 0\nAnimal_Bee\n", "classes.txt, line 2: 'Animal_Bee' is not of the form <class name> <id>"),
    ("Animal_Bear 0\n\nAnimal_Bee one\n", "classes.txt, line 3: 'Animal_Bee one' is not"),
    ("Animal_Bear 0\nAnimal_Bee -1\n", "classes.txt, line 2: 'Animal_Bee -1' is not"),
    ("Animal_Bear 0\nAnimal_Bee 1\nAnimal_Bear 2\n", "line 3: class Animal_Bear is on line 1 too"),
    ("Animal_Bear 0\nAnimal_Bee 0\n", r"line 2: id 0 of Animal_Bee belongs to Animal_Bear \(line 1\)"),
    ("Animal_Bear 1\nAnimal_Bee 2\n", r"2 classes need the ids 0..1, but 0 is missing and 2 is there"),
    ("", "holds no class"),
])
def test_mistakes_in_a_class_list(dataset, text, message):
    (dataset / "classes.txt").write_text(text)
    with fails_with(message):
        read_data_set(dataset)


@pytest.mark.parametrize("line, message", [
    ("TrainSet/Animal/Owl/1.jpg", "train.txt, line 25: .* is not of the form <image path> <class id>"),
    ("TrainSet/Animal/Owl/1.jpg 2", "train.txt, line 25: class id 2 is outside 0..1"),
    ("TrainSet/Animal/Owl/1.jpg 0", "line 25: TrainSet/Animal/Owl/1.jpg has class 0 here and 1 on line 24"),
    ("TrainSet/Animal/Owl/99.jpg 1", "line 25: TrainSet/Animal/Owl/99.jpg is listed but absent: no file"),
    ("TrainSet/Animal/Elk/1.jpg 1\nTrainSet/Animal/Elk/2.jpg 1",
     r"line 25: TrainSet/Animal/Elk/1.jpg is listed but absent: no folder .*Elk \(1 more "),
])
def test_mistakes_in_the_training_list(dataset, line, message):
    with open(dataset / "train.txt", "a") as file:
        file.write("\n" + line)
    with fails_with(message):
        read_data_set(dataset)


def test_an_image_listed_twice_alike_is_taken_once_and_said(dataset):
    with open(dataset / "train.txt", "a") as file:
        file.write("\nTrainSet/Animal/Owl/1.jpg 1")
    contest = read_data_set(dataset)
    assert len(contest.train) == 24
    assert contest.notes == ["train.txt lists 1 image more than once"]


def test_missing_pieces_are_named(dataset, tmp_path):
    with fails_with("no folder .*nowhere: give the data set's folder with --data"):
        read_data_set(tmp_path / "nowhere")
    board_b = read_data_set(dataset, "B")
    with fails_with("no folder .*TestSetB: the test images of split B belong there"):
        board_b.split()
    (dataset / "TestSetB").mkdir()
    touch(dataset / "TestSetB" / "notes.txt")
    with fails_with("no image in .*TestSetB .*but 1 other file"):
        board_b.split("B")
    (dataset / "classes_b.txt").unlink()
    with fails_with("no classes_b.txt in .*: board B takes its classes from there"):
        read_data_set(dataset, "B")
    (dataset / "train.txt").unlink()
    with fails_with("no train.txt in .*; it needs lines of the form <image path> <class id>"):
        read_data_set(dataset)
    with fails_with("holds no classes.txt, but .*Dataset has lists; did you mean --data .*Dataset"):
        read_data_set(tmp_path)
    (tmp_path / "empty").mkdir()
    with fails_with("no class folder with images"):
        read_data_set(tmp_path / "empty")
    (tmp_path / "above/Dataset").mkdir(parents=True)
    dataset.rename(tmp_path / "above/Dataset/Dataset")  # an archive that was unpacked twice
    dataset = tmp_path / "above/Dataset/Dataset"
    with fails_with("did you mean --data .*Dataset/Dataset"):
        read_data_set(tmp_path / "above")
    (dataset / "train.txt").write_text("TrainSet/Animal/Owl/1.jpg 1\n")
    with fails_with("TrainSet holds no classes.txt, but .*Dataset has lists"):
        read_data_set(dataset / "TrainSet")
    (dataset / "classes.txt").write_bytes(b"Animal_B\xe4r 0\n")
    with fails_with("classes.txt is no UTF-8 text"):
        read_data_set(dataset)


def test_domains():
    assert domains_of(CLASSES) == ["Animal", "Animal", "Stanford-Cars"]
    assert domains_of(["golden_retriever", "beagle"]) == ["", ""]
    assert domain_of("beagle") == ""


BEARS = ["polar_bear", "brown_bear", "black_bear"]


def listed(root, names, folder_of):
    """A data set in the contest's layout with one image a class."""
    for name in names:
        touch(root / folder_of(name) / "1.jpg")
    (root / "classes.txt").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    (root / "train.txt").write_text("".join(f"{folder_of(name)}/1.jpg {i}\n" for i, name in enumerate(names)))
    return root


def test_a_domain_is_followed_by_a_folder_of_that_name(tmp_path):
    flat = listed(tmp_path / "flat", BEARS, lambda name: f"TrainSet/{name}")
    assert read_data_set(flat).domains == ["", "", ""]
    assert read_data_set(flat, domains=True).domains == ["polar", "brown", "black"]
    deep = listed(tmp_path / "deep", BEARS, lambda name: f"TrainSet/{name.replace('_', '/')}")
    assert read_data_set(deep).domains == ["polar", "brown", "black"]
    names = ["Sea_life_eel", "Sea_life_cod"]
    deep = listed(tmp_path / "sea", names, lambda name: f"TrainSet/Sea_life/{name[9:]}")
    assert read_data_set(deep).domains == ["Sea_life", "Sea_life"]
    (deep / "classes_b.txt").write_text("Sea_life_eel 0\nSea_life_cod 1\nVehicle_van 2\n")
    assert read_data_set(deep, "B").domains[2] == "Vehicle"  # the layout shows domains for all that have images
    contest = listed(tmp_path / "contest", ["Animal_Bear", "Thu-dog_pug"], lambda name: f"TrainSet/{name[0]}")
    assert read_data_set(contest).domains == ["Animal", "Thu-dog"]  # the contest's own names, whatever the folders


def test_names_alone_have_a_domain_only_where_all_are_known():
    assert domains_of(BEARS) == ["", "", ""]
    assert domains_of([*BEARS, "Animal_Bear"]) == [""] * 4
    assert domains_of(["Animal_Bear", "Food-101_pho"]) == ["Animal", "Food-101"]


def test_a_plain_tree_takes_more_kinds_of_images(tmp_path):
    for name in ["train/dog/1.PNG", "train/dog/2.webp", "train/cat/3.Bmp", "train/cat/4.JPEG", "train/cat/5.gif",
                 "test/dog/6.png", "test/7.JPG", "holdout/8.jpg"]:
        touch(tmp_path / name)
    contest = read_data_set(tmp_path)
    assert contest.plain and len(contest.train) == 5
    assert contest.default_split == "test" and test_images(tmp_path, "test").names == ["7.JPG", "dog/6.png"]
    assert test_images(tmp_path, "holdout").files == ["holdout/8.jpg"]
    for split in ("../test", "test/dog", "."):
        with fails_with("--split"):
            test_images(tmp_path, split)
    with fails_with("no folder .*testing"):
        test_images(tmp_path, "testing")


def test_shots_are_up_to_in_a_plain_tree(tmp_path):
    for name in ["train/dog/1.png", "train/dog/2.png", "train/dog/3.png", "train/cat/1.png"]:
        touch(tmp_path / name)
    contest = read_data_set(tmp_path)
    assert [label for _, label in choose_shots(contest, 2)] == [0, 1, 1]
    assert shortage(contest, 2) == "1 class has fewer than 2 images (the fewest: 1); they give all they have"
    assert shortage(contest, 1) == ""


def test_links_pipes_and_loops(dataset, tmp_path):
    folder = dataset / "TestSetA"
    os.mkfifo(folder / "image_7.jpg")
    assert len(test_images(dataset).names) == 5  # a pipe would hang whoever reads it
    (folder / "image_8.jpg").symlink_to(folder / "gone.jpg")
    assert "image_8.jpg" in test_images(dataset).names  # named later as one that cannot be read
    (folder / "image_5.jpg").symlink_to(folder / "image_5.jpg")
    with fails_with("cannot look at .*image_5.jpg"):
        test_images(dataset)
    tree = tmp_path / "tree"
    touch(tree / "train/dog/1.jpg")
    (tree / "train/dog/again").symlink_to(tree / "train")
    with fails_with("again is a link to a folder above itself"):
        read_data_set(tree)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for root in (tmp_path / "loop", tmp_path / ("x" * 300), "a\0b"):
        with fails_with("no folder .*--data"):
            read_data_set(root)


def test_an_unreadable_folder_is_named(dataset, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("TestSetA"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with fails_with("cannot look at .*TestSetA .Permission denied"):
        test_images(dataset)


@pytest.mark.parametrize("line", ["TrainSet/Animal/Owl/1.jpg " + "1" * 5000, "TrainSet/Animal/\0/1.jpg 1"])
def test_lines_that_no_machine_takes(dataset, line):
    with open(dataset / "train.txt", "a") as file:
        file.write("\n" + line)
    with fails_with("train.txt, line 25: .* is not of the form"):
        read_data_set(dataset)


def test_numbers_of_any_length_are_in_natural_order():
    names = ["a" + "9" * 5000, "a10", "a9", "a1" + "0" * 5000, "a09"]
    assert sorted(names, key=natural_key) == ["a09", "a9", "a10", "a" + "9" * 5000, "a1" + "0" * 5000]


def test_a_name_in_a_tree_that_no_list_can_hold(tmp_path):
    touch(tmp_path / "train/cat/1.jpg")
    touch(tmp_path / "train/dog/1\n2.jpg")
    with fails_with("line break"):
        read_data_set(tmp_path)


def test_a_plain_tree_serves_without_lists(tmp_path):
    for name in ["golden_retriever/b2.jpg", "golden_retriever/b10.JPG", "beagle/1.jpg", "beagle/readme.txt",
                 "test/beagle/7.jpg", "test/golden_retriever/8.jpg", ".git/x.jpg", "loose.jpg"]:
        touch(tmp_path / name)
    contest = read_data_set(tmp_path, "B")
    assert contest.class_names == ["beagle", "golden_retriever"]
    assert contest.domains == ["", ""]
    assert contest.train == [("beagle/1.jpg", 0), ("golden_retriever/b2.jpg", 1),
                             ("golden_retriever/b10.JPG", 1)]
    assert "2 classes named and numbered by the folders" in contest.notes[0]
    assert contest.notes[1].startswith("1 image beside the class folders") and "1 file" in contest.notes[2]
    (tmp_path / "corgi").mkdir()
    contest = read_data_set(tmp_path, "B")
    assert contest.class_names == ["beagle", "golden_retriever"] and "no class: corgi" in contest.notes[3]
    assert test_images(tmp_path, "test").names == ["beagle/7.jpg", "golden_retriever/8.jpg"]
    assert contest.split("test").labels == {"beagle/7.jpg": 0, "golden_retriever/8.jpg": 1}


def test_a_tree_of_two_levels_has_domains(tmp_path):
    for name in ["train/Tools/wind_gauge/1.jpg", "train/Tools/hammer/1.jpg", "train/Fruit/fig/1.jpg",
                 "val/1.jpg"]:
        touch(tmp_path / name)
    contest = read_data_set(tmp_path)
    assert contest.class_names == ["Fruit_fig", "Tools_hammer", "Tools_wind_gauge"]
    assert contest.domains == ["Fruit", "Tools", "Tools"]
    assert contest.train[0] == ("train/Fruit/fig/1.jpg", 0)
    touch(tmp_path / "train/Tools_wind/gauge/2.jpg")
    with fails_with("another folder makes the class Tools_wind_gauge too"):
        read_data_set(tmp_path)
    (tmp_path / "train/Tools_wind/gauge").rename(tmp_path / "train/gauge")
    with fails_with(r"which folders are the classes.*gauge \(1 folder deep\) and Fruit/fig \(2 folders deep\)"):
        read_data_set(tmp_path)


def test_shots_are_seeded_and_nested(dataset):
    contest = read_data_set(dataset, "B")
    four = choose_shots(contest, 4, seed=1)
    assert [label for _, label in four] == [0] * 4 + [1] * 4
    assert set(four) <= set(contest.train) and four == choose_shots(contest, 4, seed=1)
    assert set(choose_shots(contest, 2, seed=1)) < set(four)
    assert four == choose_shots(read_data_set(dataset, "A"), 4, seed=1)
    assert len({tuple(choose_shots(contest, 4, seed=seed)) for seed in range(8)}) == 8
    assert choose_shots(contest, 0) == []


def test_fewer_images_than_shots(dataset):
    with fails_with("class Animal_Polar_bear has 12 training images, fewer than the 16 shots asked for; "
                    "use --shots 12"):
        choose_shots(read_data_set(dataset), 16)
    with fails_with("--shots is -1"):
        choose_shots(read_data_set(dataset), -1)


def test_shot_lists(dataset, tmp_path):
    contest, path = read_data_set(dataset), tmp_path / "shots.txt"
    shots = choose_shots(contest, 3)
    write_shot_list(path, shots)
    assert read_shot_list(path, contest) == shots == choose_shots(contest, 4, shot_list=path)
    touch(dataset / "extra" / "my owl.jpg")
    path.write_text("extra/my owl.jpg 1\n")
    assert read_shot_list(path, contest) == [("extra/my owl.jpg", 1)]
    for text, message in [
        ("", "shots.txt lists no image"),
        ("TrainSet/Animal/Owl/1.jpg\n", "shots.txt, line 1: .* is not of the form"),
        ("TrainSet/Animal/Owl/1.jpg 0\n", "line 1: .* has class 0 here, but 1 in the data set"),
        ("TrainSet/Animal/Owl/1.jpg 1\nTrainSet/Animal/Owl/1.jpg 1\n", "line 2: .* is on line 1 too"),
        ("TrainSet/Animal/Owl/77.jpg 1\n", "line 1: TrainSet/Animal/Owl/77.jpg is listed but absent"),
        ("TrainSet/Animal/Owl/1.jpg 5\n", "line 1: class id 5 is outside 0..1"),
    ]:
        path.write_text(text)
        with fails_with(message):
            read_shot_list(path, contest)
    with fails_with("no none.txt in"):
        read_shot_list(tmp_path / "none.txt", contest)


def test_labels(dataset):
    contest, path = read_data_set(dataset), dataset / "labels_TestSetA.txt"
    assert contest.split("A").labels is None
    path.write_text("image_1.jpeg 1\nimage_2.JPEG 0")
    assert contest.split("A").labels == {"image_1.jpeg": 1, "image_2.JPEG": 0}
    path.write_text("image_1.jpeg 1\nimage_1.jpeg 0")
    with fails_with("labels_TestSetA.txt, line 2: image_1.jpeg stands there twice"):
        contest.split("A")
    path.write_text("image_1.jpeg 2\n")
    with fails_with("line 1: class id 2 is outside 0..1"):
        contest.split("A")


NAMES = ["image_10.jpg", "image_2.jpeg", "image_1.jpg"]
TOP5 = np.array([[5, 4, 3, 2, 1], [9, 0, 1, 2, 3], [7, 6, 5, 4, 373]])
TEXT = b"image_1.jpg 7 6 5 4 373\nimage_2.jpeg 9 0 1 2 3\nimage_10.jpg 5 4 3 2 1\n"


def test_a_result_is_sorted_valid_and_zipped(tmp_path):
    path = tmp_path / "out" / "result.txt"
    archive = write_result(path, NAMES, TOP5, 374)
    assert path.read_bytes() == TEXT
    assert archive == tmp_path / "out" / "result.zip"
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.namelist() == ["result.txt"] and zipped.read("result.txt") == TEXT
    for file in (path, archive):
        check = check_result(file, NAMES, 374)
        assert not check.problems and not check.notes and check.lines == 3
    again = write_result(tmp_path / "other.txt", NAMES[::-1], TOP5[::-1], 374)
    assert again.read_bytes() == archive.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["other.txt", "other.zip", "out"]


def test_fewer_than_five_classes_take_all(tmp_path):
    write_result(tmp_path / "result.txt", ["a.jpg"], [[2, 0, 1]], 3)
    assert (tmp_path / "result.txt").read_text() == "a.jpg 2 0 1\n"


@pytest.mark.parametrize("names, top5", [
    (NAMES, TOP5[:2]), (NAMES[:2] * 2, [*TOP5[:2], *TOP5[:2]]), (["a.jpg"], [[1, 1, 2, 3, 4]]),
    (["a.jpg"], [[1, 2, 3, 4]]), (["a.jpg"], [[374, 2, 3, 4, 5]]), (["a.jpg"], [[-1, 2, 3, 4, 5]]), ([], []),
])
def test_an_invalid_result_is_never_written(tmp_path, names, top5):
    with pytest.raises(ValueError):
        write_result(tmp_path / "result.txt", names, top5, 374)
    assert os.listdir(tmp_path) == []


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.txt"
    write_result(path, NAMES, TOP5, 374)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written: No space left on device.*result.txt"):
        write_result(path, NAMES, TOP5[:, ::-1], 374)
    assert path.read_bytes() == TEXT
    assert os.listdir(tmp_path) == ["result.txt"]  # no leftovers, no archive that disagrees
    with fails_with("the result is a .txt file"):
        write_result(tmp_path / "result.zip", NAMES, TOP5, 374)


@pytest.mark.parametrize("change, problems", [
    (lambda text: b"\xef\xbb\xbf" + text,
     ["the file begins with a byte-order mark; save it as UTF-8 without one"]),
    (lambda text: text.replace(b"\n", b"\r\n"), ["lines end in CR LF (Windows); they must end in LF alone"]),
    (lambda text: b"image top1 top2\n" + text,
     ["line 1 looks like a header ('image top1 top2'); the file has none"]),
    (lambda text: text.replace(b" 7", b"  7"),
     ["line 1: exactly one space goes between name and ids, none at the ends"]),
    (lambda text: text.replace(b" 373", b" 373 "),
     ["line 1: exactly one space goes between name and ids, none at the ends"]),
    (lambda text: text.replace(b" 9 ", b"\t9 "), ["line 2: a tab; one space goes between name and ids"]),
    (lambda text: text.replace(b" 9 ", b",9 "), ["line 2: a comma; one space goes between name and ids"]),
    (lambda text: text + b"\n", ["line 4 is empty"]),
    (lambda text: text.replace(b" 2 1\n", b" 2\n"), ["line 3: 4 ids instead of 5"]),
    (lambda text: text.replace(b" 2 1\n", b" 2 1 0\n"), ["line 3: 6 ids instead of 5"]),
    (lambda text: text.replace(b" 2 1\n", b" 2 2\n"), ["line 3: id 2 stands there more than once"]),
    (lambda text: text.replace(b" 373", b" 374"), ["line 1: id 374 is outside 0..373"]),
    (lambda text: text.replace(b" 373", b" 3.5"), ["line 1: '3.5' is no class id"]),
    (lambda text: text.replace(b" 373", b" -1"), ["line 1: '-1' is no class id"]),
    (lambda text: text.replace(b"image_2.jpeg", b"image_1.jpg"),
     ["line 2: image_1.jpg is on line 1 already", "no line for image_2.jpeg"]),
    (lambda text: text.replace(b"image_2.jpeg", b"TestSetA/image_2.jpeg"),
     ["line 2: TestSetA/image_2.jpeg has a folder; image_2.jpeg alone is right", "no line for image_2.jpeg"]),
    (lambda text: text.replace(b"image_2.jpeg", b"image_3.jpeg"),
     ["line 2: image_3.jpeg is no test image", "no line for image_2.jpeg"]),
    (lambda text: text.split(b"\n", 1)[1], ["no line for image_1.jpg"]),
    (lambda _: b"", ["the file is empty"]),
    (lambda text: text.replace(b"image_2", b"\xff"), ["line 2: not UTF-8 text"]),
    (lambda _: b"PK\x03\x04 broken", ["the archive cannot be read: File is not a zip file"]),
])
def test_the_check_names_what_is_wrong(tmp_path, change, problems):
    (tmp_path / "mine.txt").write_bytes(change(TEXT))
    assert check_result(tmp_path / "mine.txt", NAMES, 374).problems == problems


def test_the_check_notes_what_is_only_unusual(tmp_path):
    lines = TEXT.rstrip(b"\n").split(b"\n")
    (tmp_path / "mine.txt").write_bytes(b"\n".join(lines[::-1]))
    check = check_result(tmp_path / "mine.txt", NAMES, 374)
    assert not check.problems and check.lines == 3
    assert [note.split()[0] for note in check.notes] == ["no", "the"]  # no newline, the order


def test_the_check_is_brief_about_many_mistakes_of_a_kind(tmp_path):
    names = [f"image_{i}.jpg" for i in range(1, 101)]
    (tmp_path / "mine.txt").write_text("".join(f"{name} 0 1 2 3\n" for name in names))
    problems = check_result(tmp_path / "mine.txt", names, 374).problems
    assert problems[0] == "line 1: 4 ids instead of 5" and problems[-1].endswith("(and 97 more of this kind)")
    assert len(problems) == 3


def test_the_check_opens_archives_and_misses_no_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "result.zip", "w") as archive:
        archive.writestr("out/result.txt", TEXT)
    problem, = check_result(tmp_path / "result.zip", NAMES, 374).problems
    assert problem == "the archive holds out/result.txt; it must hold result.txt and nothing else"
    with fails_with("cannot read .*none.txt: No such file"):
        check_result(tmp_path / "none.txt", NAMES, 374)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_not_every_reader_opens_is_not_valid(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "result.zip", "w", method) as archive:
        archive.writestr("result.txt", TEXT)
    problem, = check_result(tmp_path / "result.zip", NAMES, 374).problems
    assert "compression is neither deflate nor none" in problem


def test_a_damaged_lzma_archive_is_one_problem(shared):
    problem, = check_result(shared / "cases/lzma_result.zip", NAMES, 374).problems
    assert "compression" in problem and "\n" not in problem


@pytest.mark.parametrize("name, why", [
    ("a  b.jpg", "two in a row"), (" a.jpg", "a space at an end"), ("a\u00a0b.jpg", "not the plain space"),
    ("a,b.jpg", "a comma"), ("a\tb.jpg", "a tab"), ("a\nb.jpg", "a line break"), ("a\rb.jpg", "a line break"),
    ("a\u2028b.jpg", "not the plain space"), ("a\x85b.jpg", "a control"), ("a\x1fb.jpg", "a control"),
    ("\ufeffa.jpg", "a control"), (os.fsdecode(b"a\xffb.jpg"), "no UTF-8"),
])
def test_names_that_a_result_cannot_hold(name, why):
    with pytest.raises(UserError) as error:
        require_names("TestSetA", ["good.jpg", name])
    assert why in str(error.value) and repr(name) in str(error.value) and "rename" in str(error.value)
    str(error.value).encode("utf-8")


def test_every_name_that_is_accepted_can_be_written(tmp_path):
    draw = random.Random(0)
    signs = "ab1 .,\t\u00a0\u200b\ufeff\u3000é\x07\x1c字_'\"#"
    accepted = []
    for _ in range(3000):
        name = "".join(draw.choice(signs) for _ in range(draw.randint(1, 6))) + ".jpg"
        try:
            require_names("x", [name])
            accepted.append(name)
        except UserError:
            continue
    accepted = list(dict.fromkeys(accepted))
    assert len(accepted) > 100
    write_result(tmp_path / "result.txt", accepted, [[0, 1, 2, 3, 4]] * len(accepted), 5)


def test_a_foreign_result_is_moved_aside(tmp_path):
    ours = tmp_path / "runs" / "one" / "result.txt"
    ours.parent.mkdir(parents=True)
    ours.write_text("ours")
    result = tmp_path / "result.txt"
    assert move_aside(result, [ours]) is None
    result.write_text("ours")
    assert move_aside(result, [ours]) is None and result.exists()
    for name in ("result.previous.txt", "result.previous-2.txt"):
        result.write_text(name)
        assert move_aside(result, [ours]) == tmp_path / name and not result.exists()
    assert (tmp_path / "result.previous.txt").read_text() == "result.previous.txt"


@pytest.mark.parametrize("target", [".", "result.zip", "/dev/null", "x" * 300, "file.txt/result.txt"])
def test_targets_that_are_none_are_found_at_once(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UserError, match="--result"):
        require_target(target)


def test_mutated_submissions_are_checked_without_a_trace(tmp_path):
    draw = random.Random(1)
    archive = write_result(tmp_path / "result.txt", NAMES, TOP5, 374)
    file = tmp_path / "mutant"
    for source in (TEXT, archive.read_bytes()):
        for _ in range(400):
            data = bytearray(source)
            for _ in range(draw.randint(1, 6)):
                at = draw.randrange(len(data))
                kind = draw.randrange(4)
                if kind == 0:
                    data[at] = draw.randrange(256)
                elif kind == 1:
                    del data[at:at + draw.randrange(30)]
                elif kind == 2:
                    data[at:at] = draw.choice([b",", b"\t", b"\n", b"\r", b" ", b"\n,\n", b"9" * 5000, b"\xc2\x85"])
                else:
                    data[at:at + 4] = draw.randrange(2**32).to_bytes(4, "little")
                data = data or bytearray(b"x")
            file.write_bytes(data)
            check = check_result(file, NAMES, 374)
            "".join(check.problems + check.notes).encode("utf-8")
    (tmp_path / "comma").write_bytes(TEXT + b",\n")
    assert check_result(tmp_path / "comma", NAMES, 374).problems
    os.mkfifo(tmp_path / "pipe")
    with fails_with("no regular file"):
        check_result(tmp_path / "pipe", NAMES, 374)


def test_names_with_spaces_survive(tmp_path):
    names = ["my owl 3.jpg", "my owl 20.jpg"]
    write_result(tmp_path / "result.txt", names, TOP5[:2], 374)
    assert not check_result(tmp_path / "result.txt", names, 374).problems


def test_the_real_contest_lists_and_photographs(shared, tmp_path):
    for board, count in (("A", 374), ("B", 403)):
        (tmp_path / CLASS_LISTS[board]).write_bytes(
            (shared / "competition" / CLASS_LISTS[board]).read_bytes())
        names = read_classes(tmp_path, board)
        assert len(names) == count
        assert set(domains_of(names)) == {"Animal", "Caltech-101", "Food-101", "Thu-dog"} | (
            {"Stanford-Cars"} if board == "B" else set())
    contest = read_data_set(shared / "photos")
    assert len(contest.class_names) == 30 and len(contest.train) == 180 and contest.notes == []
    names = test_images(shared / "photos").names
    assert names[:2] == ["image_1.jpg", "image_2.jpg"] and len(names) == 240
    assert sorted(contest.split().labels) == sorted(names)
    assert len(choose_shots(contest)) == 120


def test_a_list_of_many_images_is_read_fast(tmp_path):
    """As many images a second as keeps the contest's 181,729 well under half a minute."""
    lines = []
    for label in range(20):
        folder = tmp_path / "TrainSet" / "Many" / f"kind{label}"
        folder.mkdir(parents=True)
        for i in range(100):
            (folder / f"{i}.jpg").touch()
            lines.append(f"TrainSet/Many/kind{label}/{i}.jpg {label}")
    (tmp_path / "classes.txt").write_text("\n".join(f"Many_kind{label} {label}" for label in range(20)))
    (tmp_path / "train.txt").write_text("\n".join(lines))
    start = time.perf_counter()
    contest = read_data_set(tmp_path)
    assert len(contest.train) == 2000
    assert time.perf_counter() - start < 2000 / 181729 * 30 + 0.5
