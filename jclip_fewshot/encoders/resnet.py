"""An image tower without a text tower: torchvision's ResNet-50 layout (He et al. 2016, arXiv:1512.03385).

Read from supervised checkpoints and from MoCo's (v2: He et al. 2020, arXiv:1911.05722; v3: Chen et al. 2021,
arXiv:2104.02057), whose tensors have the same names behind a prefix. The classifier on top is left out: a row is
the mean of the last feature map, 2048 numbers on a ResNet-50.

B images · R pixels a side · C channels

Deviation: images are resized and cropped as CLIP's are (bicubic, the shorter side to R), not to 256 pixels first.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.runtime import on_cuda, start
from jclip_fewshot.clip.checkpoint import read_tensors
from jclip_fewshot.clip.checkpoint.files import holds_weights
from jclip_fewshot.data.recipe import clip_recipe
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder, Options
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has them
PREFIXES = ("", "module.", "module.encoder_q.", "encoder_q.", "module.base_encoder.", "base_encoder.", "backbone.",
            "model.", "_orig_mod.", "model_state_dict.")
TOP = re.compile(r"(fc|head|predictor|projector)\b.*")  # classifiers and projection heads: not part of a row
COUNTER = "num_batches_tracked"
IMAGE_SIZE, CPU_BATCH, CUDA_BATCH = 224, 16, 128


def tower_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tower's tensors under torchvision's names, without prefix, classifier and counters.

    Raises:
        UserError: no ResNet of torchvision's layout in it.
    """
    for prefix in PREFIXES:
        if f"{prefix}layer1.0.conv3.weight" in tensors and f"{prefix}conv1.weight" in tensors:
            names = (name for name in tensors if name.startswith(prefix))
            found = {name[len(prefix):]: tensors[name] for name in names}
            return {name: array for name, array in found.items()
                    if not TOP.match(name) and not name.endswith(COUNTER) and name.split(".")[0] in STAGES}
    raise UserError("no ResNet of torchvision's layout: conv1.weight and layer1.0.conv3.weight are missing")


STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def holds_resnet(tensors: dict[str, np.ndarray]) -> bool:
    """Whether a checkpoint's tensors look like such a tower, whole or not."""
    return any(f"{prefix}layer1.0.conv3.weight" in tensors and f"{prefix}conv1.weight" in tensors
               for prefix in PREFIXES)


