"""Encoders made of a CLIP, whose model they share. B images · R pixels a side · K classes"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.storage.files import content_digest

ONE = 100.0  # the last coordinate of `homogeneous`, about as large as the others


class FunctionEncoder(ClipEncoder):
    """`base` with rows (width,) by `function` of images (B, 3, R, R), which depends on `said` and on weights alone."""

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
