"""Sources of several encoders: files of features, extra files, checkpoints, and the errors of each."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.classifier import FewShotClassifier
from jclip_fewshot.clip.checkpoint import write_safetensors
from jclip_fewshot.data import demo
from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features import sources
from jclip_fewshot.run import Run
from jclip_fewshot.task import Task
from tests.encoders.random_resnet import random_tensors

PATHS, NAMES = ["a/1.jpg", "b/1.jpg", "c/1.jpg"], ["a", "b", "c"]


def rows_of(width, seed):
    return np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    """Two feature files with text and one without: their names."""
    for name, width, seed, text in (("one", 8, 1, True), ("two", 5, 2, True), ("extra", 6, 3, False)):
        arrays = {"path": np.array(PATHS), "feature": rows_of(width, seed)}
        arrays.update({"text": rows_of(width, seed + 10), "classes": np.array(NAMES)} if text else {})
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return [str(tmp_path / f"{name}.npz") for name in ("one", "two", "extra")]


def task_of(source):
    return Task(source.images(None, PATHS)[0], [0, 1, 2], source.texts(NAMES, []), None, source.scale, source.parts)


def test_rows_stand_side_by_side_each_counting_alike(files):
    source = sources.open_source((), "", files[:2], files[2:])
    assert [(part.name, part.width, part.has_text) for part in source.parts] == [
        ("one", 8, True), ("two", 5, True), ("extra", 6, False)]
    rows, bad = source.images(None, PATHS)
    expected = np.concatenate([unit_rows(rows_of(8, 1)), unit_rows(rows_of(5, 2)), unit_rows(rows_of(6, 3))], axis=1)
    np.testing.assert_allclose(rows, expected / np.sqrt(3), atol=1e-6)
    assert not bad and not source.texts(NAMES, [])[:, 13:].any()


def test_a_run_opens_all_of_its_files_again(files, tmp_path):
    source = sources.open_source((), "", files[:2], files[2:])
    saved, task = source.record(), task_of(source)
    assert [one["name"] for one in saved["others"]] == ["two", "extra"]
    given = SimpleNamespace(model=(), weights="", features=(), features_extra=())
    run = Run(tmp_path, SimpleNamespace(encoder=saved, folder=""))
    where = run.where_sources(given)
    again = sources.reopen_source(saved, where, PATHS, NAMES, task)
    np.testing.assert_array_equal(again.images(None, PATHS)[0], source.images(None, PATHS)[0])
    np.savez(tmp_path / "wider.npz", path=np.array(PATHS), feature=rows_of(7, 3))
    given.features_extra = (str(tmp_path / "wider.npz"),)
    where = run.where_sources(given)
    with pytest.raises(UserError, match="wider.npz is not the feature file that the run was trained with"):
        sources.reopen_source(saved, where, PATHS, NAMES, task)
    given.features = ("one.npz",)
    with pytest.raises(UserError, match="--features: 1 given, but .* with 2 such"):
        run.where_sources(given)


def test_of_one_encoder_the_record_and_the_source_are_as_before(files):
    source = sources.open_source("ViT-B/32", "", files[0])
    assert source.parts == () and set(source.record()) == {"features", "features_digest"}


def test_what_is_refused(files, tmp_path):
    with pytest.raises(UserError, match="holds.*no array .text.|has no array .text."):
        sources.open_source((), "", (), files[2]).texts(["a"], [["a"]])
    for given in (([files[0], files[0]], ""), (files[0], files[0])):
        with pytest.raises(UserError, match="features .*one.npz is given twice"):
            sources.open_source((), "", *given)
    with pytest.raises(UserError, match="model nowhere.pt is given twice"):  # found before one is read
        sources.open_source(["nowhere.pt", "nowhere.pt"], "")
    with pytest.raises(UserError, match="features_extra .*two.npz: holds text rows"):
        sources.open_source((), "", files[0], files[1])
    (tmp_path / "copy.npz").write_bytes((tmp_path / "one.npz").read_bytes())
    with pytest.raises(UserError, match="copy is the same encoder as one"):
        sources.open_source((), "", [files[0], str(tmp_path / "copy.npz")])
    np.savez(tmp_path / "pathless.npz", feature=rows_of(4, 1))
    with pytest.raises(UserError, match="features_extra .*pathless.npz.*path"):
        sources.open_source((), "", files[0], str(tmp_path / "pathless.npz"))
    source = sources.open_source((), "", files[0], files[2])
    with pytest.raises(UserError, match="features.* no feature for d/1.jpg"):
        source.images(None, ["d/1.jpg"])
    with pytest.raises(UserError, match="no encoder is named"):
        sources.open_source((), "")


def test_a_resnet_beside_a_clip(tmp_path):
    if not demo.CHECKPOINT.is_file():
        pytest.skip("no demo_clip.safetensors")
    Image.new("RGB", (70, 90), "teal").save(tmp_path / "1.png")
    tower = tmp_path / "moco.safetensors"
    write_safetensors(tower, {f"module.base_encoder.{name}": value for name, value in random_tensors().items()})
    source = sources.open_source([str(tower), str(demo.CHECKPOINT)], "")
    assert [(part.name, part.has_text) for part in source.parts] == [("demo_clip", True), ("moco", False)]
    rows, bad = source.images(tmp_path, ["1.png"])
    assert rows.shape == (1, 64 + source.parts[1].width) and not bad and (rows[0, 64:] != 0).any()
    with pytest.raises(UserError, match="moco has no text tower"):
        sources.open_source(str(tower), "").texts(["a"], [["a"]])
    broken = {name: value for name, value in random_tensors().items() if name != "bn1.bias"}
    write_safetensors(tower, broken)
    with pytest.raises(UserError, match="moco.safetensors: its tensors .* missing: bn1.bias$"):
        sources.open_source([str(demo.CHECKPOINT), str(tower)], "")


def test_a_checkpoint_of_neither_kind(tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"layer.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(UserError, match="other.safetensors is neither a CLIP .* nor a ResNet of torchvision's layout"):
        sources.open_source(str(tmp_path / "other.safetensors"), "")


class Counting(Encoder):
    """A row is the mean colour beside a constant; counts the images that it is given."""

    def __init__(self):
        super().__init__("counting", "counting", "float32", 8, 4, 100.0, 2)
        self.seen = 0

    def images(self, pixels, _depth="rows"):
        self.seen += len(pixels)
        return np.concatenate([pixels.mean(axis=(1, 2)), pixels[:, :1, 0, 0]], axis=1) + np.float32(1)


def test_views_are_averaged_and_each_is_kept(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("1.png", "2.png"):
        Image.fromarray(rng.integers(0, 255, (10, 20, 3), np.uint8).astype(np.uint8)).save(tmp_path / name)
    encoder = Counting()
    monkeypatch.setattr(sources, "open_encoder", lambda *_, **__: encoder)
    source = sources.open_source("m.pt", "absent", cache=str(tmp_path / "cache"))
    paths = ["1.png", "2.png"]
    one = source.images(tmp_path, paths)[0]
    assert encoder.seen == 2
    two, bad = source.images(tmp_path, paths, test_views=2)
    assert encoder.seen == 4 and not bad  # the plain view was there
    plain = sources.open_source("m.pt", "absent")
    squeezed = unit_rows(encoder.images(np.stack([
        np.asarray(Image.open(tmp_path / name).resize((8, 8), Image.BICUBIC)) for name in paths])))
    np.testing.assert_allclose(two, unit_rows(one + squeezed), atol=1e-6)
    np.testing.assert_allclose(plain.images(tmp_path, paths, test_views=2)[0], two, atol=1e-6)
    before = encoder.seen
    source.images(tmp_path, paths, test_views=5)
    assert encoder.seen == before + 6  # three views more
    source.images(tmp_path, paths, test_views=5)
    assert encoder.seen == before + 6


def test_files_that_are_not_there_are_looked_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "open_encoder", lambda *_, **__: Counting())
    source = sources.open_source("m.pt", "absent", cache=str(tmp_path / "cache"))
    rows, bad = source.images(tmp_path, ["nope.jpg"], test_views=100_000)
    assert not rows.any() and "No such file" in bad[0] and not list(tmp_path.iterdir())


def test_views_are_in_the_forecast(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    monkeypatch.setattr(sources, "open_encoder", lambda *_, **__: Counting())
    monkeypatch.setattr(sources, "BATCHES_TO_SAY", 1)
    sources.open_source("m.pt", "absent").images(tmp_path, ["1.png"], test_views=5)
    assert capsys.readouterr().err.count("1 images x 5 views to encode, about") == 1


def test_an_image_tower_alone_serves_who_knows_nothing_of_the_classes_but_shots(tmp_path):
    tower, rng, labels = tmp_path / "moco.safetensors", np.random.default_rng(0), ["dark", "light"] * 3
    write_safetensors(tower, random_tensors())
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for path, label in zip(paths, labels):
        shade = (250 if label == "light" else 5) * np.ones((40, 50, 3))
        Image.fromarray((shade + rng.integers(0, 5, shade.shape)).astype(np.uint8)).save(path)
    found = FewShotClassifier(str(tower), text="none", methods="fast", augment=0, cache=None).fit(paths, labels)
    assert found.predict(paths).tolist() == labels
    with pytest.raises(UserError, match="moco has no text tower: give a CLIP with it"):
        FewShotClassifier(str(tower), augment=0, cache=None).fit(paths, labels)
