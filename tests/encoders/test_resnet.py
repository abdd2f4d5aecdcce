"""The ResNet against a NumPy version of its definition in float64, on small random weights."""

import numpy as np
import pytest

from jclip_fewshot.clip.checkpoint import write_safetensors
from jclip_fewshot.encoders import open_encoder
from jclip_fewshot.encoders.resnet import MEAN, STD, tower_tensors
from jclip_fewshot.errors import UserError
from tests.encoders.random_resnet import BLOCKS, PLANES, random_tensors


def convolve(x, weight, stride):
    """(B, C, H, W), (O, C, k, k) -> (B, O, H', W'), zero padding of half the kernel."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight.astype(np.float64), optimize=True)


def normalise(x, tensors, name):
    weight, bias, mean, var = (tensors[f"{name}.{part}"].astype(np.float64)[:, None, None]
                               for part in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def expected_rows(tensors, pixels):
    x = ((pixels / 255 - np.float64(MEAN)) / np.float64(STD)).transpose(0, 3, 1, 2)
    x = np.maximum(normalise(convolve(x, tensors["conv1.weight"], 2), tensors, "bn1"), 0)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))
    for stage, blocks in enumerate(BLOCKS, start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            y = x
            for number, step in ((1, 1), (2, stride), (3, 1)):
                y = normalise(convolve(y, tensors[f"{name}.conv{number}.weight"], step), tensors, f"{name}.bn{number}")
                y = np.maximum(y, 0) if number < 3 else y
            if block == 0:
                x = normalise(convolve(x, tensors[f"{name}.downsample.0.weight"], stride), tensors,
                              f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x.mean((2, 3))


def test_rows_equal_the_definition(tmp_path):
    tensors = random_tensors()
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    write_safetensors(tmp_path / "small.safetensors", tensors)
    encoder = open_encoder(tmp_path / "small.safetensors", batch_size=3)
    rows, expected = encoder.images(pixels), expected_rows(tensors, pixels)
    assert rows.shape == (3, 4 * PLANES[-1]) and encoder.width == rows.shape[1] and not encoder.has_text
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prefix, top", [("", "fc.weight"), ("module.encoder_q.", "fc.2.weight"),
                                         ("module.base_encoder.", "predictor.0.weight")])
def test_mocos_and_supervised_checkpoints_hold_the_same_tower(prefix, top):
    tensors = random_tensors()
    stored = {prefix + name: array for name, array in tensors.items()}
    stored[prefix + top] = np.zeros((5, 4), np.float32)
    stored[prefix + "bn1.num_batches_tracked"] = np.int64(7)
    if prefix:
        stored["module.queue"] = np.zeros((4, 4), np.float32)
    found = tower_tensors(stored)
    assert set(found) == set(tensors) and all((found[name] == tensors[name]).all() for name in found)


@pytest.mark.parametrize("change, said", [
    (lambda t: t.pop("layer2.0.bn2.bias"), "missing: layer2.0.bn2.bias$"),
    (lambda t: t.update({"layer3.0.bn1.bias": np.zeros(3, np.float32)}), r"misshapen: layer3.0.bn1.bias \(3,\)"),
    (lambda t: t.update({"layer1.7.conv1.weight": np.zeros((4, 16, 1, 1), np.float32)}), "unexpected: layer1.7.conv1"),
    (lambda t: t.update({"conv1.weight": np.zeros((8, 4, 7, 7), np.float32)}), r"misshapen: conv1.weight \(8, 4, 7, 7"),
])
def test_other_checkpoints_are_refused(change, said, tmp_path):
    tensors = random_tensors()
    change(tensors)
    write_safetensors(tmp_path / "small.safetensors", tensors)
    with pytest.raises(UserError, match=f"small.safetensors: .*{said}"):
        open_encoder(tmp_path / "small.safetensors")
