"""--precision: what auto takes, and that rows of different precisions are kept apart."""

import json

import numpy as np
import pytest

from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture, layout, write_safetensors
from jclip_fewshot.encoders import clip_encoder, open_encoder
from jclip_fewshot.storage.feature_cache import FeatureCache

from ..clip.clip_reference import SIZES, random_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    if not cpu.available():
        pytest.skip("bfloat16 is for the CPU")
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_safetensors(file, random_weights(layout(Architecture(**SIZES["vit"]))))
    return file


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    monkeypatch.setattr(clip_encoder.ClipEncoder, "tokens", lambda _, sentences: np.array(
        [[98, 1 + len(sentence) % 90, 99] for sentence in sentences], np.int32))


def opened(checkpoint, dtype, cache=None):
    return open_encoder(checkpoint, dtype=dtype, cache=cache)


def test_auto_takes_bfloat16_where_it_is_fast_and_holds(checkpoint, tmp_path, monkeypatch, capsys):
    cache = FeatureCache(tmp_path)
    monkeypatch.setattr(cpu, "bfloat16_is_faster", lambda: False)
    single = opened(checkpoint, "auto", cache)
    assert single.precision == "float32" and not (tmp_path / clip_encoder.VERDICTS).exists()
    assert "warning" not in capsys.readouterr().err  # auto needs no line

    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    monkeypatch.setattr(cpu, "bfloat16_is_faster", lambda: True)
    half = opened(checkpoint, "auto", cache)
    assert half.precision == "bfloat16" == half.model.precision
    assert half.fingerprint != single.fingerprint and half.weights_digest == single.weights_digest
    verdicts = json.loads((tmp_path / clip_encoder.VERDICTS).read_text())
    assert 0.9995 <= verdicts[half.weights_digest] < 1

    monkeypatch.setattr(clip_encoder, "least_cosine", lambda _: pytest.fail("measured twice"))
    assert opened(checkpoint, "auto", cache).precision == "bfloat16"
    assert opened(checkpoint, "float32", cache).fingerprint == single.fingerprint
    assert opened(checkpoint, "bfloat16", cache).fingerprint == half.fingerprint


def test_auto_keeps_float32_where_features_would_change(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    monkeypatch.setattr(cpu, "bfloat16_is_faster", lambda: True)
    for cosine in (0.9994, float("nan")):
        monkeypatch.setattr(clip_encoder, "least_cosine", lambda _: cosine)
        assert opened(checkpoint, "auto").precision == "float32"
        assert "bfloat16 would change its features" in capsys.readouterr().err
    assert opened(checkpoint, "bfloat16").precision == "bfloat16"  # asked for by name


def test_a_clip_without_a_tokenizer_is_compared_by_its_images(checkpoint, monkeypatch):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    encoder = opened(checkpoint, "float32")
    monkeypatch.setattr(encoder, "has_text", False)
    monkeypatch.setattr(encoder, "tokens", lambda _: pytest.fail("it has no tokenizer"))
    assert 0.9995 <= clip_encoder.least_cosine(encoder) < 1


def test_a_damaged_verdict_is_measured_again(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    monkeypatch.setattr(cpu, "bfloat16_is_faster", lambda: True)
    (tmp_path / clip_encoder.VERDICTS).write_text('{"a": ')
    assert opened(checkpoint, "auto", FeatureCache(tmp_path)).precision == "bfloat16"
    assert len(json.loads((tmp_path / clip_encoder.VERDICTS).read_text())) == 1


@pytest.mark.parametrize("vendor, flags, compiler, tiles, faster", [
    ("AuthenticAMD", "avx512_bf16", True, False, True), ("AuthenticAMD", "avx512_bf16", False, False, False),
    ("AuthenticAMD", "avx512f", True, False, False), ("GenuineIntel", "avx512_bf16", True, False, False),
    ("GenuineIntel", "avx512_bf16 amx_bf16", True, True, True), ("", "", True, False, False)])
def test_the_kind_of_processor_says_whether_bfloat16_is_faster(monkeypatch, vendor, flags, compiler, tiles, faster):
    """Nothing is timed: a busy machine would choose otherwise from one run to the next."""
    monkeypatch.setattr(cpu, "cpuinfo", lambda: f"vendor_id : {vendor}\nflags : {flags}\n")
    monkeypatch.setattr(cpu, "_known", lambda: (compiler, tiles))
    assert cpu.bfloat16_is_faster() == faster


def test_what_compiler_and_processor_know():
    if not cpu.available():
        pytest.skip("bfloat16 is for the CPU")
    knows, tiles = cpu._known()
    assert knows or not tiles
    assert tiles <= ("amx_bf16" in cpu.cpuinfo()) and cpu.bfloat16_is_faster() <= (cpu.lacks_bfloat16() == "")
