"""FewShotClassifier as scikit-learn's estimator, with and without scikit-learn, and all forms of images it takes."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.classifier import FewShotClassifier
from jclip_fewshot.clip.download import weights_folder
from jclip_fewshot.features.pictures import as_files, pictures_or_rows

NAMES = list("abcdef")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def task():
    """text (K, D), rows (N, D), labels (N,)."""
    rng = np.random.default_rng(0)
    text, labels = unit(rng.standard_normal((6, 32)) + 2), np.repeat(np.arange(6), 9)
    return text, unit(text[labels] + 0.5 * rng.standard_normal((54, 32)) / np.sqrt(32)), labels


def classifier(text, **more):
    return FewShotClassifier(**{**dict(class_names=NAMES, text=text, methods=["gda"], cache=None), **more})


def test_parameters_are_the_constructors(task):
    text = task[0]
    ours = classifier(text)
    assert ours.get_params()["text"] is text and set(vars(ours)) == set(ours.get_params())
    assert ours.set_params(seed=3, methods="fast") is ours and ours.seed == 3 and ours.methods == "fast"
    with pytest.raises(ValueError, match="'sed'"):
        ours.set_params(sed=3)


def test_pickled_after_fit(task):
    text, rows, labels = task
    ours = classifier(text).fit(rows, labels)
    ours._source = open  # whatever is open stays behind
    again = pickle.loads(pickle.dumps(ours))
    assert again._source is None and (again.predict_proba(rows) == ours.predict_proba(rows)).all()


def test_numbers_say_nothing_to_clip(task):
    text, rows, labels = task
    with pytest.raises(ValueError, match="give class_names"):
        FewShotClassifier(methods=["gda"]).fit(rows, labels)
    with pytest.raises(ValueError, match="give class_names"):
        FewShotClassifier(methods=["gda"]).fit(["a.jpg", "b.jpg"], [0, 1])
    named = classifier(text).fit(rows, np.array(NAMES)[labels])
    assert named.classes_.tolist() == NAMES and (named.predict(rows[:1]) == "a").all()
    with pytest.raises(ValueError, match="'z' is none of the class_names"):
        classifier(text).fit(rows[:1], ["z"])


def test_without_text_the_shots_alone_decide(task):
    _, rows, labels = task
    ours = classifier("none", class_names=None).fit(rows[::2], labels[::2])
    assert ours.score(rows[1::2], labels[1::2]) > 0.6
    other = classifier("none", class_names=None).fit(rows[::2], labels[::2] + 7)  # nor do the names
    assert (other.predict(rows) == ours.predict(rows) + 7).all()
    with pytest.raises(ValueError, match="text must be"):
        classifier("nothing").fit(rows, labels)


@pytest.mark.parametrize("rows, said", [
    (np.zeros((2, 5)), "X has 5 features"), (np.zeros(32), "2D array"), (np.full((1, 32), np.nan), "NaN"),
    (np.zeros((0, 32)), "0 sample"), (np.zeros((1, 32), complex), "Complex"), (np.zeros((1, 2, 3)), "2D array"),
])
def test_rows_that_are_none(task, rows, said):
    with pytest.raises(ValueError, match=said):
        classifier(task[0]).fit(task[1], task[2]).predict(rows)


class Pixels:
    """A source whose row of a picture is its size and the colour of its first pixel, and which counts its calls."""

    scale = 100.0

    def record(self):
        return {"weights_digest": "pixels"}

    def images(self, root, paths, views=0, seed=0, stage="images", test_views=1):
        rows = []
        for path in paths:
            with Image.open(path) as image:
                rows.append([*image.size, *image.convert("RGB").getpixel((0, 0))])
        return np.float32(rows), {}


def test_every_form_of_a_picture(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 10, 200, 30
    picture, path = Image.fromarray(pixels), tmp_path / "a.png"
    picture.save(path)
    ours, wanted = classifier(np.eye(2, 5)), [6, 4, 10, 200, 30]
    ours._source = Pixels()
    one = [str(path), path, picture, pixels]

    def rows(images):
        return ours._shots(pictures_or_rows(images))
    for images in [*one, *([image] for image in one), one, np.stack([pixels]), np.array([str(path)], object),
                   np.array([str(path)]), (image for image in one), picture.convert("CMYK").convert("RGB")]:
        assert (rows(images) == wanted).all()
    for mode in ("L", "RGBA", "P", "CMYK", "YCbCr", "1", "F"):
        assert (rows(picture.convert(mode))[:, :2] == [6, 4]).all()
    grey = np.full((4, 6), 9, np.uint8)
    assert (rows([grey]) == [6, 4, 9, 9, 9]).all()
    with as_files([picture]) as files:
        pass
    assert not os.path.exists(files[0])  # what was written is gone
    assert pictures_or_rows([[1, 2], [3, 4]]).shape == (2, 2)  # rows as lists
    with pytest.raises(TypeError, match="argument must be"):
        pictures_or_rows([object()])
    with pytest.raises(ValueError, match="shape"):
        rows([np.zeros((4, 6, 7), np.uint8)])


def test_the_checkpoints_folder_is_the_same_everywhere(task, tmp_path, monkeypatch):
    text, rows, labels = task
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/own.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    default, own = classifier(text).fit(rows, labels), classifier(text, weights="clip", model="clip/own.safetensors")
    own.fit(rows, labels).save("c.npz")
    asked = []
    monkeypatch.setattr("jclip_fewshot.classifier.open_source", lambda *given, **more: asked.append(given) or Pixels())
    monkeypatch.chdir("/")
    again = FewShotClassifier.load(tmp_path / "c.npz")
    for one in (default, own, again, pickle.loads(pickle.dumps(own))):
        assert one.source
    wanted = str(tmp_path / "clip/own.safetensors"), str(tmp_path / "clip")
    assert asked == [("ViT-B/32", os.path.abspath(weights_folder())), wanted, wanted, wanted]


def test_scikit_learns_own_checks(task):
    pytest.importorskip("sklearn", minversion="1.6")
    from sklearn.utils.estimator_checks import check_estimator
    results = check_estimator(classifier("none", class_names=None), on_skip=None)
    assert sum(result["status"] == "passed" for result in results) > 40


def test_scikit_learns_tools(task):
    pytest.importorskip("sklearn", minversion="1.2")
    from sklearn.base import clone, is_classifier
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.utils.validation import check_is_fitted
    text, rows, labels = task
    ours = classifier(text)
    assert is_classifier(ours) and clone(ours).get_params()["methods"] == ["gda"]
    with pytest.raises(NotFittedError):
        check_is_fitted(ours)
    with pytest.raises(NotFittedError):
        ours.predict(rows)
    assert cross_val_score(ours, rows, labels, cv=3).min() > 0.5
    search = GridSearchCV(ours, {"methods": [["gda"], ["gda", "tip_adapter"]]}, cv=2).fit(rows, labels)
    check_is_fitted(search.best_estimator_)
    assert search.score(rows, labels) > 0.6 and len(search.best_params_["methods"]) in (1, 2)


def test_classes_are_sorted_whatever_the_order_of_class_names(task):
    """scikit-learn's metrics and ensembles read the columns of probabilities in sorted order."""
    text, rows, labels = task
    order = np.array([3, 0, 5, 1, 4, 2])
    names = [NAMES[index] for index in order]  # not in alphabetical order
    by_name = FewShotClassifier(methods=["gda"], class_names=names, text=text[order], cache=None)
    by_name.fit(rows[::2], np.array(NAMES)[labels[::2]])
    assert by_name.classes_.tolist() == by_name.class_names_ == NAMES
    sorted_names = classifier(text).fit(rows[::2], np.array(NAMES)[labels[::2]])
    np.testing.assert_allclose(by_name.predict_proba(rows), sorted_names.predict_proba(rows), atol=1e-5)
    assert (by_name.score(rows, y=np.array(NAMES)[labels])) > 0.8
    with pytest.raises(ValueError, match="not in sorted order"):  # as VotingClassifier's numbers of sorted names
        by_name.fit(rows, labels)
    places = FewShotClassifier(methods=["gda"], text=text[order], cache=None).fit(
        rows, np.argsort(order)[labels], class_names=names)
    assert (places.predict(rows) == np.argsort(order)[labels]).mean() > 0.8


