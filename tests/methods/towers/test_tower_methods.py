"""Methods that train a tower, on a small CLIP with random weights."""

import numpy as np
import pytest

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import log_softmax, unit_rows
from jclip_fewshot.clip.checkpoint import Architecture, layout
from jclip_fewshot.clip.model import build_model, numpy_state_dict
from jclip_fewshot.clip.replace import part, replaced
from jclip_fewshot.encoders.base import ROWS, UNPROJECTED
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.features.activations import Activations, Views
from jclip_fewshot.methods.base import Queries
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.methods.towers import towers, visual_prompts
from jclip_fewshot.methods.towers.coop import CoCoOp, CoOp
from jclip_fewshot.methods.towers.full_towers import ClipLora, TwoStage
from jclip_fewshot.methods.towers.last_blocks import LastBlocks
from jclip_fewshot.methods.towers.prolip import ProLIP
from jclip_fewshot.methods.towers.token_gda import TokenGDA
from jclip_fewshot.methods.towers.visual_prompts import VPT
from jclip_fewshot.storage.feature_cache import FitCache
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.task import Task
from tests.clip.clip_reference import SIZES, random_weights

K, SHOTS, VIEWS = 6, 3, 2
UNSEEN = 5


class QuickBlocks(LastBlocks):
    epochs = 6


class QuickProLIP(ProLIP):
    steps = 8


class QuickLora(ClipLora):
    steps_a_shot = 3


class QuickTwoStage(TwoStage):
    steps_a_shot = 3


class QuickCoOp(CoOp):
    context, steps = 2, 3


class QuickVPT(VPT):
    prompts, epochs = 2, 2


class QuickCoCoOp(CoCoOp):
    context, batch = 2, 5


class Held(Activations):
    """Activations that are given: {depth: (S, V, *shape)}."""

    def __init__(self, encoder, arrays):
        super().__init__(encoder, [])
        self._at = {depth: Views(list(array)) for depth, array in arrays.items()}

    def digest(self, images):
        return content_digest(b"".join(np.asarray(next(iter(self._at.values()))._images[i]) for i in images)).hex()


QUICK = (TokenGDA, QuickBlocks, QuickProLIP, QuickVPT, QuickCoOp, QuickCoCoOp, QuickLora, QuickTwoStage)


@pytest.fixture(scope="module")
def encoder():
    model = build_model(random_weights(layout(Architecture(**SIZES["vit"]))))
    return ClipEncoder(model, "small", "0" * 32, batch_size=4)


@pytest.fixture(scope="module")
def case(encoder):
    """(task, activations, images): pictures of a class are alike; class 5 has no shot."""
    rng = np.random.default_rng(0)
    side = encoder.image_size
    kinds = rng.standard_normal((K, 3, side, side))
    labels = np.repeat(np.arange(K - 1), SHOTS)
    images = (kinds[labels][:, None] + 0.7 * rng.standard_normal((len(labels), VIEWS, 3, side, side))).astype("f")
    visual, flat = encoder.model.visual, jt.array(images.reshape((-1, 3, side, side)))
    rows = towers.image_rows(encoder.model, flat).numpy().reshape((len(labels), VIEWS, -1))
    depths = {block: visual.activations(flat, block).numpy().reshape((len(labels), VIEWS) + visual.shape_at(block))
              for block in (0, 2)}
    depths[ROWS] = rows
    depths[UNPROJECTED] = visual.activations(flat).numpy().reshape((len(labels), VIEWS, -1))
    text = rng.standard_normal((K, encoder.width))
    activations = Held(encoder, depths)
    tokens = np.zeros((K, 6), np.int32)
    tokens[:, :4], tokens[:, 4] = rng.integers(1, 90, (K, 4)), 99
    activations.class_tokens = tokens
    return Task(rows.mean(axis=1), labels, text, np.arange(K) % 2, 20.0), activations, images[:, 0]


@pytest.fixture(scope="module", params=QUICK, ids=lambda one: one.name)
def fitted(request, case):
    return request.param(seed=1).fit(case[0], tower=case[1])


