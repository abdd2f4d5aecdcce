"""A fitted pipeline as one linear classifier: for NumPy, given rows, or with CLIP's tower as ONNX: docs/export.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from jclip_fewshot.clip.checkpoint.write import write_safetensors
from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.combine.linear import Linear, linear_forms, pooled
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.methods.base import top1
from jclip_fewshot.pipeline import OnFit, Pipeline
from jclip_fewshot.storage.arrays import save_arrays

if TYPE_CHECKING:
    from jclip_fewshot.features.sources import Source

SUFFIXES = (".npz", ".safetensors", ".onnx")


class Export(NamedTuple):
    """The linear part of a pipeline. Scores are in percent, None where no shot could be left out."""

    linear: Linear
    heads: dict[str, float]  # what it was pooled of, with their weights
    held_out_top1: float | None
    ensemble_top1: float | None  # of the whole ensemble on the same shots


def linear_export(pipeline: Pipeline, on_fit: OnFit | None = None) -> Export:
    """Pool the heads that are linear in the row, with weights of their own; raise UserError if of several encoders.

    A pipeline that was read from a file has no held-out logits: those heads learn from its shots once more.
    """
    task = pipeline.task_
    if task.parts:
        raise UserError(f"only what one encoder has learned can be exported, not that of "
                        f"{', '.join(part.name for part in task.parts)} together; train with one {parameter('model')}")
    forms = linear_forms({name: method.logits for name, method in pipeline.methods_.items()
                          if not method.asks_images}, task)
    held_out: dict[str, np.ndarray] = {}
    for name in forms:
        held_out[name] = pipeline.methods_[name].fitted_again(task, pipeline.seed).held_out_logits()
        if on_fit is not None:
            on_fit(name, 0.0)
    ensemble = Ensemble().fit(held_out, task)
    usable = task.can_be_left_out
    whole = top1(pipeline.held_out_probs_[usable], task.labels[usable]) if usable.any() else None
    found: dict[str, Any] = ensemble.settings_
    return Export(pooled(forms, ensemble, task), found["weights"], found.get("held_out_top1"), whole)


def require_export_name(path: str | Path) -> None:
    """Raise UserError where the ending names no format."""
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"{path} ends neither in {' nor in '.join(SUFFIXES)}, which say what to write")


def save_export(path: str | Path, export: Export, class_names: Sequence[str], encoder: dict[str, Any]) -> None:
    """Write the classifier, its classes and how images become rows, by what the source's `record` says of `encoder`."""
    require_export_name(path)
    linear, size = export.linear, int(encoder.get("image_size", 0))
    recipe = msgspec.convert(encoder["pixels"], PixelRecipe) if "pixels" in encoder else PixelRecipe((size or 224,) * 2)
    arrays = {"weight": linear.weight, "bias": linear.bias, "seen": linear.seen, "text": linear.text,
              "scale": np.float32(linear.scale), "offset": np.float32(linear.offset), "image_size": np.int64(size),
              "mean": np.array(recipe.mean, np.float32), "std": np.array(recipe.std, np.float32)}
    said = _said(export, class_names, encoder, recipe)
    if Path(path).suffix == ".npz":
        save_arrays(Path(path), {name: np.array(value) for name, value in (arrays | said).items()})
    else:
        write_safetensors(path, {name: np.asarray(array) for name, array in arrays.items()}, _as_texts(said))


def save_onnx(path: str | Path, export: Export, class_names: Sequence[str], source: Source, uint8: bool = False
              ) -> float:
    """Write pixels -> probabilities by a source of one CLIP, in float32, as `export_onnx.save_classifier` does."""
    from jclip_fewshot.export_onnx import save_classifier
    encoder = getattr(source, "encoder", None)
    if encoder is None:
        raise UserError("the run was trained on a file of features, which holds no tower to write; export to .npz")
    recipe = encoder.recipe
    said = _said(export, class_names, source.record(), recipe) | {
        "mean": list(recipe.mean), "std": list(recipe.std), "image_size": recipe.size[0], "uint8": uint8,
        "held_out_top1": str(export.held_out_top1)}
    return save_classifier(path, export.linear, encoder, uint8, _as_texts(said))


def _said(export: Export, class_names: Sequence[str], encoder: dict[str, Any], recipe: PixelRecipe) -> dict[str, Any]:
    """What every format says beside the numbers."""
    return {"classes": list(class_names), "heads": list(export.heads),
            "model": str(encoder.get("model") or encoder.get("features", "")),
            "weights_digest": str(encoder.get("weights_digest", "")), "preprocessing": recipe.described}


def _as_texts(said: dict[str, Any]) -> dict[str, str]:
    """For formats whose metadata are texts; all else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in said.items()}
