"""Rows of both towers with gradients, and the names of what may train in them.

B images or sentences · R pixels a side · L tokens · W width · D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.clip.replace import part

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP
else:
    CLIP = Any

TEXTS_AT_ONCE = 64


def norm_names(tower: str, blocks: Sequence[int]) -> list[str]:
    """Names of the norms in some blocks of a tower, "visual." or "" (text)."""
    return [f"{tower}transformer.resblocks.{block}.{norm}.{kind}" for block in blocks for norm in ("ln_1", "ln_2")
            for kind in ("weight", "bias")]


def blocks_of(model: CLIP, tower: str) -> list[int]:
    """Numbers of the blocks of a tower, "visual." or "" (text)."""
    return list(range(len(part(model, tower + "transformer").resblocks)))


def image_rows(model: CLIP, images: jt.Var) -> jt.Var:
    """(B, 3, R, R) -> (B, D) unit rows, with gradients."""
    visual = model.visual
    return unit_var(jt.matmul(visual.unprojected(visual.embed(images)), visual.proj))


def rows_from(model: CLIP, x: jt.Var, block: int) -> jt.Var:
    """x (B, L, W), the input of an image block -> (B, D) unit rows, with gradients."""
    return unit_var(jt.matmul(model.visual.unprojected(x, block), model.visual.proj))


def text_rows(model: CLIP, tokens: np.ndarray) -> jt.Var:
    """(B, L) ids -> (B, D) unit rows, with gradients."""
    ids, ends = model.cut(tokens)
    return unit_var(model.encode_embeddings(model.token_embedding(jt.array(ids)), jt.array(ends)))


def in_parts(rows_of: Callable[[np.ndarray], jt.Var], tokens: np.ndarray) -> np.ndarray:
    """rows_of(tokens), (K, D), without gradients and some sentences at a time."""
    with jt.no_grad():
        return np.concatenate([rows_of(tokens[i:i + TEXTS_AT_ONCE]).numpy()
                               for i in range(0, len(tokens), TEXTS_AT_ONCE)])


def patch_rows(model: CLIP, images: jt.Var) -> jt.Var:
    """(B, 3, R, R) -> (B, M, D): every patch's token behind the last norm and projection, not normalised (CALIP)."""
    visual = model.visual
    x = visual.transformer.part(visual.embed(images), 0, len(visual.transformer.resblocks))
    return jt.matmul(visual.ln_post(x[:, 1:]), visual.proj)
