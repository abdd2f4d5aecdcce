"""A fitted pipeline as one linear classifier in a file that NumPy alone can use: docs/export.md.

Letters: K classes, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip_fewshot.clip.checkpoint.write import write_safetensors
from jclip_fewshot.clip.preprocess import MEAN, STD
from jclip_fewshot.combine.ensemble import Ensemble
from jclip_fewshot.combine.linear import Linear, linear_forms, pooled
from jclip_fewshot.errors import UserError
from jclip_fewshot.pipeline import OnFit, Pipeline
from jclip_fewshot.storage.arrays import save_arrays

SUFFIXES = (".npz", ".safetensors")
PREPROCESSING = ("resize the short side to image_size (Pillow, bicubic), cut the middle image_size x image_size, RGB / "
                 "255, minus mean, over std")


@dataclass(frozen=True)
class Export:
    """The linear part of a pipeline.

    heads: what it was pooled of, with their weights. held_out_top1: of the shots left out, in percent; ensemble_top1:
    of the whole ensemble on the same shots. Both None where no shot could be left out.
    """

    linear: Linear
    heads: dict[str, float]
    held_out_top1: float | None
    ensemble_top1: float | None


def linear_export(pipeline: Pipeline, on_fit: OnFit = lambda name, seconds: None) -> Export:
    """Pools the heads that are linear in the row, with weights of their own.

    A pipeline that was read from a file has no held-out logits: those heads learn from its shots once more.
    Raises:
        UserError: several encoders.
    """
    task = pipeline.task_
    if task.parts:
        raise UserError(f"only what one encoder has learned can be exported, not that of "
                        f"{', '.join(part.name for part in task.parts)} together; train with one --model")
    forms = linear_forms({name: method.logits for name, method in pipeline.methods_.items()
                          if not method.asks_images}, task)
    held_out: dict[str, np.ndarray] = {}
    for name in forms:
        held_out[name] = pipeline.methods_[name].fitted_again(task, pipeline.seed).held_out_logits()
        on_fit(name, 0.0)
    ensemble = Ensemble().fit(held_out, task)
    usable = task.can_be_left_out
    whole = None
    if usable.any():
        whole = float(100 * (pipeline.held_out_probs_.argmax(axis=1) == task.labels)[usable].mean())
    return Export(pooled(forms, ensemble, task), ensemble.settings_["weights"],
                  ensemble.settings_.get("held_out_top1"), whole)


def require_export_name(path: str | Path) -> None:
    """Raises UserError where the ending names no format."""
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"{path} ends neither in {' nor in '.join(SUFFIXES)}")


def save_export(path: str | Path, export: Export, class_names: Sequence[str], encoder: dict[str, object]) -> None:
    """Writes the classifier, its classes and how images become rows; .safetensors keeps texts in its metadata.

    encoder: what the source's `record` says; a feature file knows neither model nor image size.
    """
    require_export_name(path)
    linear = export.linear
    arrays = {"weight": linear.weight, "bias": linear.bias, "seen": linear.seen, "text": linear.text,
              "scale": np.float32(linear.scale), "offset": np.float32(linear.offset), "mean": MEAN, "std": STD,
              "image_size": np.int64(encoder.get("image_size", 0))}
    texts: dict[str, list[str]] = {"classes": list(class_names), "heads": list(export.heads)}
    said = {"model": str(encoder.get("model") or encoder.get("features", "")),
            "weights_digest": str(encoder.get("weights_digest", "")), "preprocessing": PREPROCESSING}
    if Path(path).suffix == ".npz":
        save_arrays(Path(path), {**arrays, **{name: np.array(value) for name, value in {**texts, **said}.items()}})
        return
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in texts.items()}
    write_safetensors(path, {name: np.asarray(array) for name, array in arrays.items()}, {**metadata, **said})