def layout(tensors: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the tower whose blocks and widths `tensors` tell.

    Raises:
        UserError: a stage without blocks, or a first convolution of another shape.
    """
    first = tensors["conv1.weight"].shape
    if len(first) != 4 or first[1] != 3:
        raise UserError(f"conv1.weight is {first}; a tower for RGB images has (C, 3, k, k)")
    shapes = {"conv1.weight": first, **_norm("bn1", first[0])}
    inputs = first[0]
    for stage in range(1, 5):
        blocks = {int(name.split(".")[1]) for name in tensors if re.match(rf"layer{stage}\.\d+\.", name)}
        if blocks != set(range(len(blocks))) or not blocks:
            raise UserError(f"layer{stage} has the blocks {sorted(blocks)}; they must be numbered from 0 without gaps")
        planes = np.shape(tensors.get(f"layer{stage}.0.conv1.weight", ()))[:1]
        planes = int(planes[0]) if planes else 0
        for block in range(len(blocks)):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (planes, inputs, 1, 1)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * planes, planes, 1, 1)
            for number, width in ((1, planes), (2, planes), (3, 4 * planes)):
                shapes.update(_norm(f"{name}.bn{number}", width))
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                shapes.update(_norm(f"{name}.downsample.1", 4 * planes))
            inputs = 4 * planes
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


class ResNet:
    """The frozen tower: (B, 3, R, R) float32 -> (B, C)."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        tensors = tower_tensors(tensors)
        expected = layout(tensors)
        for name, shape in expected.items():
            if name not in tensors:
                raise UserError(f"the ResNet lacks {name}")
            if tuple(tensors[name].shape) != shape:
                raise UserError(f"{name} is {tuple(tensors[name].shape)}, not {shape}")
        unknown = sorted(set(tensors) - set(expected))
        if unknown:
            raise UserError(f"the ResNet has tensors that torchvision's layout does not know: {unknown[0]}")
        self.blocks = [sum(name.startswith(f"layer{stage}.") and name.endswith("conv1.weight") for name in expected)
                       for stage in range(1, 5)]
        self.width = expected[f"layer4.{self.blocks[3] - 1}.conv3.weight"][0]
        self.parameters = sum(int(np.prod(shape)) for shape in expected.values())
        self._weights, self._shifts = {}, {}
        for name in expected:
            if name.endswith("conv1.weight") or ".conv" in name or name.endswith("downsample.0.weight"):
                self._fold(name[:-len(".weight")], tensors)

    def _fold(self, conv: str, tensors: dict[str, np.ndarray]) -> None:
        """A frozen batch norm is a scale and a shift: they go into the convolution before it."""
        norm = conv.replace("downsample.0", "downsample.1") if "downsample" in conv else \
            re.sub(r"conv(\d)$", r"bn\1", conv)
        weight, bias, mean, var = (np.asarray(tensors[f"{norm}.{part}"], np.float64)
                                   for part in ("weight", "bias", "running_mean", "running_var"))
        scale = weight / np.sqrt(var + 1e-5)
        folded = np.asarray(tensors[f"{conv}.weight"], np.float64) * scale[:, None, None, None]
        self._weights[conv] = jt.array(folded.astype(np.float32)).stop_grad()
        self._shifts[conv] = jt.array((bias - mean * scale).astype(np.float32).reshape(1, -1, 1, 1)).stop_grad()

    def _conv(self, x: jt.Var, name: str, stride: int = 1) -> jt.Var:
        weight = self._weights[name]
        return jt.nn.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2) + self._shifts[name]

    def __call__(self, images: jt.Var) -> jt.Var:
        x = jt.nn.relu(self._conv(images, "conv1", 2))
        x = jt.nn.max_pool2d(x, 3, 2, 1)
        for stage, blocks in enumerate(self.blocks, start=1):
            for block in range(blocks):
                name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
                y = jt.nn.relu(self._conv(x, f"{name}.conv1"))
                y = jt.nn.relu(self._conv(y, f"{name}.conv2", stride))
                y = self._conv(y, f"{name}.conv3")
                shortcut = self._conv(x, f"{name}.downsample.0", stride) if block == 0 else x
                x = jt.nn.relu(y + shortcut)
        return x.mean(3).mean(2)


def recognises(path: Path) -> bool:
    """Whether a checkpoint's tensors look like such a tower, whole or not."""
    return holds_weights(path) and holds_resnet(read_tensors(path, outline=True))


def open_resnet(path: Path, name: str, options: Options) -> ImageEncoder:
    """Open such a tower.

    Raises:
        UserError: a tensor of it is missing, of another shape or unknown.
    """
    start(options.device)
    try:
        return ImageEncoder(read_tensors(path), name, file_digest(path, options.cache), options.batch_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class ImageEncoder(Encoder):
    """A ResNet as an encoder of images; it has no texts and no scale of its own."""

    has_text = False

    def __init__(self, tensors: dict[str, np.ndarray], name: str, weights_digest: str,
                 batch_size: int = 0) -> None:
        self._tower = ResNet(tensors)
        cuda = on_cuda()
        super().__init__(name, weights_digest, "float32", IMAGE_SIZE, self._tower.width, 100.0,
                         batch_size or (CUDA_BATCH if cuda else CPU_BATCH), "cuda" if cuda else "cpu",
                         self._tower.parameters, replace(clip_recipe(IMAGE_SIZE), mean=MEAN, std=STD))

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        if depth != ROWS:
            self.shape_at(depth)
        return self._tower(jt.array(self.recipe.normalized(pixels))).numpy()

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        raise UserError(f"{self.name} has no text tower")
