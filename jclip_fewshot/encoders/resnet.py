"""An image tower without a text tower: torchvision's ResNet-50 layout (He et al. 2016, arXiv:1512.03385).

Read from supervised checkpoints and from MoCo's (v2: arXiv:1911.05722, v3: arXiv:2104.02057), whose tensors have the
same names behind a prefix. A row is the mean of the last feature map, without the classifier on top.

Deviation: images are resized and cropped as CLIP's are (bicubic, the shorter side to R), not to 256 pixels first.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.runtime import start
from jclip_fewshot.clip.checkpoint import read_tensors
from jclip_fewshot.clip.checkpoint.architecture import Shapes, bottlenecks, conv_shapes, require_shapes
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder, Options
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.encoders.preprocessing import IMAGENET

MEAN, STD = IMAGENET["image_mean"], IMAGENET["image_std"]  # as torchvision has them
PREFIXES = ("", "module.", "module.encoder_q.", "encoder_q.", "module.base_encoder.", "base_encoder.", "backbone.",
            "model.", "_orig_mod.", "model_state_dict.")
NORM = ("weight", "bias", "running_mean", "running_var")
STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
IMAGE_SIZE = 224


def tower_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of such a tower, whole or not, without prefix, classifier and counters; none of another."""
    for prefix in PREFIXES:
        if f"{prefix}layer1.0.conv3.weight" in tensors and f"{prefix}conv1.weight" in tensors:
            found = {name[len(prefix):]: array for name, array in tensors.items() if name.startswith(prefix)}
            return {name: array for name, array in found.items()
                    if name.split(".")[0] in STAGES and not name.endswith("num_batches_tracked")}
    return {}


def layout(tensors: dict[str, np.ndarray]) -> Shapes:
    """Return name and shape of every tensor of the tower whose blocks and widths `tensors` tell."""
    first, stages = tensors["conv1.weight"].shape or (0,), []
    for stage in range(1, 5):
        blocks = next(n for n in itertools.count(1) if f"layer{stage}.{n}.conv1.weight" not in tensors)
        stages.append((blocks, next(iter(np.shape(tensors.get(f"layer{stage}.0.conv1.weight", ()))), 0)))
    return {**conv_shapes("conv1", "bn1", first[0], 3, first[-1]), **bottlenecks("", first[0], stages)}


def folded(tensors: dict[str, np.ndarray], conv: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a convolution's weight (C', C, k, k) and bias (C',), the frozen batch norm behind it folded in."""
    norm = conv.replace("conv", "bn").replace("downsample.0", "downsample.1")
    weight, bias, mean, var = (np.asarray(tensors[f"{norm}.{part}"], np.float64) for part in NORM)
    scale = weight / np.sqrt(var + 1e-5)
    kernel = np.asarray(tensors[f"{conv}.weight"], np.float64) * scale[:, None, None, None]
    return kernel.astype(np.float32), (bias - mean * scale).astype(np.float32)


def recognises(path: Path) -> bool:
    return bool(tower_tensors(read_tensors(path, outline=True)))


class ResNetEncoder(Encoder):
    """A frozen ResNet, without texts; raise UserError if a tensor of it is missing, of another shape or unknown."""

    has_text = False

    def __init__(self, path: Path, name: str, options: Options) -> None:
        device = start(options.device).device
        tensors = tower_tensors(read_tensors(path))
        expected = layout(tensors)
        require_shapes({tensor: tuple(array.shape) for tensor, array in tensors.items()}, expected,
                       f"{name}: its tensors are not those of a ResNet of torchvision's layout")
        self._convs = {conv: tuple(jt.array(array).stop_grad() for array in folded(tensors, conv))
                       for conv in (tensor[:-len(".weight")] for tensor, shape in expected.items() if len(shape) == 4)}
        super().__init__(name, file_digest(path, options.cache), "float32", IMAGE_SIZE,
                         len(tensors["layer4.0.conv3.weight"]), 100.0, options.batch_size, device,
                         sum(math.prod(shape) for shape in expected.values()),
                         PixelRecipe((IMAGE_SIZE, IMAGE_SIZE), mean=MEAN, std=STD))

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        self.shape_at(depth)
        x = jt.nn.relu(self._conv(jt.array(self.recipe.normalized(pixels)), "conv1", 2))
        x = jt.nn.max_pool2d(x, 3, 2, 1)
        for block in (conv[:-len(".conv1")] for conv in self._convs if conv.endswith(".conv1")):
            stride = 2 if block in ("layer2.0", "layer3.0", "layer4.0") else 1
            y = jt.nn.relu(self._conv(x, f"{block}.conv1"))
            y = jt.nn.relu(self._conv(y, f"{block}.conv2", stride))
            y = self._conv(y, f"{block}.conv3")
            x = jt.nn.relu(y + (self._conv(x, f"{block}.downsample.0", stride) if block.endswith(".0") else x))
        return x.mean(3).mean(2).numpy()

    def _conv(self, x: jt.Var, name: str, stride: int = 1) -> jt.Var:
        weight, bias = self._convs[name]
        return jt.nn.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)
