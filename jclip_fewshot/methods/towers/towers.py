"""Rows of both towers with gradients, and the names of what may train in them.

B images or sentences · R pixels a side · L tokens · W width · D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.clip.replace import part

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP
else:
    CLIP = Any


def blocks_of(model: CLIP, tower: str) -> list[int]:
    """Numbers of the blocks of a tower, "visual." or "" (text)."""
    return list(range(len(part(model, tower + "transformer").resblocks)))


def norm_names(tower: str, blocks: Sequence[int]) -> list[str]:
    """Names of the norms in some blocks of a tower, "visual." or "" (text)."""
    return [f"{tower}transformer.resblocks.{block}.{norm}.{kind}" for block in blocks for norm in ("ln_1", "ln_2")
            for kind in ("weight", "bias")]


def values_of(model: CLIP, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The model's own tensors of those names: where their training starts."""
    return {name: part(model, name).float32().numpy() for name in names}


def rows_from(model: CLIP, x: jt.Var, block: int) -> jt.Var:
    """x (B, L, W), the input of an image block -> (B, D) unit rows, with gradients."""
    return unit_var(jt.matmul(model.visual.unprojected(x, block), model.visual.proj))


def image_rows(model: CLIP, images: jt.Var) -> jt.Var:
    """(B, 3, R, R) -> (B, D) unit rows, with gradients."""
    return rows_from(model, model.visual.embed(images), 0)


def text_rows(model: CLIP, tokens: np.ndarray) -> jt.Var:
    """(B, L) ids -> (B, D) unit rows, with gradients."""
    ids, ends = model.cut(tokens)
    return unit_var(model.encode_embeddings(model.token_embedding(jt.array(ids)), jt.array(ends)))


def in_batches(ask: Callable[[np.ndarray], np.ndarray], items: np.ndarray, size: int = 64) -> np.ndarray:
    """ask(items), (N, ...), without gradients and `size` at a time."""
    with jt.no_grad():
        return np.concatenate([ask(items[i:i + size]) for i in range(0, len(items), size)])
