"""Folders without checked labels: what is read, and what is wrong with them, in one line."""

import pytest

from jclip_fewshot.data.formats.folders import named_below, read_support, read_unlabelled
from jclip_fewshot.errors import UserError

CLASSES = ["Animal_Bear", "Animal_Cat", "Dish_soup"]


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_reads_both_layouts_sorted_by_class(tmp_path):
    put(tmp_path, "Dish_soup/2.png", "Animal/Bear/10.jpg", "Animal/Bear/9.JPEG", "Animal/Bear/.hidden.jpg",
        "Animal_Cat/a.txt")
    found = read_support(tmp_path, CLASSES)
    assert [(path[len(str(tmp_path)) + 1:], label) for path, label in found] == [
        ("Animal/Bear/9.JPEG", 0), ("Animal/Bear/10.jpg", 0), ("Dish_soup/2.png", 2)]
    assert named_below(tmp_path, found)[0] == ("support/Animal/Bear/9.JPEG", 0)


@pytest.mark.parametrize("paths, words", [
    ((), "no image in it"),
    (("Animal_Bear/a.txt",), "no image in it"),
    (("Animal_Bear/1.bmp", "Animal_Baer/a.txt"), "'Animal_Baer' is no class"),
    (("Animal_Baer/1.jpg",), "'Animal_Baer' is no class of this data set; did you mean 'Animal_Bear'?"),
    (("1.jpg",), "1.jpg lies beside the class folders"),
])
def test_what_is_wrong_is_said(tmp_path, paths, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as error:
        read_support(put(tmp_path, *paths), CLASSES)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="--support .*no such folder"):
        read_support(tmp_path / "none", CLASSES)
    with pytest.raises(UserError, match="--unlabelled .*no such folder"):
        read_unlabelled(tmp_path / "none")
    with pytest.raises(UserError, match="--unlabelled .*no image"):
        read_unlabelled(tmp_path)


def test_unlabelled_images_of_any_depth(tmp_path):
    put(tmp_path, "b/2.webp", "b/10.jpg", "1.jpg", "notes.txt")
    assert [path[len(str(tmp_path)) + 1:] for path in read_unlabelled(tmp_path)] == ["1.jpg", "b/2.webp", "b/10.jpg"]
