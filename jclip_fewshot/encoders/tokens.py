"""All of the image tower's last tokens as one row: the class token unprojected, and the patches' extremes.

CLIP's projection keeps D of W directions of one token. The row here, (3W,), is what it leaves out as well: the class
token after the last norm, and maximum and minimum over the patches' tokens after it, each of unit length. Mean,
deviation and earlier blocks were tried: docs/tuning.md.

B images · L tokens · W width of the image tower
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.storage.files import content_digest

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

EDITION = "tokens-1"  # in the fingerprint: to be raised when a row changes


def last_block(model: CLIP) -> int:
    """Number of the image tower's last block, whose input `token_rows` takes."""
    return len(model.visual.transformer.resblocks) - 1


def token_rows(model: CLIP, x: jt.Var) -> jt.Var:
    """x (B, L, W), the input of the last block -> (B, 3W)."""
    tokens = model.visual.transformer.resblocks[last_block(model)](x)
    tokens = model.visual.ln_post(tokens)
    patches = tokens[:, 1:]
    return jt.concat([unit_var(tokens[:, 0]), unit_var(patches.max(1)), unit_var(patches.min(1))], dim=1)


class TokenEncoder(ClipEncoder):
    """`base` with rows of its tokens, (3W,), in the place of its features; it encodes no texts."""

    def __init__(self, base: ClipEncoder) -> None:
        digest = content_digest(f"{EDITION} {base.weights_digest}".encode()).hex()
        super().__init__(base.model, f"{base.name} tokens", digest, base.batch_size, base.tokens, base.recipe)
        self.has_text = False
        self.width = 3 * base.model.visual.shape_at(None)[0]

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        if depth != ROWS:
            return super().images(pixels, depth)
        x = super().images(pixels, last_block(self.model))
        with jt.no_grad():
            return self._numpy(token_rows(self.model, jt.array(x).cast(self.model.dtype)).float32())
