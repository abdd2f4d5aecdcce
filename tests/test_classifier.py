"""The notebook API: scikit-learn's habits, on features and on image files."""

import re

import numpy as np
import pytest
from PIL import Image

import jclip_fewshot
from jclip_fewshot.classifier import FewShotClassifier
from jclip_fewshot.data import demo
from jclip_fewshot.errors import UserError
from tests.conftest import ROOT
from tests.small_contest import small_contest


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((6, 32)) + 2)
    draw = lambda labels: unit(text[labels] + 0.5 * rng.standard_normal((len(labels), 32)) / np.sqrt(32))  # noqa: E731
    labels, truth = np.repeat(np.arange(6), 3), np.repeat(np.arange(6), 10)
    return text, draw(labels), labels, draw(truth), truth


HEADS = ["tip_adapter", "gda"]


def test_from_features(task):
    text, shots, labels, queries, truth = task
    classifier = FewShotClassifier(methods=HEADS)
    assert classifier.fit(shots, labels, class_names=list("abcdef"), text=text) is classifier
    probs = classifier.predict_proba(queries)
    assert probs.shape == (60, 6) and np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert classifier.predict(queries, top=5).shape == (60, 5)
    assert (classifier.predict(queries, top=5)[:, 0] == classifier.predict(queries)).all()
    assert classifier.score(queries, truth) > 0.6 and classifier.n_features_in_ == 32
    refined = classifier.refine(queries)
    assert refined.shape == (60, 6) and np.allclose(refined.sum(axis=1), 1, atol=1e-5)


def test_labels_come_back_as_they_were_given(task):
    text, shots, labels, queries, truth = task
    names = np.array(["ant", "bee", "cat", "dog", "elk", "fox"])
    classifier = FewShotClassifier(methods=HEADS).fit(shots, names[labels], text=text)
    assert classifier.classes_.tolist() == names.tolist()
    assert (classifier.predict(queries) == names[truth]).mean() > 0.6


def test_saved_and_loaded_answers_are_the_same(task, tmp_path):
    text, shots, labels, queries, _ = task
    classifier = FewShotClassifier(methods=HEADS).fit(shots, labels, class_names=list("abcdef"), text=text)
    classifier.save(tmp_path / "c.npz")
    again = FewShotClassifier.load(tmp_path / "c.npz")
    assert (again.predict_proba(queries) == classifier.predict_proba(queries)).all()
    assert again.class_names_ == classifier.class_names_
    with pytest.raises(UserError, match="missing"):
        FewShotClassifier.load(tmp_path / "absent.npz")


@pytest.mark.parametrize("domains, said", [
    (None, ["", "", ""]), (True, ["polar", "brown", "black"]), (False, ["", "", ""]), (["x", "", "x"], ["x", "", "x"]),
])
def test_domains_only_where_the_user_says_so(domains, said):
    bears = ["polar_bear", "brown_bear", "black_bear"]
    assert FewShotClassifier(domains=domains)._domains_of(bears, range(len(bears))) == said
    assert FewShotClassifier()._domains_of(["Animal_Bear", "Thu-dog_pug"], range(2)) == ["Animal", "Thu-dog"]
    for wrong in (["x"], "abc"):
        with pytest.raises(ValueError, match="a list of 3"):
            FewShotClassifier(domains=wrong)._domains_of(bears, range(len(bears)))


class Unreadable:
    """A source of which nothing can be read."""

    scale = 100.0

    def images(self, root, paths, views=0, seed=0, stage="images", test_views=1):
        return np.zeros((len(paths), 32), np.float32), {index: "the file is empty" for index in range(len(paths))}