def test_scikit_learns_metrics_read_the_right_columns(task):
    pytest.importorskip("sklearn", minversion="1.2")
    from sklearn.ensemble import VotingClassifier
    from sklearn.metrics import log_loss, roc_auc_score
    text, rows, labels = task
    order = np.array([3, 0, 5, 1, 4, 2])
    truth = np.array(NAMES)[labels]
    ours = FewShotClassifier(methods=["gda"], class_names=[NAMES[index] for index in order],
                             text=text[order], cache=None)
    probs = ours.fit(rows[::2], truth[::2]).predict_proba(rows[1::2])
    assert log_loss(truth[1::2], probs) < 1 and roc_auc_score(truth[1::2], probs, multi_class="ovr") > 0.9
    voting = VotingClassifier([("a", classifier(text)), ("b", classifier(text, seed=1))], voting="soft")
    assert voting.fit(rows[::2], truth[::2]).score(rows[1::2], truth[1::2]) > 0.8


def test_what_fit_does_not_take_is_named_and_repr_says_the_parameters(task):
    text, rows, labels = task
    ours = classifier("none", class_names=None, seed=4)
    with pytest.raises(TypeError, match="sample_weight"):
        ours.fit(rows, labels, sample_weight=np.ones(len(rows)))
    assert repr(ours) == "FewShotClassifier(text='none', methods=['gda'], seed=4, cache=None)"
    assert len(ours.fit(rows, labels).predict([])) == 0


def test_joblib_after_fit(task, tmp_path):
    joblib = pytest.importorskip("joblib")
    text, rows, labels = task
    ours = classifier(text).fit(rows, labels)
    joblib.dump(ours, tmp_path / "c.joblib")
    assert (joblib.load(tmp_path / "c.joblib").predict(rows) == ours.predict(rows)).all()


@pytest.mark.parametrize("given", [b"jpeg", io.BytesIO(b"jpeg"), [io.BytesIO(b"jpeg")], "https://example.org/a.jpg",
                                   ["http://example.org/a.jpg"]])
def test_bytes_files_and_addresses_are_refused_with_what_is_taken(given):
    with pytest.raises(TypeError, match="path"):
        pictures_or_rows(given)
