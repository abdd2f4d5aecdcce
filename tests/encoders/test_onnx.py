"""Encoders as ONNX files: the references of their authors' libraries, and what small files made here should do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.encoders import onnx_encoder
from jclip_fewshot.encoders.base import Options
from jclip_fewshot.encoders.onnx_encoder import OnnxEncoder, recognises
from jclip_fewshot.encoders.preprocessing import said_in
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.encode import encode_images, encode_texts
from jclip_fewshot.features.sources import open_source
from jclip_fewshot.storage.feature_cache import FeatureCache
from tests.conftest import ROOT
from tests.encoders.onnx_folders import SIZE, WIDTH, make_folder


def open_onnx(path, **options) -> OnnxEncoder:
    return OnnxEncoder(path, "", Options(**options))


pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def references(shared):
    folder = shared / "reference/encoders"
    if not folder.is_dir():
        pytest.skip("no reference encoders")
    return folder


@pytest.fixture(scope="module")
def index(references):
    return json.loads((references / "index.json").read_text())


@pytest.fixture(scope="module")
def photos(shared, references):
    return [Image.open(shared / "photos" / one["file"]) for one in json.loads((references / "photos.json").read_text())]


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_both_towers_in_one_graph_are_the_same_encoder(name, references, photos):
    folder = references / "onnx" / name
    apart, whole = open_onnx(folder), open_onnx(folder / "onnx/model.onnx")
    pixels, ids = np.stack([apart.recipe.pixels(photo) for photo in photos]), apart.tokens(["a red ferry", "water"])
    assert np.abs(unit_rows(apart.images(pixels)) - unit_rows(whole.images(pixels))).max() < 1e-6
    assert np.abs(unit_rows(apart.texts(ids)) - unit_rows(whole.texts(ids))).max() < 1e-6
    assert whole.scale == pytest.approx(apart.scale)


@pytest.mark.parametrize("file", ["clip/onnx/vision_model_fp16.onnx", "clip/onnx/vision_model_quantized.onnx",
                                  "siglip/onnx/vision_model_fp16.onnx"])
def test_smaller_files_of_the_same_model(file, references, photos, index):
    encoder, expected = open_onnx(references / "onnx" / file), np.load(references / "onnx" / file[:file.index("/")]
                                                                       / "expected.npz")
    rows = unit_rows(encoder.images(np.stack([encoder.recipe.pixels(photo) for photo in photos])))
    assert (rows * unit_rows(expected["photo_features"])).sum(axis=1).min() > index["limits"]["quantized_cosine"]
    assert encoder.has_text


# Small files made here

def test_a_folder_encodes_through_workers_and_cache(tmp_path, capsys):
    folder = make_folder(tmp_path / "tiny")
    encoder = open_onnx(folder, batch_size=4)
    assert "no file beside it says the scale" in capsys.readouterr().err and encoder.scale == 100
    rng, paths = np.random.default_rng(0), []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(paths[-1])
    with FeatureCache(tmp_path / "cache") as cache:
        rows, bad = encode_images(encoder, paths, workers=2, cache=cache)
        direct = encoder.images(np.stack([encoder.recipe.pixels(Image.open(path)) for path in paths]))
        np.testing.assert_allclose(rows, unit_rows(direct), atol=1e-6)
        assert not bad and encoder.width == WIDTH
        again = open_onnx(folder, batch_size=4, cache=cache)
        assert again.fingerprint == encoder.fingerprint
        encode_images(again, paths, workers=0, cache=cache,
                      on_start=lambda _: pytest.fail("encoded a second time"))
        one = encode_texts(encoder, [["a cat"], ["dog", "red dog"]], cache=cache)
        assert one.shape == (2, WIDTH) and np.allclose(np.linalg.norm(one, axis=1), 1)


def test_the_fingerprint_follows_every_file(tmp_path):
    folder = make_folder(tmp_path / "tiny")
    known = {open_onnx(folder).fingerprint}
    for name, change in (("preprocessor_config.json", {"do_normalize": False}), ("config.json", {"x": 1}),
                         ("tokenizer_config.json", {"model_max_length": 7})):
        path = folder / name
        path.write_text(json.dumps({**said_in(path), **change}))
        known.add(open_onnx(folder).fingerprint)
    assert len(known) == 4
    assert open_onnx(folder, output="image_embeds").fingerprint not in known


def test_a_batch_that_the_graph_fixes(tmp_path):
    encoder = open_onnx(make_folder(tmp_path / "one", batch=1), batch_size=8)
    assert encoder.batch_size == 1 and encoder.images(np.zeros((1, SIZE, SIZE, 3), np.uint8)).shape == (1, WIDTH)


def test_scale_out_of_safetensors(tmp_path):
    from safetensors.numpy import save_file
    folder = make_folder(tmp_path / "tiny")
    save_file({"logit_scale": np.float32([np.log(42.0)])}, folder / "model.safetensors")
    assert open_onnx(folder).scale == pytest.approx(42, rel=1e-5)


def test_long_sentences_are_cut_and_said(tmp_path, capsys):
    encoder = open_onnx(make_folder(tmp_path / "tiny"))
    ids = encoder.tokens(["cat " * 20, "a dog"])
    assert ids[0].tolist() == [2] * 7 + [1] and ids[1].tolist() == [4, 3, 1] + [0] * 5
    assert "1 of 2 sentences" in capsys.readouterr().err


def test_an_image_tower_is_a_second_encoder_and_not_the_first(tmp_path, capsys):
    image, both = make_folder(tmp_path / "image", text=False), make_folder(tmp_path / "both")
    source = open_source([str(both), str(image)], "weights")
    assert [part.name for part in source.parts] == ["both", "image"] and source.clip is None
    with pytest.raises(UserError, match="image has no text tower"):
        open_source(str(image), "weights").texts(["a"], [["a"]])
    with pytest.raises(UserError, match="output x names an output of an ONNX encoder"):
        open_source("ViT-B/32", "weights", output="x")
    open_source(str(both), "weights", precision="float16")
    assert "computes in float32, as its file has it" in capsys.readouterr().err


@pytest.mark.parametrize("spoil, message", [
    (lambda f: (f / "preprocessor_config.json").unlink(), "neither preprocessor_config.json nor timm's"),
    (lambda f: (f / "preprocessor_config.json").write_text("{"), "cannot be read as JSON"),
    (lambda f: (f / "preprocessor_config.json").write_text('{"size": "large", "image_processor_type": "X"}'),
     "says no resample"),
    (lambda f: (f / "preprocessor_config.json").write_text('{"size": [], "feature_extractor_type": ""}'),
     "says no resample"),
    (lambda f: (f / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}'),
     r"ONNX Runtime failed on pixel_values \(1, 3, 224, 224\) .* the JSON beside it its own"),
    (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "is no tokenizer"),
    (lambda f: (f / "config.json").write_text("{}"), "names a padding token"),
    (lambda f: (f / "onnx/vision_model.onnx").write_bytes(b"no graph"), "is no ONNX file|cannot read it"),
    (lambda f: (f / "onnx/vision_model.onnx").rename(f / "onnx/a.onnx"), "name the one to use"),
    (lambda f: [p.unlink() for p in (f / "onnx").glob("vision*")], "text tower alone"),
])
def test_mistakes_are_one_line(spoil, message, tmp_path):
    folder = make_folder(tmp_path / "tiny")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_onnx(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place, message", [("../weights.bin", "outside its folder"), ("/etc/passwd", "outside"),
                                            ("gone.bin", "keeps its weights in gone.bin")])
def test_weights_outside_the_folder_are_refused(place, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_onnx(make_folder(tmp_path / "tiny", external=place))


def test_weights_beside_the_graph(tmp_path):
    plain, beside = make_folder(tmp_path / "plain"), make_folder(tmp_path / "beside", external="weights.bin")
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    assert np.array_equal(open_onnx(plain).images(pixels), open_onnx(beside).images(pixels))
    before = open_onnx(beside).fingerprint
    (beside / "onnx/weights.bin").write_bytes(bytes(36))
    assert open_onnx(beside).fingerprint != before


def test_an_unknown_output_is_asked_for(tmp_path):
    folder = make_folder(tmp_path / "classifier", text=False, image_output="logits")
    with pytest.raises(UserError, match="gives logits; none is known .* output"):
        open_onnx(folder)
    with pytest.raises(UserError, match="gives logits, and no rows"):
        open_onnx(folder, output="rows")
    assert open_onnx(folder, output="logits").width == WIDTH


def test_what_is_recognised(tmp_path):
    folder = make_folder(tmp_path / "tiny")
    assert recognises(folder) and recognises(folder / "onnx/text_model.onnx")
    assert not recognises(Path("ViT-B/32")) and not recognises(tmp_path) and not recognises(folder / "config.json")
    shutil.move(folder / "onnx/vision_model.onnx", folder / "model.onnx")
    shutil.rmtree(folder / "onnx")
    assert open_onnx(folder).has_text is False


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"ONNX needs onnx: pip install '\.\[onnx\]'"):
        open_onnx(folder, device="cpu")


@pytest.mark.parametrize("first", ["jittor", "onnxruntime"])
def test_jittor_and_onnx_runtime_get_on_in_either_order(first, tmp_path):
    make_folder(tmp_path / "tiny")
    code = ("import numpy as np, sys\nfrom jclip_fewshot.backend import runtime\n"
            + ("runtime.start('cpu')\nimport onnxruntime\n" if first == "jittor" else
               "import onnxruntime\nruntime.start('cpu')\n")
            + "from jclip_fewshot.backend import jt\nfrom jclip_fewshot.encoders import open_encoder\n"
            f"encoder = open_encoder({str(tmp_path / 'tiny')!r})\n"
            "for _ in range(3):\n"
            "    a = jt.array(np.eye(5, dtype=np.float32)); assert ((a @ a).numpy() == np.eye(5)).all()\n"
            f"    assert encoder.images(np.full((2, {SIZE}, {SIZE}, 3), 90, np.uint8)).std() > 0\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()[-800:]


def test_no_torch_is_wanted():
    code = f"import sys; sys.modules['torch'] = None; import {onnx_encoder.__name__}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
