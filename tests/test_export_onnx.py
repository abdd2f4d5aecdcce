"""A run as one ONNX file: ONNX Runtime and the documentation's lines answer as this package does."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.checkpoint import Architecture, Conventions, Tower, layout
from jclip_fewshot.clip.checkpoint.architecture import OPENAI
from jclip_fewshot.clip.model import build_model
from jclip_fewshot.combine.linear import Linear
from jclip_fewshot.encoders import open_encoder
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.export import Export, save_onnx
from jclip_fewshot.export_onnx import save_classifier, save_towers
from tests.clip.clip_reference import SIZES, random_weights
from tests.conftest import ROOT

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
CLASSES = 5
CASES = {
    "vit": ("vit", OPENAI),
    "resnet": ("resnet", OPENAI),
    "gelu, narrow heads, mean of the patches": (
        "vit", Conventions(image=Tower("gelu", 32, 1e-6), text=Tower("gelu_tanh", 16), pool="patches",
                           text_pool="last", causal=False)),
    "text read at an id": ("vit", Conventions(Tower(), Tower(), text_pool="end", end=99)),
}


def encoder_of(case, vocabulary=100):
    kind, how = CASES[case]
    sizes = Architecture(**{**SIZES[kind], "vocab_size": vocabulary}, conventions=how)
    model = build_model(random_weights(layout(sizes)), conventions=how)
    return ClipEncoder(model, kind, "0" * 32, 4)


@pytest.fixture(scope="module", params=list(CASES))
def encoder(request):
    return encoder_of(request.param)


def classifier(width, seen=None):
    rng = np.random.default_rng(0)
    seen = np.ones(CLASSES, bool) if seen is None else np.array(seen, bool)
    weight = (5 * rng.standard_normal((CLASSES, width)) * seen[:, None]).astype(np.float32)
    bias = (rng.standard_normal(CLASSES) * seen).astype(np.float32)
    text = unit_rows(rng.standard_normal((CLASSES, width)))
    return Linear(weight, bias, seen, text, 20.0, 0.3)


def run(path, pixels):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(["probabilities", "image_embeds"], {"pixels": pixels})


@pytest.mark.parametrize("seen", [None, [1, 1, 0, 1, 0]])
@pytest.mark.parametrize("uint8", [False, True])
def test_probabilities_are_those_of_the_linear_form(encoder, seen, uint8, tmp_path):
    linear = classifier(encoder.width, seen)
    assert save_classifier(tmp_path / "a.onnx", linear, encoder, uint8, {}) < 1e-5
    pixels = np.random.default_rng(1).integers(0, 256, (3, *encoder.recipe.size, 3), dtype=np.uint8)
    probs, rows = run(tmp_path / "a.onnx", pixels if uint8 else encoder.recipe.normalized(pixels))
    ours = encoder.images(pixels)
    assert np.abs(unit_rows(rows) - unit_rows(ours)).max() < 1e-5
    assert np.abs(probs - linear.probs(ours)).max() < 1e-4
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_towers_read_back_are_the_same_encoder(tmp_path):
    """With CLIP's own vocabulary the folder needs no tokenizer.json."""
    encoder = encoder_of("vit", 49408)
    encoder.recipe = replace(encoder.recipe, mean=(0.5, 0.4, 0.3))
    assert save_towers(tmp_path / "towers", encoder) < 1e-5
    again = open_encoder(tmp_path / "towers")
    assert again.recipe == encoder.recipe and again.scale == pytest.approx(encoder.scale)
    sentences = ["a cat", "two red dogs & a bird"]
    assert np.array_equal(again.tokens(sentences), encoder.tokens(sentences))
    pixels = np.random.default_rng(1).integers(0, 256, (3, *encoder.recipe.size, 3), dtype=np.uint8)
    for found, wanted in ((again.images(pixels), encoder.images(pixels)),
                          (again.texts(again.tokens(sentences)), encoder.texts(encoder.tokens(sentences)))):
        assert np.abs(unit_rows(found) - unit_rows(wanted)).max() < 1e-5


@pytest.mark.parametrize("case", ["gelu, narrow heads, mean of the patches", "text read at an id"])
def test_text_towers_of_other_families(case, tmp_path):
    assert save_towers(tmp_path / "towers", encoder_of(case)) < 1e-5  # compared with texts of several lengths


class OneSource:
    """As much of a source as an export asks for."""

    def __init__(self, encoder):
        self.encoder = encoder

    def record(self):
        return {"model": "tiny.safetensors", "weights_digest": "00", "image_size": self.encoder.recipe.size[0]}


def test_the_documentations_lines_and_the_metadata(tmp_path, monkeypatch, capsys):
    encoder, names = encoder_of("vit"), ["Ähre", "b", "c", "d", "e"]
    linear = classifier(encoder.width)
    save_onnx(tmp_path / "model.onnx", Export(linear, {"clap": 1.0}, 50.0, 60.0), names, OneSource(encoder), uint8=True)
    said = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == names and json.loads(said["heads"]) == ["clap"]
    assert json.loads(said["mean"]) == list(encoder.recipe.mean) and said["uint8"] == "true"
    assert said["preprocessing"].startswith("resize the short side to 32 (Pillow, bicubic), take the middle")
    rng, paths, pixels = np.random.default_rng(2), [], []
    for number, size in enumerate([(61, 40), (33, 90), (32, 32), (200, 201)]):
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
        pixels.append(encoder.recipe.pixels(image))
    code = re.search(r"```python\n(import json.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["answer.py", *paths])
    exec(code.group(1), {})
    answers = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    wanted = linear.probs(encoder.images(np.stack(pixels))).argmax(axis=1)
    assert answers == [names[k] for k in wanted]


def test_other_rows_are_not_written(tmp_path):
    encoder = encoder_of("vit")
    encoder.images = lambda pixels: np.random.default_rng(0).standard_normal((len(pixels), encoder.width))
    with pytest.raises(UserError, match="rows differ from this program's by .*nothing was written"):
        save_classifier(tmp_path / "a.onnx", classifier(encoder.width), encoder, False, {})
    assert not list(tmp_path.iterdir())


def test_what_has_no_tower_is_one_line(tmp_path, monkeypatch):
    export = Export(classifier(4), {}, None, None)
    with pytest.raises(UserError, match="trained on a file of features"):
        save_onnx(tmp_path / "a.onnx", export, "abcde", object())
    encoder = encoder_of("vit")
    model, encoder.model = encoder.model, None
    with pytest.raises(UserError, match="is no CLIP in Jittor"):
        save_onnx(tmp_path / "a.onnx", export, "abcde", OneSource(encoder))
    encoder.model = model
    monkeypatch.setattr("jclip_fewshot.export_onnx.LARGEST", 1000)
    with pytest.raises(UserError, match="one ONNX file holds 2,048"):
        save_onnx(tmp_path / "a.onnx", Export(classifier(encoder.width), {}, None, None), "abcde", OneSource(encoder))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install '\.\[onnx\]'"):
        save_towers(tmp_path / "towers", encoder)
    assert not list(tmp_path.iterdir())
