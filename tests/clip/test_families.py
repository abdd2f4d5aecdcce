"""CLIPs that are not OpenAI's: every convention against NumPy in float64, fused, by plain operators and in bfloat16."""

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture, Conventions, Tower, layout
from jclip_fewshot.clip.model import build_model, numpy_state_dict

from .clip_reference import random_weights
from .numpy_clip import NumpyClip

CASES = {
    "gelu, heads of 24 and 8": (Conventions(Tower("gelu", 24), Tower("gelu", 8)), {}),
    "gelu by tanh, eps 1e-3, MLPs of 118 and 66": (
        Conventions(Tower("gelu_tanh", 36, 1e-3), Tower("gelu_tanh", 16, 1e-3)),
        {"vision_hidden": 118, "transformer_hidden": 66}),
    "odd heads and an odd MLP": (Conventions(Tower("gelu", 9), Tower("quick_gelu", 32)), {"vision_hidden": 117}),
    "CLIPA": (Conventions(Tower("gelu", 24), Tower("gelu", 8), pool="patches", text_pool="last", causal=False),
              {"norm_before": False}),
    "first end token, projection with a bias": (
        Conventions(Tower("quick_gelu", 12), Tower("gelu", 8), text_pool="end", end=2), {"projection_bias": True}),
}


def sizes_of(case):
    how, more = CASES[case]
    return Architecture(24, 32, 2, 72, 8, 12, 60, 32, 2, **more, conventions=how)


def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 59, (4, 12))
    tokens[0, 5:], tokens[1, 7], tokens[2, 11], tokens[3, 0] = 2, 2, 2, 2
    return rng.standard_normal((3, 3, 32, 32)).astype(np.float32), tokens.astype(np.int32)


@pytest.fixture(scope="module", params=list(CASES))
def family(request):
    sizes = sizes_of(request.param)
    weights = random_weights(layout(sizes))
    return build_model(weights, conventions=sizes.conventions), NumpyClip(weights, sizes), weights


def cosines(rows, expected):
    return (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)


def test_rows_are_those_of_the_definition(family, monkeypatch):
    model, reference, _ = family
    images, tokens = inputs()
    image, text = reference.image(images), reference.text(tokens)
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(cpu, "available", lambda: False)
        np.testing.assert_allclose(model.encode_image(images).numpy(), image, atol=3e-5)
        np.testing.assert_allclose(model.encode_text(tokens).numpy(), text, atol=3e-5)
        unprojected = model.visual.activations(jt.array(images)).numpy()
        np.testing.assert_allclose(unprojected @ reference.w["visual.proj"], image, atol=3e-5)


def test_bfloat16_is_near(family):
    if cpu.lacks_bfloat16():
        pytest.skip(cpu.lacks_bfloat16())
    model, reference, _ = family
    images, tokens = inputs()
    model.set_precision("bfloat16")
    found = [model.encode_image(images).numpy(), model.encode_text(tokens).numpy()]
    model.set_precision("float32")
    for rows, expected in zip(found, (reference.image(images), reference.text(tokens))):
        assert cosines(rows, expected).min() > 0.995


def test_training_computes_the_same(family):
    model, reference, _ = family
    images, tokens = inputs()
    model.train()
    try:
        np.testing.assert_allclose(model.encode_image(images).numpy(), reference.image(images), atol=3e-5)
        np.testing.assert_allclose(model.encode_text(tokens).numpy(), reference.text(tokens), atol=3e-5)
    finally:
        model.eval()


def test_the_state_goes_round_and_what_jittor_saves_is_read_again(family, tmp_path):
    from jclip_fewshot.clip.checkpoint import read_clip
    model, _, weights = family
    saved = numpy_state_dict(model)
    assert saved.keys() == weights.keys() and all(np.array_equal(saved[name], weights[name]) for name in saved)
    jt.save(model.state_dict(), str(tmp_path / "by_jt_save.pkl"))
    model.save(str(tmp_path / "by_module.pkl"))
    jt.save({"model": model.state_dict(), "epoch": 3}, str(tmp_path / "wrapped.pkl"))
    for name in ("by_jt_save.pkl", "by_module.pkl", "wrapped.pkl"):
        found, sizes, _ = read_clip(tmp_path / name)
        assert sizes == model.architecture == read_clip(tmp_path / name, outline=True).sizes
        assert all(np.array_equal(found[name], weights[name].reshape(found[name].shape)) for name in weights)
