"""Which family opens a model, and what an encoder says of its texts."""

import json
import pickle

import numpy as np
import pytest

from jclip_fewshot.clip.checkpoint import Architecture, Conventions, Tower, layout, write_safetensors
from jclip_fewshot.clip.checkpoint.architecture import OPENAI, to_metadata
from jclip_fewshot.encoders import FAMILIES, open_encoder
from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.errors import UserError

from ..clip.clip_reference import random_weights

SIZES = Architecture(16, 32, 1, 64, 16, 20, 100, 64, 1, 1)


@pytest.fixture
def checkpoint(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", random_weights(layout(SIZES)))
    return tmp_path / "a.safetensors"


def test_a_new_family_is_a_line(tmp_path, monkeypatch):
    """Ten lines: a file that recognises and opens, and its line in the table."""
    class Mean(Encoder):
        has_text = False

        def images(self, pixels, _depth="rows"):
            return pixels.reshape(len(pixels), -1, 3).mean(1, dtype=np.float32)

    def open_mean(path, name, options):
        return Mean(name, path.read_text(), "float32", int(path.read_text()), 3, 100.0, options.batch_size or 2)

    monkeypatch.setitem(FAMILIES, "mean", (lambda path: path.suffix == ".mean", open_mean))
    (tmp_path / "eight.mean").write_text("8")
    encoder = open_encoder(tmp_path / "eight.mean", batch_size=5)
    assert encoder.images(np.ones((1, 8, 8, 3), np.uint8)).tolist() == [[1, 1, 1]] and encoder.batch_size == 5


def test_models_of_no_family(tmp_path):
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"a": np.ones(3, np.float32)}, 4))
    with pytest.raises(UserError, match="other.pkl is neither a CLIP .* nor a ResNet .* nor a folder of ONNX files"):
        open_encoder(tmp_path / "other.pkl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is a folder without a checkpoint"):
        open_encoder(tmp_path / "empty")
    with pytest.raises(UserError, match="neither a file or folder nor one of RN50"):
        open_encoder(tmp_path / "absent")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678{")
    with pytest.raises(UserError, match="cut.safetensors"):
        open_encoder(tmp_path / "cut.safetensors")


def test_an_encoder_says_where_its_texts_end(checkpoint):
    encoder = open_encoder(checkpoint)
    tokens = np.array([[5, 99, 0, 0], [5, 6, 7, 99]], np.int32)
    assert encoder.lengths(tokens).tolist() == [2, 4]


def test_the_same_weights_computed_otherwise_are_another_encoder(checkpoint, tmp_path):
    gelu = Conventions(Tower("gelu"), Tower("gelu"))
    write_safetensors(tmp_path / "gelu.safetensors", random_weights(layout(SIZES)), to_metadata(gelu))
    one, other = open_encoder(checkpoint), open_encoder(tmp_path / "gelu.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert one.fingerprint != other.fingerprint and np.abs(one.images(pixels) - other.images(pixels)).max() > 1e-3


def test_a_clip_with_another_tokenizer_encodes_images_alone(tmp_path):
    how = Conventions(Tower(), Tower(), tokenizer="bert-base-uncased")
    write_safetensors(tmp_path / "a.safetensors", random_weights(layout(SIZES)), to_metadata(how))
    encoder = open_encoder(tmp_path / "a.safetensors")
    assert not encoder.has_text
    with pytest.raises(UserError, match="its texts need the tokenizer bert-base-uncased"):
        encoder.tokens(["a cat"])


def test_pixels_of_another_size_than_the_tower_takes_are_refused(tmp_path):
    said = {**to_metadata(OPENAI), "preprocessing": json.dumps({"preprocess_cfg": {"size": 64}})}
    write_safetensors(tmp_path / "a.safetensors", random_weights(layout(SIZES)), said)
    with pytest.raises(UserError, match="makes 64 x 64 pixels, its image tower takes 32 x 32"):
        open_encoder(tmp_path / "a.safetensors")
