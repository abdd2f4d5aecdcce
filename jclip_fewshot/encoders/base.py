"""What every encoder offers. B batch · R pixels a side · L tokens · W width of a tower · D feature width"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip_fewshot.data.recipe import PREPROCESSING, PixelRecipe
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import content_digest

ROWS, UNPROJECTED = "rows", "unprojected"
Depth = str | int  # ROWS (D,), UNPROJECTED (W,) before the last projection, or b: the input of block b, (L, W)


@dataclass(frozen=True)
class Options:
    """How to open an encoder; a family takes what concerns it."""

    device: str | None = None  # "cpu", "cuda" or the one that Jittor runs on
    dtype: str = "float32"  # or "float16", "bfloat16", "auto"
    batch_size: int = 0  # images a batch; 0 fits it to the device
    cache: Any = None  # a FeatureCache, which saves reading a file twice for its digest
    activation: str = ""  # this and the next: of a CLIP, where nothing in or beside its file says them
    head_width: int = 0
    output: str = ""  # of an ONNX file's outputs the one that is the row


class Encoder:
    """Images or sentences in, rows out, not normalised.

    name: what a person calls it. weights_digest: of the weights' content. precision: "float32", ... of the arithmetic.
    scale: of the cosines in zero-shot logits. parameters: numbers in both towers. recipe: what pixels it takes.
    """

    has_text = True  # False where it encodes no sentences
    cpu_batch, cuda_batch = 16, 128  # images a batch where batch_size is 0

    def __init__(self, name: str, weights_digest: str, precision: str, image_size: int,  # noqa: PLR0913 all are facts
                 width: int, scale: float, batch_size: int, device: str = "cpu", parameters: int = 0,
                 recipe: PixelRecipe | None = None) -> None:
        self.name, self.weights_digest, self.precision = name, weights_digest, precision
        self.image_size, self.width, self.scale = image_size, width, scale
        self.device, self.parameters = device, parameters
        self.batch_size = batch_size or (self.cuda_batch if device == "cuda" else self.cpu_batch)
        self.recipe = recipe or PixelRecipe((image_size, image_size))

    @property
    def fingerprint(self) -> str:
        """Two encoders with one fingerprint give the same rows."""
        said = f"{self.weights_digest} {PREPROCESSING} {self.precision}"
        return content_digest((said if self.recipe.is_clips_own else f"{said} {self.recipe}").encode()).hex()

    def shape_at(self, depth: Depth = ROWS) -> tuple:
        """Shape of one image's numbers at a depth: (D,), (W,) or (L, W)."""
        if depth == ROWS:
            return (self.width,)
        raise ValueError(f"{self.name} cannot stop at depth {depth!r}")

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        """(B, H, W, 3) RGB of recipe.dtype -> (B, *shape_at(depth)) float32."""
        raise NotImplementedError

    def texts(self, tokens: np.ndarray) -> np.ndarray:  # noqa: ARG002 for those that have text
        """(B, L) int32 -> (B, D) float32."""
        raise UserError(f"{self.name} has no text tower")

    def tokens(self, sentences: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        """B sentences -> (B, L) int32; raise UserError, which names one that is too long."""
        raise UserError(f"{self.name} has no text tower")

    def lengths(self, tokens: np.ndarray) -> np.ndarray:
        """(B, L) -> (B,): how many columns of each text cost something. Texts of like lengths share a batch."""
        return np.full(len(tokens), tokens.shape[1])