def test_a_bad_query_is_called_one(task):
    text, shots, labels, _, _ = task
    classifier = FewShotClassifier(methods=HEADS).fit(shots, labels, class_names=list("abcdef"), text=text)
    classifier._source = Unreadable()
    for answer in (classifier.predict, classifier.refine):
        with pytest.raises(UserError, match="the image to classify one.jpg cannot be read .the file is empty") as error:
            answer(["one.jpg", "two.jpg"])
        assert "training" not in str(error.value) and "--skip-bad" not in str(error.value)
    with pytest.raises(UserError, match="the training image one.jpg"):
        classifier.fit(["one.jpg"], [0], class_names=list("abcdef"), text=text)


def test_labels_are_whole_or_named(task, tmp_path):
    text, shots, labels, queries, _ = task
    classifier = FewShotClassifier(methods=HEADS)
    with pytest.raises(ValueError, match="whole numbers"):
        classifier.fit(shots, labels + 0.5, class_names=list("abcdef"), text=text)
    names = np.array(["ant", "bee", "cat", "dog", "elk", "fox"], object)
    classifier.fit(shots, names[labels], text=text).save(tmp_path / "c.npz")
    assert FewShotClassifier.load(tmp_path / "c.npz").predict(queries[:1])[0] in names
    with pytest.raises(ValueError, match="2 images and 1 labels: as many are needed"):  # before one is read
        FewShotClassifier(model="nowhere.pt").fit(["nowhere.jpg", "there.jpg"], ["a"])
    with pytest.raises(ValueError, match="one kind"):
        classifier.fit(shots, [*names[labels][:-1], 3], text=text)


def test_predict_before_fit():
    with pytest.raises(ValueError, match="call fit"):
        FewShotClassifier().predict(np.zeros((1, 8)))


