"""Which source a run takes its rows from, and that another one than it was trained with is refused."""

import numpy as np
import pytest

from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features import sources
from jclip_fewshot.task import Task

NAMES, PATHS = ["ant", "bee", "cat"], ["a/1.jpg", "b/1.jpg", "c/1.jpg"]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def rows():
    return unit(np.random.default_rng(0).standard_normal((3, 8)))


def save(path, rows, text, more=0):
    extra = unit(np.random.default_rng(1).standard_normal((more, 8))) if more else rows[:0]
    np.savez(path, path=np.array(PATHS + [f"t/{i}.jpg" for i in range(more)]), feature=np.vstack([rows, extra]),
             text=text, classes=np.array(NAMES))
    return str(path)


def reopened(saved, file, rows, text):
    return sources.reopen_source(saved, [(file, "")], PATHS, NAMES, Task(rows, [0, 1, 2], text))


def test_a_changed_feature_file_is_noticed(rows, tmp_path, capsys):
    text = unit(rows + 1)
    file = save(tmp_path / "f.npz", rows, text)
    saved = sources.open_source("", "", file).record()
    reopened(saved, file, rows, text)
    assert capsys.readouterr().err == ""
    grown = save(tmp_path / "grown.npz", rows, text, more=4)  # test images came later: what was learned is the same
    assert len(reopened(saved, grown, rows, text).images(tmp_path, ["t/3.jpg"])[0]) == 1
    assert "has changed" in capsys.readouterr().err
    for other_rows, other_text in ((unit(rows[::-1] + 0.1), text), (rows, unit(text + rows[::-1]))):
        with pytest.raises(UserError, match="not the feature file that the run was trained with"):
            reopened(saved, save(tmp_path / "other.npz", other_rows, other_text), rows, text)
    np.savez(tmp_path / "less.npz", path=np.array(PATHS[:1]), feature=rows[:1], text=text, classes=np.array(NAMES))
    with pytest.raises(UserError, match="cannot be compared"):
        reopened(saved, str(tmp_path / "less.npz"), rows, text)


class OtherClip(Encoder):
    def __init__(self, weights_digest, precision="float32", width=8):
        super().__init__("clip", weights_digest, precision, 4, width, 100.0, 2)
        self.batches = 0

    def images(self, pixels, _depth="rows"):
        self.batches += 1
        return np.ones((len(pixels), self.width), np.float32)


def test_another_checkpoint_is_refused_and_another_precision_said(rows, monkeypatch, capsys):
    where = [("m.pt", "absent")]
    task = Task(rows, [0, 1, 2], rows)
    opened = lambda saved: sources.reopen_source(saved, where, PATHS, NAMES, task)  # noqa: E731
    monkeypatch.setattr(sources, "open_encoder", lambda *_, **__: OtherClip("aaaa"))
    saved = sources.open_source("m.pt", "absent").record()
    opened(saved)
    assert "warning" not in capsys.readouterr().err
    opened({**saved, "precision": "float16"})
    assert "trained in float16 and is tested in float32" in capsys.readouterr().err
    monkeypatch.setattr(sources, "open_encoder", lambda *_, **__: OtherClip("bbbb", width=16))
    with pytest.raises(UserError, match="m.pt is not the checkpoint that the run was trained with .width 16 now, 8"):
        opened(saved)
    with pytest.raises(UserError, match="train again"):
        opened({name: value for name, value in saved.items() if name != "weights_digest"})


def test_weights_on_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="weights .*no folder"):
        sources.open_source("ViT-B/32", str(tmp_path / "file"))


def test_a_long_encoding_is_forecast(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "open_encoder", lambda *_, **__: OtherClip("aaaa"))
    source = sources.open_source("m.pt", "absent", cache=str(tmp_path / "cache"))
    capsys.readouterr()
    source._forecast("shots", 3, 0)
    assert capsys.readouterr().err == ""  # soon over: nothing to say
    source._forecast("shots", 1496, 10)
    said = capsys.readouterr().err
    assert "shots: 1,496 images x 10 views to encode, about" in said and "views/s); 1 MB in" in said
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="give another cache"):
        source._forecast("shots", 1496, 10)


class Broken:
    def images(self, _root, paths, **_how):
        return np.zeros((len(paths), 4), np.float32), {i: "empty" for i, path in enumerate(paths) if "bad" in path}


def test_skip_bad_without_one_readable_image_is_refused(capsys):
    kept = sources.labelled_rows(Broken(), ".", [("bad1", 0), ("good", 1)], skip_bad=True)
    assert kept[1] == [("good", 1)] and "bad1" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 2 training images can be read"):
        sources.labelled_rows(Broken(), ".", [("bad1", 0), ("bad2", 1)], skip_bad=True)
    with pytest.raises(UserError, match="leave it out with skip_bad"):
        sources.labelled_rows(Broken(), ".", [("bad1", 0), ("good", 1)], skip_bad=False)
    assert sources.labelled_rows(Broken(), ".", [], skip_bad=True)[1] == []


def test_a_sentence_that_is_too_long_names_its_class():
    class Short(OtherClip):
        def tokens(self, sentences):
            from jclip_fewshot.clip.tokenizer import token_array
            return token_array(sentences, 8)

    source = sources.EncoderSource(Short("a"), None, 0, {"model": "m.pt"})
    with pytest.raises(UserError, match="class bee: text of 13 tokens, 8 fit.*shorten the class's name") as error:
        source.texts(["ant", "bee"], [["a photo of an ant."], ["a photo of a bee, a very small one."]])
    assert "truncate" not in str(error.value)