def frozen_and_tuned(method, encoder, images):
    frozen = towers.image_rows(encoder.model, jt.array(images)).numpy()
    if isinstance(method, TokenGDA):
        return frozen, method.rows(encoder.model, encoder.model.visual.transformer.part(
            encoder.model.visual.embed(jt.array(images)), 0, 2), {}).numpy()
    if isinstance(method, CoOp):  # of the text side alone
        return frozen, frozen
    return frozen, method.encoder(encoder)._function(jt.array(images)).numpy()


def test_the_model_is_as_it_was(fitted, encoder):
    for name, value in random_weights(layout(Architecture(**SIZES["vit"]))).items():
        assert np.array_equal(numpy_state_dict(encoder.model)[name], value)
    assert all(block.attn.lora is None for block in encoder.model.visual.transformer.resblocks)


def test_saved_and_read_again_it_answers_the_same(fitted, encoder, case):
    frozen, tuned = frozen_and_tuned(fitted, encoder, case[2])
    again = type(fitted).from_state(fitted.state())
    queries = Queries(frozen, lambda make: tuned)
    assert np.array_equal(again.answer(queries), fitted.answer(queries))
    assert again.encoder(encoder).fingerprint == fitted.encoder(encoder).fingerprint
    assert (fitted.encoder(encoder) is encoder) == isinstance(fitted, CoOp)


def test_the_class_without_shots_keeps_its_share(fitted, encoder, case):
    frozen, tuned = frozen_and_tuned(fitted, encoder, case[2])
    share = np.exp(log_softmax(fitted.answer(Queries(frozen, lambda make: tuned))))[:, UNSEEN]
    np.testing.assert_allclose(share, np.exp(log_softmax(case[0].zero_shot(frozen)))[:, UNSEEN], atol=2e-3)
    held_out = np.exp(log_softmax(fitted.held_out_logits()))[:, UNSEEN]
    np.testing.assert_allclose(held_out, np.exp(log_softmax(case[0].zero_shot(case[0].features)))[:, UNSEEN], atol=2e-3)


def test_training_fits_the_shots(case, encoder):
    class Longer(QuickBlocks):
        epochs, lr = 60, 1e-2
    task, activations, _ = case
    everyone = np.arange(len(task))
    arrays = Longer(seed=1).train(fits_of(task)[-1], activations, "")
    classifier = unit_rows(task.text + arrays.pop("classifier"))
    rows = Longer(seed=1).mean_rows(activations, arrays, everyone)
    chance = log_softmax(task.scale * rows @ classifier.T)[everyone, task.labels].mean()
    assert chance > log_softmax(task.zero_shot(task.features))[everyone, task.labels].mean() + 1


@pytest.mark.parametrize("kind", QUICK[1:], ids=lambda one: one.name)
def test_a_training_does_not_see_the_shots_that_its_fold_leaves_out(kind, case):
    """Other pictures in their place change nothing in what it learns, and something in what all shots teach."""
    task, activations, _ = case
    fold = task.folds()[0]
    arrays = {depth: np.stack(views._images) for depth, views in activations._at.items()}
    for array in arrays.values():
        array[fold.left_out] = array[fold.left_out][::-1]
    other = Held(activations.encoder, arrays)
    other.class_tokens = activations.class_tokens
    first, second = (kind(seed=1).train(fold, one, "") for one in (activations, other))
    assert all(np.array_equal(value, second[name]) for name, value in first.items())
    first, second = (kind(seed=1).train(fits_of(task)[-1], one, "") for one in (activations, other))
    assert not all(np.array_equal(value, second[name]) for name, value in first.items())


def test_a_second_run_trains_nothing(case, tmp_path, monkeypatch):
    task, activations, _ = case
    monkeypatch.setattr(activations, "fits", FitCache(tmp_path))
    first = QuickBlocks(seed=1).fit(task, tower=activations)

    def refuse(*arguments):
        raise AssertionError("trained again")
    monkeypatch.setattr(QuickBlocks, "train", refuse)
    second = QuickBlocks(seed=1).fit(task, tower=activations)
    assert np.array_equal(first.held_out_logits(), second.held_out_logits())
    with pytest.raises(AssertionError):
        QuickBlocks(seed=2).fit(task, tower=activations)


