"""Encoders made of a CLIP, whose model they share: rows are any function of its images.

B images · K classes · L tokens · W width of the image tower
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.storage.files import content_digest

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

ONE = 100.0  # the last coordinate of `homogeneous`, about as large as the others
TOKENS = b"tokens-1"  # in the fingerprint: to be raised when a row of `token_encoder` changes


class FunctionEncoder(ClipEncoder):
    """`base` with rows (width,) by `function`, of images (B, 3, R, R); it encodes no texts.

    said: all that the function depends on beside the weights of `base`, for the fingerprint.
    """

    def __init__(self, base: ClipEncoder, name: str, said: bytes, width: int,
                 function: Callable[[jt.Var], jt.Var]) -> None:
        digest = content_digest(base.weights_digest.encode() + b"\0" + said).hex()
        super().__init__(base.model, f"{base.name} {name}", digest, base.batch_size, base.tokens, base.recipe)
        self.has_text, self.width, self._function = False, width, function

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        if depth != ROWS:
            return super().images(pixels, depth)
        with jt.no_grad():
            return self._numpy(self._function(self.prepared(pixels)).float32())


def tuned_encoder(base: ClipEncoder, tensors: dict[str, np.ndarray], name: str) -> FunctionEncoder:
    """Return `base` with `tensors` in the place of its own, {OpenAI's name: array in the model's layout}."""
    arrays = {key: np.ascontiguousarray(tensors[key], np.float32) for key in sorted(tensors)}
    said = b"\0".join(part for key, array in arrays.items() for part in (key.encode(), array.tobytes()))
    own = {key: jt.array(array).cast(base.model.dtype).stop_grad() for key, array in arrays.items()}

    def rows(images: jt.Var) -> jt.Var:
        with replaced(base.model, own):
            found = base.model.encode_image(images)
            found.sync()
        return found
    return FunctionEncoder(base, name, said, base.width, rows)


def homogeneous(logits: jt.Var) -> jt.Var:
    """Logits (B, K) -> rows (B, K + 1), whose length says nothing: rows are stored with unit length."""
    return jt.concat([logits.float32(), jt.full((logits.shape[0], 1), ONE)], dim=1)


def logits_of(rows: np.ndarray) -> np.ndarray:
    """Return the logits (N, K) that `homogeneous` rows (N, K + 1) of any length stand for."""
    return (ONE * rows[:, :-1] / rows[:, -1:]).astype(np.float32)


def last_block(model: CLIP) -> int:
    """Return the number of the image tower's last block, whose input `token_rows` takes."""
    return len(model.visual.transformer.resblocks) - 1


def token_rows(model: CLIP, x: jt.Var) -> jt.Var:
    """x (B, L, W), the input of the last block -> (B, 3W): all of the last tokens as one row.

    The class token after the last norm, and maximum and minimum over the patches' tokens, each of unit length. CLIP's
    projection keeps D of W directions of the first alone. Other choices: docs/notes/tuning.md.
    """
    tokens = model.visual.ln_post(model.visual.transformer.resblocks[last_block(model)](x))
    patches = tokens[:, 1:]
    return jt.concat([unit_var(tokens[:, 0]), unit_var(patches.max(1)), unit_var(patches.min(1))], dim=1)


def token_encoder(base: ClipEncoder) -> FunctionEncoder:
    """Return `base` with rows of its tokens, (3W,), in the place of its features."""
    model = base.model
    return FunctionEncoder(base, "tokens", TOKENS, 3 * model.visual.shape_at(None)[0], lambda images: token_rows(
        model, model.visual.activations(images, last_block(model)).cast(model.dtype)))
