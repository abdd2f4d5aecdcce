"""--precision: what auto takes, and that rows of different precisions are kept apart."""

import json

import numpy as np
import pytest

from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture, layout, write_safetensors
from jclip_fewshot.encoders import open_encoder, precision
from jclip_fewshot.storage.feature_cache import FeatureCache

from ..clip.clip_reference import SIZES, random_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    if not cpu.available():
        pytest.skip("bfloat16 is for the CPU")
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_safetensors(file, random_weights(layout(Architecture(**SIZES["vit"]))))
    return file


def tokens(sentences):
    return np.array([[98, 1 + len(sentence) % 90, 99] for sentence in sentences], np.int32)


def opened(checkpoint, dtype, cache=None):
    return open_encoder(checkpoint, dtype=dtype, cache=cache, tokenize=tokens)


def test_auto_takes_bfloat16_where_it_is_fast_and_holds(checkpoint, tmp_path, monkeypatch, capsys):
    cache = FeatureCache(tmp_path)
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "this processor has no AVX512_BF16")
    single = opened(checkpoint, "auto", cache)
    assert single.precision == "float32" and not (tmp_path / precision.VERDICTS).exists()
    assert "warning" not in capsys.readouterr().err  # auto needs no line

    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    monkeypatch.setattr(cpu, "bfloat16_speedup", lambda: 0.6)
    assert opened(checkpoint, "auto", cache).precision == "float32"
    monkeypatch.setattr(cpu, "bfloat16_speedup", lambda: 1.8)
    half = opened(checkpoint, "auto", cache)
    assert half.precision == "bfloat16" == half.model.precision
    assert half.fingerprint != single.fingerprint and half.weights_digest == single.weights_digest
    verdicts = json.loads((tmp_path / precision.VERDICTS).read_text())
    assert 0.9995 <= verdicts[half.weights_digest] < 1

    monkeypatch.setattr(precision, "least_cosine", lambda encoder: pytest.fail("measured twice"))
    assert opened(checkpoint, "auto", cache).precision == "bfloat16"
    assert opened(checkpoint, "float32", cache).fingerprint == single.fingerprint
    assert opened(checkpoint, "bfloat16", cache).fingerprint == half.fingerprint


def test_auto_keeps_float32_where_features_would_change(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    monkeypatch.setattr(cpu, "bfloat16_speedup", lambda: 1.8)
    for cosine in (0.9994, float("nan")):
        monkeypatch.setattr(precision, "least_cosine", lambda encoder: cosine)
        assert opened(checkpoint, "auto").precision == "float32"
        assert "bfloat16 would change its features" in capsys.readouterr().err
    assert opened(checkpoint, "bfloat16").precision == "bfloat16"  # asked for by name


def test_a_damaged_verdict_is_measured_again(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    monkeypatch.setattr(cpu, "bfloat16_speedup", lambda: 1.8)
    (tmp_path / precision.VERDICTS).write_text('{"a": ')
    assert opened(checkpoint, "auto", FeatureCache(tmp_path)).precision == "bfloat16"
    assert len(json.loads((tmp_path / precision.VERDICTS).read_text())) == 1


def test_the_speed_of_bfloat16_is_measured():
    if not cpu.available():
        pytest.skip("bfloat16 is for the CPU")
    assert 0.01 < cpu.bfloat16_speedup() < 100
