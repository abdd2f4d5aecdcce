"""bfloat16 beside float32: products, both towers, the depths to stop at."""

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture, layout
from jclip_fewshot.clip.model import build_model
from jclip_fewshot.errors import UserError

from .clip_reference import SIZES, inputs, random_weights


def cosines(rows, others):
    return (rows * others).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)


@pytest.fixture(autouse=True)
def _on_the_cpu():
    if not cpu.available():
        pytest.skip("the fused towers need the CPU")


def weights(kind):
    state = random_weights(layout(Architecture(**SIZES[kind])))
    if kind == "resnet":
        # its activations grow to some 50, and the last attention's scores with them: the softmax would then only
        # choose a pixel, and turn a rounding into another choice
        state["visual.attnpool.q_proj.weight"] = state["visual.attnpool.q_proj.weight"] * 0.05
    return state


def fresh(kind, precision="bfloat16"):
    """A model whose towers multiply in bfloat16; slowly, where the processor has no instruction for it."""
    model = build_model(weights(kind))
    model.set_precision(precision)
    return model


@pytest.fixture(scope="module", params=list(SIZES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return fresh(kind)


def features(model, kind):
    images, tokens = inputs(kind)
    return model.encode_image(jt.array(images)).numpy(), model.encode_text(tokens).numpy()


def test_bfloat16_features_lie_beside_float32s(kind, model):
    half = features(model, kind)
    single = features(fresh(kind, "float32"), kind)
    for rows, others in zip(half, single):
        assert cosines(rows, others).min() >= 0.9995
        assert np.abs(rows - others).max() > 1e-5  # it is another arithmetic
    assert model.precision == "bfloat16" and model.dtype == "float32"


def test_rows_do_not_depend_on_their_batch(kind, model):
    images, tokens = inputs(kind)
    together, texts = features(model, kind)
    for row in range(len(images)):
        assert np.array_equal(model.encode_image(jt.array(images[row:row + 1])).numpy()[0], together[row])
        assert np.array_equal(model.encode_text(tokens[row:row + 1]).numpy()[0], texts[row])


@pytest.mark.parametrize("rows, inputs_, outputs", [(1, 2, 1), (7, 27, 49), (8, 64, 48), (53, 147, 130),
                                                      (1, 32, 48), (17, 64, 49), (50, 96, 130), (85, 768, 200)])
def test_products_of_any_shape(rows, inputs_, outputs):
    """product.cpp alone against NumPy, with odd sums, edges of panels and rows that fill no block."""
    random = np.random.default_rng(0)
    a = random.standard_normal((rows, inputs_)).astype(np.float32)
    b = random.standard_normal((inputs_, outputs)).astype(np.float32)
    source = """
        using namespace jclip;
        int64_t M = in0_shape0, K = in0_shape1, N = out0_shape1, lda = whole<KIND>(K);
        KIND::Number* a = buffer<KIND::Number>(0, M * lda);
        for (int64_t i = 0; i < M; i++)
            for (int64_t k = 0; k < lda; k++) a[i * lda + k] = k < K ? KIND::narrow(in0_p[i * K + k]) : 0;
        product<KIND>(M, a, lda, Matrix<KIND>{K, N, _inputs[1]->mem_ptr},
                      [&](int64_t row, int64_t column, int64_t count, const float* sums) {
                          for (int64_t i = 0; i < count; i++) out0_p[row * N + column + i] = sums[i];
                      });
    """
    header = cpu.source(cpu.__file__, "product.cpp")
    for precision, name, rounded in (("float32", "Single", lambda x: x), ("bfloat16", "Half", bfloat16)):
        weight = cpu.Matrices(precision)(jt.array(b))
        got = jt.code((rows, outputs), "float32", [jt.array(a), weight], cpu_header=header,
                      cpu_src=source.replace("KIND", name)).numpy()
        few = jt.code((1, outputs), "float32", [jt.array(a[-1:]), weight], cpu_header=header,
                      cpu_src=source.replace("KIND", name)).numpy()
        assert (few == got[-1:]).all()  # a row is the same, bit for bit, whatever is computed with it
        expected = rounded(a).astype(float) @ rounded(b).astype(float)
        assert np.abs(got - expected).max() <= 1e-5 * np.sqrt(inputs_) + 1e-6 * np.abs(expected).max()


def bfloat16(x):
    """Rounded to bfloat16, to the nearest, ties to even, by NumPy."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_changed_weights_are_packed_again(precision):
    model = fresh("vit", precision)
    before = features(model, "vit")[0]
    weight = model.visual.transformer.resblocks[0].mlp.c_fc.weight
    weight.assign(weight * 2)
    after = features(model, "vit")[0]
    weight.update(weight * 0.5)
    assert np.abs(before - after).max() > 1e-3
    assert np.array_equal(features(model, "vit")[0], before)


@pytest.mark.parametrize("precision, bound", [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("block", [None, 0, 1])
def test_the_fused_tower_stops_where_the_plain_one_does(monkeypatch, precision, bound, block):
    model = fresh("vit", precision)
    images = jt.array(inputs("vit")[0])
    fused = model.visual.activations(images, block).numpy()
    monkeypatch.setattr(cpu, "available", lambda: False)
    plain = model.visual.activations(images, block).numpy()
    assert fused.shape == plain.shape == (len(plain),) + model.visual.shape_at(block)
    assert np.abs(fused - plain).max() <= bound * np.abs(plain).max()


def test_a_depth_that_is_none():
    model = fresh("vit")
    with pytest.raises(ValueError, match="no block 99"):
        model.visual.activations(jt.array(inputs("vit")[0]), 99)


def test_a_machine_without_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "this processor has no AVX512_BF16")
    state = weights("vit")
    assert build_model(state, dtype="bfloat16").precision == "float32"
    assert build_model(state, dtype="float16").precision == "float32"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: bfloat16: this processor has no AVX512_BF16; computing in float32"
    assert "float16: no gain on the CPU" in lines[1] and len(lines) == 2
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: "")
    assert build_model(state, dtype="bfloat16").precision == "bfloat16"
    with pytest.raises(UserError, match="none of float32, float16, bfloat16"):
        build_model(state, dtype="int8")
