"""A run as one linear classifier: the file and the documentation's lines answer as the linear heads' own pool does."""

import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.combine.linear import linear_form, linear_forms
from jclip_fewshot.errors import UserError
from jclip_fewshot.export import linear_export, save_export
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task
from tests.conftest import ROOT

HEADS = ("zero_shot", "linear_probe", "tip_adapter", "clap", "proker")
LINEAR = ["zero_shot", "linear_probe", "clap"]
CLASSES, WIDTH = 6, 32


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def drawn(shots):
    """A pipeline on `shots` shots of each class, and 50 other rows."""
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((CLASSES, WIDTH)) + 2)
    centres = unit(text + 0.5 * rng.standard_normal((CLASSES, WIDTH)) / np.sqrt(WIDTH))  # so that caches are of use
    draw = lambda labels: unit(centres[labels] + 0.4 * rng.standard_normal((len(labels), WIDTH)) / np.sqrt(WIDTH))  # noqa: E731
    labels = np.repeat(np.arange(CLASSES), shots)
    methods = HEADS if any(shots) else ("zero_shot",)  # the others need a shot
    return Pipeline(methods).fit(Task(draw(labels), labels, text)), draw(rng.integers(0, CLASSES, 50))


def documented(folder):
    """The documentation's `answer`, its file in `folder`."""
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import numpy.*?)```", page, re.S).group(1)
    scope = {}
    exec(code.replace('"classifier.npz"', repr(str(folder / "classifier.npz"))), scope)
    return scope["answer"]


def pool_of(pipeline, names, rows):
    """The ensemble of these heads alone, fitted as any ensemble is."""
    held_out = {name: pipeline.methods_[name].held_out_logits() for name in names}
    ensemble = Ensemble().fit(held_out, pipeline.task_)
    return ensemble.probs({name: pipeline.methods_[name].logits(rows) for name in names}), ensemble


@pytest.mark.parametrize("shots", [
    [4, 4, 4, 4, 4, 4],
    [4, 3, 0, 2, 4, 0],  # classes known by their text alone
    [1, 1, 1, 1, 1, 1],  # nothing can be left out
    [0, 0, 0, 0, 0, 0],
])
def test_the_documentations_lines_answer_as_the_pool_of_the_linear_heads(shots, tmp_path):
    pipeline, rows = drawn(shots)
    found = linear_export(pipeline)
    names = LINEAR if any(shots) else ["zero_shot"]  # the others need a shot
    assert list(found.heads) == names
    save_export(tmp_path / "classifier.npz", found, list("abcdef"), {"model": "ViT-B/32", "image_size": 224})
    wanted, ensemble = pool_of(pipeline, names, rows)
    assert np.abs(documented(tmp_path)(3 * rows) - wanted).max() < 1e-4  # of any length
    assert np.abs(found.linear.probs(rows) - wanted).max() < 1e-4
    assert found.held_out_top1 == ensemble.settings_.get("held_out_top1")
    assert (found.ensemble_top1 is None) == (max(shots) < 2)


def test_a_saved_pipeline_gives_the_same_export():
    pipeline, _ = drawn([3, 3, 3, 3, 3, 0])
    again = Pipeline.from_state(pipeline.state())
    ours, theirs = linear_export(pipeline), linear_export(again)
    assert ours.heads == pytest.approx(theirs.heads, abs=1e-3)
    assert np.abs(ours.linear.weight - theirs.linear.weight).max() < 1e-3 * np.abs(ours.linear.weight).max()
    assert (ours.held_out_top1, ours.ensemble_top1) == pytest.approx((theirs.held_out_top1, theirs.ensemble_top1))


def test_linearity_is_found_by_asking():
    rng = np.random.default_rng(1)
    weight, bias, rows = rng.standard_normal((5, 8)), rng.standard_normal(5), unit(rng.standard_normal((9, 8)))
    found = linear_form(lambda x: x @ weight.T + bias + x.sum(axis=1, keepdims=True) ** 2, rows)  # alike for all
    assert np.allclose(found[0] - found[0].mean(axis=0), weight - weight.mean(axis=0))
    assert np.allclose(found[1] - found[1].mean(), bias - bias.mean())
    assert linear_form(lambda x: np.maximum(x @ weight.T, 0), rows) is None
    assert linear_form(lambda x: (x @ weight.T) ** 2, rows) is None  # nothing at the ends of the axes betrays its sign
    pipeline, _ = drawn([4] * CLASSES)
    assert list(linear_forms({name: head.logits for name, head in pipeline.methods_.items()}, pipeline.task_)) == LINEAR


def test_safetensors_hold_the_same_and_texts_as_metadata(tmp_path):
    pipeline, _ = drawn([3] * CLASSES)
    found, names = linear_export(pipeline), ["ä", "b", "c", "d", "e", "f"]
    for suffix in ("npz", "safetensors"):
        save_export(tmp_path / f"c.{suffix}", found, names, {"model": "RN50", "image_size": 224})
    tensors, plain = load_file(tmp_path / "c.safetensors"), np.load(tmp_path / "c.npz")
    assert all((plain[name] == value).all() for name, value in tensors.items()) and len(tensors) == 9
    with safe_open(str(tmp_path / "c.safetensors"), "np") as file:
        said = file.metadata()
    assert json.loads(said["classes"]) == names == plain["classes"].tolist() and said["model"] == "RN50"
    with pytest.raises(UserError, match="neither in .npz nor in .safetensors"):
        save_export(tmp_path / "c.pt", found, names, {})