def test_the_readmes_example_runs_on_image_files(tmp_path, monkeypatch):
    """The README's lines as they stand, where the demo's folder is, with fewer views and one method."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "FewShotClassifier" in block)
    monkeypatch.chdir(tmp_path)
    _, model = demo.prepare("demo")
    code = code.replace("weights/demo_clip.safetensors", str(model))
    scope: dict = {}
    exec(code.replace('methods="fast"', 'methods="tip_adapter", augment=2'), scope)
    names = [image.parent.name for image in scope["images"]]
    assert (scope["clf"].predict(scope["images"]) == names).mean() > 0.8


def test_the_package_has_a_version_and_no_other_surprises():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jclip_fewshot.__version__)
    with pytest.raises(AttributeError):
        assert jclip_fewshot.absent


def test_names_alone(task, tmp_path):
    text, _, _, queries, truth = task
    classifier = FewShotClassifier().fit(class_names=list("abcdef"), text=text)
    assert classifier.score(queries, truth) > 0.6 and classifier.refine(queries).shape == (60, 6)
    classifier.save(tmp_path / "c.npz")
    again = FewShotClassifier.load(tmp_path / "c.npz")
    assert (again.refine(queries) == classifier.refine(queries)).all()
    with pytest.raises(ValueError, match="'a' stands at 0 and at 1"):
        FewShotClassifier().fit(class_names=["a", "a"], text=text[:2])
    with pytest.raises(ValueError, match="class_names"):
        FewShotClassifier().fit()


def test_views_of_an_image_to_classify_are_kept_with_the_classifier(task, tmp_path):
    text, shots, labels, _, _ = task

    class Views(Unreadable):
        def images(self, root, paths, views=0, seed=0, stage="images", test_views=1):
            self.asked = views, test_views
            return shots[:len(paths)], {}

    FewShotClassifier(methods=HEADS, views=5).fit(shots, labels, class_names=list("abcdef"), text=text
                                                ).save(tmp_path / "c.npz")
    classifier = FewShotClassifier.load(tmp_path / "c.npz")
    classifier._source = Views()
    classifier.predict(["one.jpg"])
    assert classifier._source.asked == (0, 5) and classifier.get_params()["views"] == 5
    classifier.augment = 0
    classifier._shots(["one.jpg"])
    assert classifier._source.asked == (0, 1)  # a shot without random views is the plain image


def test_tuned_members_answer_pictures_however_they_are_given(tmp_path, capsys):
    root = small_contest(tmp_path)
    shots = sorted((root / "data/TrainSet").glob("*/*.jpg"))
    labels = [int(path.parent.name) for path in shots]
    names = [line.rpartition(" ")[0] for line in (root / "data/classes.txt").read_text().splitlines()]
    classifier = FewShotClassifier(str(demo.CHECKPOINT), class_names=names, methods=["gda", "token_gda"], augment=0,
                                   cache=None).fit(shots, labels, names)
    assert "token_gda" in classifier.pipeline_.methods_
    tests = sorted((root / "data/TestSetA").glob("*.jpg"))[:6]
    by_path = classifier.predict_proba(tests)
    opened = [Image.open(path).convert("RGB") for path in tests]
    np.testing.assert_allclose(classifier.predict_proba(opened), by_path, atol=1e-5)
    rows = classifier._encoded([str(path) for path in tests], tests, "image")
    capsys.readouterr()
    alone = classifier.predict_proba(rows)
    assert np.abs(alone - by_path).max() > 1e-3 and "token_gda" in capsys.readouterr().err  # the heads, and it is said


def test_another_checkpoint_than_it_learned_with_is_refused(tmp_path):
    shots = [np.full((40, 40, 3), shade, np.uint8) for shade in (0, 40, 200, 250)]
    fitted = FewShotClassifier(demo.CHECKPOINT, methods=["gda"], augment=0, cache=None)
    fitted.fit(shots, ["dark", "dark", "light", "light"]).save(tmp_path / "c.npz")
    again = FewShotClassifier.load(tmp_path / "c.npz", cache=None)
    assert again.predict(shots).tolist() == fitted.predict(shots).tolist()
    other = demo.CHECKPOINT.parent / "demo_clip_resnet.safetensors"  # as wide
    with pytest.raises(UserError, match="demo_clip_resnet.*learned"):
        FewShotClassifier.load(tmp_path / "c.npz", cache=None, model=str(other)).predict(shots)
    again.save(tmp_path / "copy.npz")
    with pytest.raises(UserError, match="learned"):
        FewShotClassifier.load(tmp_path / "copy.npz", cache=None, model=str(other)).predict(shots)


@pytest.mark.parametrize("made, said", [
    ({"seed": None}, "seed"), ({"augment": -1}, "augment"), ({"views": 0}, "views"), ({"methods": None}, "methods"),
    ({"class_names": "cat"}, "class_names"),
    ({"class_names": {0: "cat"}}, "class_names"), ({"class_names": [b"cat"]}, "texts"),
    ({"class_names": {"cat"}}, "list"),
       ({"class_names": ["cat", None]}, "texts"), ({"class_names": ["cat", " "]}, "empty"),
    ({"class_names": ["cat\0"]}, "NUL"), ({"class_names": ["\ud800"]}, "NUL")])
def test_odd_parameters_are_named(task, made, said):
    _, shots, labels, _, _ = task
    with pytest.raises(ValueError, match=said):
        FewShotClassifier(**made).fit(shots, labels)


def test_a_class_name_twice_and_no_first_answer(task):
    text, shots, labels, _, _ = task
    with pytest.raises(ValueError, match="'a' stands at 0 and at 5"):
        FewShotClassifier(methods=HEADS).fit(shots, labels, class_names=list("abcdea"), text=text)
    fitted = FewShotClassifier(methods=HEADS).fit(shots, labels, class_names=list("abcdef"), text=text)
    for top in (0, -1):
        with pytest.raises(ValueError, match="top"):
            fitted.predict(shots, top=top)


def test_an_unknown_method_of_tuning_is_refused_at_once():
    for given in ({"class_names": ["bear", "cat"]}, {"images": ["a.jpg"], "y": ["bear"]}):
        with pytest.raises(UserError, match="last_block"):
            FewShotClassifier(methods="last_blocks").fit(**given)
