"""A tuned encoder: a CLIP some of whose tensors are others, with a fingerprint of its own."""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.storage.files import content_digest


class TunedEncoder(ClipEncoder):
    """`base` with `tensors` in the place of its own, {OpenAI's name: array in the model's layout}.

    The model is shared with `base`: the tensors are in place while this encoder answers, and at no other time.
    """

    def __init__(self, base: ClipEncoder, tensors: dict[str, np.ndarray], name: str) -> None:
        parts = [base.weights_digest.encode()]
        for key in sorted(tensors):
            parts += [key.encode(), np.ascontiguousarray(tensors[key], np.float32).tobytes()]
        super().__init__(base.model, name, content_digest(b"\0".join(parts)).hex(), base.batch_size, base.tokens,
                         base.recipe)
        self._tensors = {key: jt.array(np.ascontiguousarray(value, np.float32)).cast(base.model.dtype).stop_grad()
                         for key, value in tensors.items()}

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        with replaced(self.model, self._tensors):
            return super().images(pixels, depth)

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        with replaced(self.model, self._tensors):
            return super().texts(tokens)

