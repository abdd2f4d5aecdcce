"""CLIP's towers and a linear classifier as ONNX graphs: what any program with ONNX Runtime can answer with.

The graphs are written with the `onnx` library alone, out of a state dict with OpenAI's names (clip/model.py says the
same in Jittor), and ONNX Runtime must give our own rows before a file is written.

N images or texts · R pixels a side · L tokens · W width of a tower · H heads · D feature width · K classes
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.checkpoint.architecture import Architecture, Tower
from jclip_fewshot.combine.linear import Linear
from jclip_fewshot.data.recipe import FIT, SQUASH, PixelRecipe
from jclip_fewshot.encoders.clip_encoder import drawn_images
from jclip_fewshot.encoders.onnx_encoder import library
from jclip_fewshot.encoders.resnet import folded
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write
from jclip_fewshot.storage.json_files import write_json

OPSET, IR = 17, 8  # of 2022: what ONNX Runtime 1.13 and newer read
SAME = 1e-4  # how far ONNX Runtime's unit rows may lie from ours
LARGEST = 2 << 30  # bytes that one protobuf message holds
PIXELS, ROWS, ANSWERS = "pixels", "image_embeds", "probabilities"


class Graph:
    """Nodes and stored tensors. `g.MatMul(x, y)` adds a node and returns its output's name; numbers are stored."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors, self._onnx = tensors, library("onnx")
        self._nodes: list[Any] = []
        self._stored: dict[str, Any] = {}

    def __getattr__(self, operator: str) -> Callable[..., str]:
        return partial(self.add, operator)

    def add(self, operator: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """A node of one output."""
        name = name or f"{operator}_{len(self._nodes)}"
        given = [one if isinstance(one, str) else self.store(one) for one in inputs]
        self._nodes.append(self._onnx.helper.make_node(operator, given, [name], **attributes))
        return name

    def store(self, values: Any, name: str = "") -> str:
        """A tensor that the graph holds: whole numbers (axes, shapes, ids) as int64, others as float32."""
        name, array = name or f"constant_{len(self._stored)}", np.array(values, order="C")
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32, copy=False)
        self._stored[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def tensor(self, name: str, transposed: bool = False) -> str:
        array = np.asarray(self.tensors[name], np.float32)
        return self.store(array.T, name + ".T") if transposed else self.store(array, name)

    def linear(self, x: str, name: str) -> str:
        """x Wᵀ + b of a layer that the state dict has as `name`weight (outputs, inputs) and `name`bias."""
        return self.Add(self.MatMul(x, self.tensor(name + "weight", True)), self.tensor(name + "bias"))

    def norm(self, x: str, name: str, eps: float) -> str:
        return self.LayerNormalization(x, self.tensor(name + ".weight"), self.tensor(name + ".bias"), axis=-1,
                                       epsilon=eps)

    def model(self, inputs: dict[str, tuple], outputs: dict[str, tuple], metadata: dict[str, str]) -> Any:
        """The ONNX model. inputs: {name: (NumPy type, *shape)}, outputs likewise, "N" for any number."""
        helper = self._onnx.helper
        given, found = ([helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
                         for name, (kind, *shape) in values.items()] for values in (inputs, outputs))
        graph = helper.make_graph(self._nodes, "clip", given, found, list(self._stored.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR,
                                  producer_name="jclip_fewshot")
        helper.set_model_props(model, metadata)
        return model


def image_rows(g: Graph, pixels: str, sizes: Architecture) -> str:
    """(N, 3, R, R) -> (N, D), not normalised: VisionTransformer or ModifiedResNet of clip/."""
    if sizes.vision_patch_size is None:
        return _resnet(g, pixels, sizes)
    how, width, patch = sizes.conventions.image, sizes.vision_width, sizes.vision_patch_size
    x = g.Conv(pixels, g.tensor("visual.conv1.weight"), strides=[patch, patch], kernel_shape=[patch, patch])
    x = g.Transpose(g.Reshape(x, [0, width, -1]), perm=[0, 2, 1])
    shape = g.Concat(g.Gather(g.Shape(pixels), [0]), [1, width], axis=0)
    x = g.Concat(g.Expand(g.tensor("visual.class_embedding"), shape), x, axis=1)
    x = g.Add(x, g.tensor("visual.positional_embedding"))
    if sizes.norm_before:
        x = g.norm(x, "visual.ln_pre", how.eps)
    x = _blocks(g, x, "visual.transformer", sizes.stages[0], width, how)
    if sizes.conventions.pool == "class":
        x = g.Gather(x, 0, axis=1)
    else:
        x = g.ReduceMean(g.Slice(x, [1], [1 << 30], [1]), axes=[1], keepdims=0)
    return g.MatMul(g.norm(x, "visual.ln_post", how.eps), g.tensor("visual.proj"))


def text_rows(g: Graph, ids: str, sizes: Architecture) -> str:
    """(N, L) int64, L at most the context length -> (N, D), not normalised."""
    how, most = sizes.conventions, sizes.context_length
    length = g.Slice(g.Shape(ids), [1], [2])
    positions = g.Slice(g.tensor("positional_embedding"), [0], length, [0])
    x, mask = g.Add(g.Gather(g.tensor("token_embedding.weight"), ids), positions), ""
    if how.causal:
        mask = g.Slice(np.triu(np.full((most, most), -np.inf), 1), [0, 0], g.Concat(length, length, axis=0), [0, 1])
    x = _blocks(g, x, "transformer", sizes.transformer_layers, sizes.transformer_width, how.text, mask)
    if how.text_pool == "last":
        x = g.Gather(x, -1, axis=1)
    else:
        marks = ids if how.text_pool == "highest" else g.Cast(g.Equal(ids, how.end), to=6)  # int32
        x = g.GatherND(x, g.ArgMax(marks, axis=1, keepdims=1), batch_dims=1)
    x = g.MatMul(g.norm(x, "ln_final", how.text.eps), g.tensor("text_projection"))
    return g.Add(x, g.tensor("text_projection_bias")) if sizes.projection_bias else x


def _blocks(g: Graph, x: str, name: str, layers: int, width: int, how: Tower, mask: str = "") -> str:
    """(N, L, W) -> (N, L, W): residual attention blocks. mask (L, L): added to the scores."""
    for block in (f"{name}.resblocks.{number}" for number in range(layers)):
        y = g.linear(g.norm(x, f"{block}.ln_1", how.eps), f"{block}.attn.in_proj_")
        parts = [g.Slice(y, [part * width], [(part + 1) * width], [2]) for part in range(3)]
        y = _attention(g, parts, width, width // how.head_width, mask)
        x = g.Add(x, g.linear(y, f"{block}.attn.out_proj."))
        y = _activation(g, g.linear(g.norm(x, f"{block}.ln_2", how.eps), f"{block}.mlp.c_fc."), how.activation)
        x = g.Add(x, g.linear(y, f"{block}.mlp.c_proj."))
    return x


def _attention(g: Graph, parts: list[str], width: int, heads: int, mask: str = "") -> str:
    """Query (N, Q, W), key and value (N, L, W) -> (N, Q, W)."""
    query, key, value = (g.Transpose(g.Reshape(part, [0, 0, heads, width // heads]), perm=order)
                         for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])))
    scores = g.MatMul(g.Mul(query, (width // heads) ** -0.5), key)
    scores = g.Add(scores, mask) if mask else scores
    mixed = g.Transpose(g.MatMul(g.Softmax(scores, axis=-1), value), perm=[0, 2, 1, 3])
    return g.Reshape(mixed, [0, 0, width])


def _activation(g: Graph, x: str, name: str) -> str:
    if name == "quick_gelu":
        return g.Mul(x, g.Sigmoid(g.Mul(x, 1.702)))
    if name == "gelu":
        inner = g.Erf(g.Mul(x, math.sqrt(0.5)))
    else:
        cube = g.Mul(g.Mul(g.Mul(x, x), x), 0.044715)
        inner = g.Tanh(g.Mul(g.Add(x, cube), math.sqrt(2 / math.pi)))
    return g.Mul(g.Mul(x, g.Add(inner, 1.0)), 0.5)


def _resnet(g: Graph, x: str, sizes: Architecture) -> str:
    """ModifiedResNet: three convolutions, bottlenecks, attention whose one query is the mean over all positions."""
    for number in (1, 2, 3):
        x = g.Relu(_conv(g, x, f"visual.conv{number}", 2 if number == 1 else 1))
    x = _halved(g, x)
    for stage, blocks in enumerate(sizes.stages, 1):
        for number in range(blocks):
            name, halves = f"visual.layer{stage}.{number}", number == 0 and stage > 1
            y = g.Relu(_conv(g, x, f"{name}.conv1"))
            y = g.Relu(_conv(g, y, f"{name}.conv2"))
            y = _conv(g, _halved(g, y) if halves else y, f"{name}.conv3")
            if number == 0:
                x = _conv(g, _halved(g, x) if halves else x, f"{name}.downsample.0")
            x = g.Relu(g.Add(x, y))
    width = 32 * sizes.vision_width
    x = g.Transpose(g.Reshape(x, [0, width, -1]), perm=[0, 2, 1])
    x = g.Concat(g.ReduceMean(x, axes=[1], keepdims=1), x, axis=1)
    x = g.Add(x, g.tensor("visual.attnpool.positional_embedding"))
    parts = [g.linear(of, f"visual.attnpool.{part}_proj.") for of, part in (
        (g.Slice(x, [0], [1], [1]), "q"), (x, "k"), (x, "v"))]
    pooled = g.Reshape(_attention(g, parts, width, sizes.vision_heads), [0, width])
    return g.linear(pooled, "visual.attnpool.c_proj.")


def _conv(g: Graph, x: str, conv: str, stride: int = 1) -> str:
    kernel, bias = folded(g.tensors, conv)
    side = kernel.shape[-1]
    return g.Conv(x, kernel, bias, strides=[stride, stride], kernel_shape=[side, side], pads=[side // 2] * 4)


def _halved(g: Graph, x: str) -> str:
    return g.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2])


def answers(g: Graph, rows: str, linear: Linear) -> str:
    """(N, D) -> (N, K) probabilities: Linear.probs."""
    x = g.Div(rows, g.Max(g.ReduceL2(rows, axes=[-1], keepdims=1), 1e-12))
    bias = np.where(linear.seen, linear.bias, np.float32(-1e9))  # so that a class without shots gets no share here
    logits = g.Add(g.MatMul(x, linear.weight.T), bias)
    if linear.seen.all():
        return g.Softmax(logits, axis=-1, name=ANSWERS)
    p = g.Softmax(logits, axis=-1)
    z = g.Mul(g.Softmax(g.Mul(g.MatMul(x, linear.text.T), float(linear.scale)), axis=-1), ~linear.seen)
    p = g.Add(g.Mul(p, g.Sub(1.0, g.ReduceSum(z, [-1], keepdims=1))), g.Mul(z, math.exp(linear.offset)))
    return g.Div(p, g.ReduceSum(p, [-1], keepdims=1), name=ANSWERS)


def save_classifier(path: str | Path, linear: Linear, encoder: Any, uint8: bool, metadata: dict[str, str]) -> float:
    """Write pixels -> probabilities as one file, and return how far ONNX Runtime's unit rows lie from ours.

    uint8: pixels (N, R, R, 3) as Pillow has them, normalised inside; else (N, 3, R, R) float32, already normalised.
    Raise UserError if it is no CLIP, is over 2 GB, there is no `onnx`, or ONNX Runtime gives other rows.
    """
    g, sizes, recipe = _graph_of(encoder), encoder.model.architecture, encoder.recipe
    x = PIXELS
    if uint8:
        mean, std = (np.reshape(three, (3, 1, 1)) for three in (recipe.mean, recipe.std))
        x = g.Div(g.Sub(g.Div(g.Transpose(g.Cast(x, to=1), perm=[0, 3, 1, 2]), 255.0), mean), std)
    answers(g, g.Identity(image_rows(g, x, sizes), name=ROWS), linear)
    shape = (np.uint8, "N", *recipe.size, 3) if uint8 else (np.float32, "N", 3, *recipe.size)
    model = g.model({PIXELS: shape}, {ANSWERS: (np.float32, "N", len(linear.bias)),
                                      ROWS: (np.float32, "N", sizes.embed_dim)}, metadata)
    pixels = drawn_images(recipe.size[0])
    feeds = {PIXELS: pixels if uint8 else recipe.normalized(pixels)}
    content, gap, (probs, rows) = _verified(path, model, feeds, encoder.images(pixels))
    if np.abs(probs - linear.probs(rows)).max() > SAME:
        raise UserError(f"{path}: ONNX Runtime gives other probabilities than this program; nothing was written")
    with atomic_write(path) as file:
        file.write(content)
    return gap


def save_towers(folder: str | Path, encoder: Any) -> float:
    """Write a CLIP of CLIP's own vocabulary as a folder as on the hub; return and raise as `save_classifier` does."""
    tensors, sizes, recipe = _graph_of(encoder).tensors, encoder.model.architecture, encoder.recipe
    pixels, tokens = drawn_images(recipe.size[0]), _drawn_texts(sizes)
    folder, contents, gaps = Path(folder), dict[Path, bytes](), list[float]()
    for tower, given, kind, rows_of, output, feed, wanted in (
            ("vision", "pixel_values", (np.float32, "N", 3, *recipe.size), image_rows, "image_embeds",
             recipe.normalized(pixels), encoder.images(pixels)),
            ("text", "input_ids", (np.int64, "N", "L"), text_rows, "text_embeds",
             tokens.astype(np.int64), encoder.texts(tokens))):
        g, path = Graph(tensors), folder / f"onnx/{tower}_model.onnx"
        g.Identity(rows_of(g, given, sizes), name=output)
        model = g.model({given: kind}, {output: (np.float32, "N", sizes.embed_dim)},
                        {"logit_scale": repr(encoder.scale)})
        contents[path], gap, _ = _verified(path, model, {given: feed}, wanted)
        gaps.append(gap)
    for path, content in contents.items():
        with atomic_write(path) as file:
            file.write(content)
    for name, said in _settings(sizes, recipe).items():
        write_json(folder / name, said)
    return max(gaps)


def _settings(sizes: Architecture, recipe: PixelRecipe) -> dict[str, dict]:
    """What the JSON files say. preprocess_cfg is open_clip's form: transformers' rounds an odd margin down."""
    mean, std, (height, width) = list(recipe.mean), list(recipe.std), recipe.size
    size = {"height": height, "width": width}
    text = {"vocab_size": sizes.vocab_size, "max_position_embeddings": sizes.context_length, "pad_token_id": 0}
    config: dict[str, Any] = {"model_type": "clip", "projection_dim": sizes.embed_dim, "text_config": text}
    if recipe.odd_margin == "even":
        config["preprocess_cfg"] = {
            "size": [height, width], "mean": mean, "std": std, "fill_color": list(recipe.fill),
            "interpolation": Image.Resampling(recipe.interpolation).name.lower(),
            "resize_mode": {SQUASH: "squash", FIT: "longest"}.get(recipe.resize, "shortest")}
    hub = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "resample": recipe.interpolation,
           "do_center_crop": True, "crop_size": size, "do_rescale": True, "rescale_factor": 1 / 255,
           "size": size if recipe.resize == SQUASH else {"shortest_edge": (recipe.scale or recipe.size)[0]},
           "do_normalize": True, "image_mean": mean, "image_std": std}
    return {"config.json": config, **({} if recipe.resize == FIT else {"preprocessor_config.json": hub})}


def _graph_of(encoder: Any) -> Graph:
    model = getattr(encoder, "model", None)
    if model is None:
        raise UserError(f"{encoder.name} is no CLIP in Jittor, so its tower cannot be written as ONNX; export to .npz")
    library("onnxruntime")  # found out before the work
    from jclip_fewshot.clip.model import numpy_state_dict
    return Graph(numpy_state_dict(model))


def _drawn_texts(sizes: Architecture) -> np.ndarray:
    """(3, L) ids: texts of several lengths with an end mark."""
    end = sizes.conventions.end if sizes.conventions.text_pool == "end" else sizes.vocab_size - 1
    ids = np.random.default_rng(0).integers(3, sizes.vocab_size - 1, (3, sizes.context_length)).astype(np.int32)
    for row, length in zip(ids, (2, sizes.context_length // 2, sizes.context_length)):
        row[length - 1:] = 0
        row[length - 1] = end
    return ids


def _verified(path: str | Path, model: Any, feeds: dict[str, np.ndarray], wanted: np.ndarray
              ) -> tuple[bytes, float, list[np.ndarray]]:
    """The file's bytes, how far its last output's unit rows lie from those that are wanted, and all outputs."""
    if model.ByteSize() >= LARGEST:
        raise UserError(f"{path} would have {model.ByteSize() >> 20} MB, and one ONNX file holds 2,048; export to .npz")
    content = model.SerializeToString()
    found = library("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feeds)
    gap = float(np.abs(unit_rows(found[-1]) - unit_rows(wanted)).max())
    if not gap <= SAME:
        raise UserError(f"{path}: ONNX Runtime's rows differ from this program's by {gap:.1e}, over {SAME:g}; nothing "
                        "was written")
    return content, gap, found
