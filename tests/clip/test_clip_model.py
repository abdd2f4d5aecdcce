"""The towers against OpenAI's PyTorch model, and against themselves."""

import json

import numpy as np
import pytest

from jclip_fewshot import clip
from jclip_fewshot.backend import jt
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture, layout, openai_names, write_safetensors
from jclip_fewshot.clip.model import CLIP, build_model, numpy_state_dict
from jclip_fewshot.errors import UserError

from .clip_reference import EXPECTED, SIZES, inputs, random_weights


def error(rows, expected):
    """Largest absolute error, relative to the row's norm."""
    rows, expected = np.asarray(rows, np.float64), np.asarray(expected, np.float64)
    return (np.abs(rows - expected).max(axis=1) / np.linalg.norm(expected, axis=1)).max()


@pytest.fixture(scope="module", params=list(SIZES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return build_model(random_weights(layout(Architecture(**SIZES[kind]))))


@pytest.fixture(scope="module")
def vit():
    return build_model(random_weights(layout(Architecture(**SIZES["vit"]))))


def test_equals_stored_torch_features(kind, model):
    images, tokens = inputs(kind)
    expected = np.load(EXPECTED)
    assert error(model.encode_image(jt.array(images)).numpy(), expected[kind + "_image"]) <= 2e-5
    assert error(model.encode_text(jt.array(tokens)).numpy(), expected[kind + "_text"]) <= 2e-5


@pytest.mark.parametrize("file, bound", [
    ("tiny_{}.safetensors", 2e-5), ("tiny_{}_state_dict.pt", 2e-5), ("tiny_{}_torchscript.pt", 2e-3)])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_equals_openai_in_every_format(shared, tower, file, bound):
    folder = shared / "reference" / "clip"
    path = folder / file.format(tower)
    if not path.exists():
        pytest.skip(f"{path.name} is not among the references")
    model, _ = clip.load(path)
    expected = np.load(folder / f"tiny_{tower}_expected.npz")
    assert error(
    model.encode_image(
        jt.array(
            expected["images"])).numpy(),
             expected["image_features"]) <= bound
    assert error(model.encode_text(expected["tokens"]).numpy(), expected["text_features"]) <= bound
    by_image, by_text = model(jt.array(expected["images"]), jt.array(expected["tokens"]))
    assert np.abs(by_image.numpy() - expected["logits_per_image"]).max() <= 100 * bound
    assert np.array_equal(by_text.numpy(), by_image.numpy().T)


def test_openais_vit_b_32_layout_loads_strictly(shared):
    listed = json.loads((shared / "reference" / "clip" / "openai_vit_b_32_layout.json").read_text())
    random = np.random.default_rng(0)
    state = {name: random.random(entry["shape"], dtype=np.float32).astype(entry["dtype"])
             for name, entry in listed.items()}
    model = build_model(openai_names(state))
    assert model.visual.input_resolution == 224 and model.context_length == 77 and model.embed_dim == 512
    assert sum(int(np.prod(parameter.shape)) for parameter in model.parameters()) == 151_277_313
    saved = numpy_state_dict(model)
    assert all(np.array_equal(saved[name], state[name].astype(np.float32)) for name in saved)
    del state["visual.proj"]
    with pytest.raises(UserError):
        build_model(openai_names(state))


def test_state_dict_goes_round(kind, model):
    weights = random_weights(layout(Architecture(**SIZES[kind])))
    saved = numpy_state_dict(model)
    assert saved.keys() == weights.keys()
    for name, array in weights.items():
        assert saved[name].shape == array.shape and np.array_equal(saved[name], array)


def test_parameters_are_the_layout_and_nothing_else(kind, model):
    images, tokens = inputs(kind)
    model(jt.array(images), jt.array(tokens))  # masks made on the way must not stick
    assert set(model.state_dict()) == set(layout(Architecture(**SIZES[kind])))
    assert len(model.parameters()) == len(model.state_dict())
    assert all(parameter.is_stop_grad() for parameter in model.parameters())


def test_rows_do_not_depend_on_their_batch(kind, model):
    images, tokens = inputs(kind)
    together, texts = model.encode_image(jt.array(images)).numpy(), model.encode_text(tokens).numpy()
    for row in range(len(images)):
        assert error(model.encode_image(jt.array(images[row:row + 1])).numpy(), together[row:row + 1]) < 1e-6
        assert error(model.encode_text(tokens[row:row + 1]).numpy(), texts[row:row + 1]) < 1e-6


def test_what_follows_the_end_of_text_does_not_count(vit):
    _, tokens = inputs("vit")
    features = vit.encode_text(tokens).numpy()
    noisy = tokens.copy()
    for row in noisy:
        end = row.argmax() + 1
        row[end:] = np.random.RandomState(0).randint(1, 98, len(row) - end)
    assert error(vit.encode_text(noisy).numpy(), features) < 1e-6
    shorter = vit.encode_text(tokens[:1, :5]).numpy()
    assert error(shorter, features[:1]) < 1e-6


def test_the_fused_towers_equal_the_plain_ones(kind, model, monkeypatch):
    """The plain ones are what CUDA and training take."""
    if not cpu.available():
        pytest.skip("the fused towers need the CPU and oneDNN")
    images, tokens = inputs(kind)
    fused = model.encode_image(jt.array(images)).numpy(), model.encode_text(tokens).numpy()
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert error(fused[0], model.encode_image(jt.array(images)).numpy()) < 2e-6
    assert error(fused[1], model.encode_text(tokens).numpy()) < 2e-6


@pytest.mark.parametrize("at_once", [1, 2, 5, 1000])
def test_the_fused_towers_in_parts(kind, model, monkeypatch, at_once):
    images, _ = inputs(kind)
    whole = model.encode_image(jt.array(images)).numpy()
    monkeypatch.setattr(cpu, "_ROWS", 17 * at_once)
    monkeypatch.setattr(cpu, "_NUMBERS", 32 * 32 * 8 * at_once)
    assert error(model.encode_image(jt.array(images)).numpy(), whole) < 1e-6


def test_the_last_block_reads_out_one_token(vit):
    """Computing one token of the last block gives what computing all of them gives."""
    x = jt.array(np.random.RandomState(0).standard_normal((3, 9, 128)).astype(np.float32))
    at = jt.array(np.array([8, 0, 4], np.int32))
    for causal in (False, True):
        block = vit.visual.transformer.resblocks[0]
        every = block(x, causal).numpy()[np.arange(3), [8, 0, 4]]
        assert error(block(x, causal, at).numpy()[:, 0], every) < 1e-6


def test_gradients_reach_every_parameter_and_fit_a_difference():
    model = CLIP(Architecture(**SIZES["vit"]))
    model.train()
    images, tokens = inputs("vit")

    def loss():
        by_image, _ = model(jt.array(images), tokens)
        return jt.nn.cross_entropy_loss(by_image, jt.arange(5))

    before = loss()
    parameters = model.parameters()
    gradients = jt.grad(before, parameters)
    flat = [gradient.numpy() for gradient in gradients]
    assert all(np.isfinite(gradient).all() and gradient.any() for gradient in flat)
    name, step = "visual.transformer.resblocks.1.attn.in_proj_weight", 1e-2
    number = list(model.state_dict()).index(name)
    direction = flat[number] / np.linalg.norm(flat[number])
    value = parameters[number].numpy()
    losses = []
    for sign in (1, -1):
        parameters[number].assign(jt.array(value + sign * step * direction))
        losses.append(float(loss().item()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(np.linalg.norm(flat[number]), rel=0.02)


def test_fresh_model_has_openais_initialisation():
    jt.set_global_seed(0)
    sizes = dict(SIZES["vit"], vision_width=256, transformer_width=256)
    state = numpy_state_dict(CLIP(Architecture(**sizes)))
    assert state["transformer.resblocks.0.attn.in_proj_weight"].std() == pytest.approx(256 ** -0.5, rel=0.05)
    assert state["transformer.resblocks.0.mlp.c_proj.weight"].std() == pytest.approx(256 ** - \
                                                                  0.5 / 2, rel=0.05)
    assert state["token_embedding.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert state["logit_scale"] == pytest.approx(np.log(1 / 0.07))
    assert not state["ln_final.bias"].any() and (state["ln_final.weight"] == 1).all()


def test_load_and_preprocess(tmp_path, vit):
    from PIL import Image
    write_safetensors(tmp_path / "ViT-B-32.safetensors", numpy_state_dict(vit))
    model, preprocess = clip.load("ViT-B/32", download_root=tmp_path)
    image = preprocess(Image.new("RGB", (50, 40), (255, 0, 0))).unsqueeze(0)
    assert image.shape == [1, 3, 32, 32]
    assert model.encode_image(image).shape == [1, 16]
    with pytest.raises(UserError, match="none of float32, float16, bfloat16"):
        clip.load("ViT-B/32", download_root=tmp_path, dtype="int8")


def test_wrong_shapes_are_named(vit):
    with pytest.raises(ValueError, match="takes .B, 3, 32, 32."):
        vit.encode_image(jt.zeros((1, 3, 31, 32)))
    with pytest.raises(ValueError, match="at most 20"):
        vit.encode_text(np.zeros((1, 21), np.int32))
    with pytest.raises(ValueError, match="token ids from 0 to 100; this model knows 100"):
        vit.encode_text(np.array([[0, 100]], np.int32))


def test_empty_batches(vit):
    assert vit.encode_image(np.zeros((0, 3, 32, 32), np.float32)).numpy().shape == (0, 16)
    assert vit.encode_text(np.zeros((0, 20), np.int32)).numpy().shape == (0, 16)


def test_loading_by_jittors_own_call_is_checked():
    weights = random_weights(layout(Architecture(**SIZES["vit"])), seed=3)
    model = CLIP(Architecture(**SIZES["vit"]))
    model.load_parameters(weights)
    assert all(np.array_equal(value, weights[name]) for name, value in numpy_state_dict(model).items())
    with pytest.raises(UserError, match="missing: ln_final.bias"):
        model.load_state_dict({name: array for name, array in weights.items() if name != "ln_final.bias"})