def test_finished_folds_survive_ctrl_c(case, tmp_path, monkeypatch):
    task, activations, _ = case
    train, calls = QuickBlocks.train, []
    monkeypatch.setattr(activations, "fits", FitCache(tmp_path))

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, *arguments)
    monkeypatch.setattr(QuickBlocks, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        QuickBlocks(seed=1).fit(task, tower=activations)
    QuickBlocks(seed=1).fit(task, tower=activations)
    assert len(calls) == 3 + len(task.folds()) + 1 - 2


def test_alpha_zero_is_the_frozen_tower(case, encoder):
    task, activations, images = case
    method = QuickBlocks(seed=1)
    arrays = method.train(fits_of(task)[-1], activations, "")
    halfway = method.interpolated(encoder.model, arrays, 0.0)
    assert not halfway.pop("classifier").any()
    with replaced(encoder.model, {name: jt.array(v) for name, v in towers.merged(encoder.model, halfway).items()}):
        tuned = towers.image_rows(encoder.model, jt.array(images)).numpy()
    np.testing.assert_allclose(tuned, towers.image_rows(encoder.model, jt.array(images)).numpy(), atol=1e-6)


def test_merged_updates_equal_updates_beside_the_weights(encoder, case):
    rng, model = np.random.default_rng(0), encoder.model
    arrays = {name: (0.1 * rng.standard_normal(value.shape)).astype("f")
              for name, value in towers.random_start(model, towers.block_names(model, "visual.", ""), rng).items()}
    images, tokens = jt.array(case[2]), case[1].class_tokens
    with towers.attached(model, {name: jt.array(value) for name, value in arrays.items()}):
        beside = towers.image_rows(model, images).numpy(), towers.text_rows(model, tokens).numpy()
    tuned = towers.merged(model, arrays)
    with replaced(model, {name: jt.array(value) for name, value in tuned.items()}):
        inside = unit_rows(model.encode_image(images).numpy()), unit_rows(model.encode_text(tokens).numpy())
    assert np.abs(beside[0] - towers.image_rows(model, images).numpy()).max() > 1e-2
    for one, other in zip(beside, inside):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_dropout_draws_a_mask_for_each_product():
    drop = towers.dropout(np.random.default_rng(0), 0.25)
    first, second = drop(jt.ones((50, 40))).numpy(), drop(jt.ones((50, 40))).numpy()
    assert set(np.unique(first)) == {0.0, np.float32(4 / 3)} and not np.array_equal(first, second)
    assert abs((first == 0).mean() - 0.25) < 0.05


def test_deep_prompts_that_are_what_shallow_ones_become_answer_alike(encoder, case):
    model, rng = encoder.model, np.random.default_rng(0)
    visual, image = model.visual, jt.array(case[2][:1])
    shallow = visual_prompts.random_prompts(rng, 4, 128)
    assert np.abs(shallow).max() <= np.sqrt(6 / (3 * 256 + 128))
    x = visual.embed(image)
    behind = visual.transformer.part(jt.concat([x[:, :1], jt.array(shallow), x[:, 1:]], dim=1), 0, 1)
    deep = np.concatenate([shallow, behind[:, 1:5].numpy()])
    plain = visual.unprojected(x).numpy()
    first, second = (visual_prompts.unprojected(model, x, jt.array(one)).numpy() for one in (shallow, deep))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    assert np.abs(first - plain).max() > 1e-3
    deep[1:] = visual_prompts.random_prompts(rng, 4, 128)
    p = jt.array(deep)
    found = visual_prompts.unprojected(model, x, p)
    assert np.abs(found.numpy() - first).max() > 1e-3
    gradient = jt.grad((found ** 2)[:, 0].sum(), [p])[0].numpy()
    assert (np.abs(gradient).max(axis=(1, 2)) > 0).all()


def test_norms_are_put_back_after_an_error(encoder):
    name = "visual.transformer.resblocks.1.ln_1.weight"
    before = part(encoder.model, name)
    with pytest.raises(RuntimeError), replaced(encoder.model, {name: jt.zeros((128,))}):
        raise RuntimeError
    assert part(encoder.model, name) is before
