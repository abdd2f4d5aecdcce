"""CLIP's towers and a linear classifier as ONNX graphs: what any program with ONNX Runtime can answer with.

The graphs are written with the `onnx` library alone, out of a state dict with OpenAI's names (clip/model.py says the
same in Jittor), and every file is checked on the way out: ONNX Runtime must give our own rows.

N images or texts · R pixels a side · L tokens · W width of a tower · H heads · D feature width · K classes
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.clip.checkpoint.architecture import Architecture, Tower
from jclip_fewshot.combine.linear import Linear
from jclip_fewshot.data.recipe import FIT, SQUASH, PixelRecipe
from jclip_fewshot.encoders.precision import drawn_images
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write
from jclip_fewshot.storage.json_files import write_json

OPSET, IR = 17, 8  # of 2022: what ONNX Runtime 1.13 and newer read
SAME = 1e-4  # how far ONNX Runtime's unit rows may lie from ours
LARGEST = 2 << 30  # bytes that one protobuf message holds
PIXELS, ROWS, ANSWERS = "pixels", "image_embeds", "probabilities"


class Graph:
    """Nodes and stored tensors; a value is the name of what a node puts out."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        import onnx
        self._onnx, self._tensors = onnx, tensors
        self._nodes: list[Any] = []
        self._stored: dict[str, Any] = {}

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node of one output."""
        name = name or f"{operator}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def store(self, array: npt.ArrayLike, name: str = "") -> str:
        """A tensor that the graph holds."""
        name = name or f"constant_{len(self._stored)}"
        if name not in self._stored:
            self._stored[name] = self._onnx.numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def number(self, value: float) -> str:
        return self.store(np.float32(value))

    def axes(self, *values: int) -> str:
        return self.store(np.array(values, np.int64), f"axes {values}")

    def tensor(self, name: str, transposed: bool = False) -> str:
        """One of the state dict, float32."""
        array = np.asarray(self._tensors[name], np.float32)
        return self.store(array.T, name + ".T") if transposed else self.store(array, name)

    def linear(self, x: str, name: str) -> str:
        """x Wᵀ + b of a layer that the state dict has as `name`.weight (outputs, inputs) and .bias."""
        return self.add("Add", self.add("MatMul", x, self.tensor(name + ".weight", True)), self.tensor(name + ".bias"))

    def norm(self, x: str, name: str, eps: float) -> str:
        return self.add("LayerNormalization", x, self.tensor(name + ".weight"), self.tensor(name + ".bias"),
                        axis=-1, epsilon=eps)

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
    x = g.add("Conv", pixels, g.tensor("visual.conv1.weight"), strides=[patch, patch], kernel_shape=[patch, patch])
    x = g.add("Transpose", g.add("Reshape", x, g.axes(0, width, -1)), perm=[0, 2, 1])
    count = g.add("Gather", g.add("Shape", pixels), g.axes(0))
    first = g.store(np.asarray(g._tensors["visual.class_embedding"], np.float32).reshape(1, 1, -1), "class")
    first = g.add("Expand", first, g.add("Concat", count, g.axes(1, width), axis=0))
    x = g.add("Add", g.add("Concat", first, x, axis=1), g.tensor("visual.positional_embedding"))
    if sizes.norm_before:
        x = g.norm(x, "visual.ln_pre", how.eps)
    x = _blocks(g, x, "visual.transformer", sizes.stages[0], width, how)
    if sizes.conventions.pool == "class":
        x = g.add("Gather", x, g.store(np.int64(0)), axis=1)
    else:
        patches = g.add("Slice", x, g.axes(1), g.axes(1 << 30), g.axes(1))
        x = g.add("ReduceMean", patches, axes=[1], keepdims=0)
    return g.add("MatMul", g.norm(x, "visual.ln_post", how.eps), g.tensor("visual.proj"))


def text_rows(g: Graph, ids: str, sizes: Architecture) -> str:
    """(N, L) int64, L at most the context length -> (N, D), not normalised."""
    how, most = sizes.conventions, sizes.context_length
    length, start = g.add("Slice", g.add("Shape", ids), g.axes(1), g.axes(2)), g.axes(0)
    positions = g.add("Slice", g.tensor("positional_embedding"), start, length, start)
    x = g.add("Add", g.add("Gather", g.tensor("token_embedding.weight"), ids), positions)
    mask = ""
    if how.causal:
        mask = g.store(np.triu(np.full((most, most), -np.inf, np.float32), 1), "causal")
        mask = g.add("Slice", mask, g.axes(0, 0), g.add("Concat", length, length, axis=0), g.axes(0, 1))
    x = _blocks(g, x, "transformer", sizes.transformer_layers, sizes.transformer_width, how.text, mask)
    if how.text_pool == "last":
        x = g.add("Gather", x, g.store(np.int64(-1)), axis=1)
    else:
        marks = ids if how.text_pool == "highest" else \
            g.add("Cast", g.add("Equal", ids, g.store(np.int64(how.end))), to=6)  # int32
        ends = g.add("ArgMax", marks, axis=1, keepdims=1)
        x = g.add("GatherND", x, ends, batch_dims=1)
    x = g.add("MatMul", g.norm(x, "ln_final", how.text.eps), g.tensor("text_projection"))
    return g.add("Add", x, g.tensor("text_projection_bias")) if sizes.projection_bias else x


def _blocks(g: Graph, x: str, name: str, layers: int, width: int, how: Tower, mask: str = "") -> str:
    """(N, L, W) -> (N, L, W): residual attention blocks. mask (L, L): added to the scores."""
    for number in range(layers):
        block = f"{name}.resblocks.{number}"
        y = g.norm(x, f"{block}.ln_1", how.eps)
        y = g.add("Add", g.add("MatMul", y, g.tensor(f"{block}.attn.in_proj_weight", True)),
                  g.tensor(f"{block}.attn.in_proj_bias"))
        parts = [g.add("Slice", y, g.axes(part * width), g.axes((part + 1) * width), g.axes(2)) for part in range(3)]
        y = _attention(g, parts, width, width // how.head_width, mask)
        x = g.add("Add", x, g.linear(y, f"{block}.attn.out_proj"))
        y = _activation(g, g.linear(g.norm(x, f"{block}.ln_2", how.eps), f"{block}.mlp.c_fc"), how.activation)
        x = g.add("Add", x, g.linear(y, f"{block}.mlp.c_proj"))
    return x


def _attention(g: Graph, parts: list[str], width: int, heads: int, mask: str = "") -> str:
    """Query (N, Q, W), key and value (N, L, W) -> (N, Q, W)."""
    split = g.axes(0, 0, heads, width // heads)
    query, key, value = (g.add("Transpose", g.add("Reshape", part, split), perm=order)
                         for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])))
    scores = g.add("MatMul", g.add("Mul", query, g.number((width // heads) ** -0.5)), key)
    scores = g.add("Add", scores, mask) if mask else scores
    mixed = g.add("Transpose", g.add("MatMul", g.add("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    return g.add("Reshape", mixed, g.axes(0, 0, width))


def _activation(g: Graph, x: str, name: str) -> str:
    if name == "quick_gelu":
        return g.add("Mul", x, g.add("Sigmoid", g.add("Mul", x, g.number(1.702))))
    if name == "gelu":
        inner = g.add("Erf", g.add("Mul", x, g.number(math.sqrt(0.5))))
    else:
        cube = g.add("Mul", g.add("Mul", g.add("Mul", x, x), x), g.number(0.044715))
        inner = g.add("Tanh", g.add("Mul", g.add("Add", x, cube), g.number(math.sqrt(2 / math.pi))))
    return g.add("Mul", g.add("Mul", x, g.add("Add", inner, g.number(1))), g.number(0.5))


def _resnet(g: Graph, x: str, sizes: Architecture) -> str:
    """ModifiedResNet: three convolutions, bottlenecks, attention whose one query is the mean over all positions."""
    for number in (1, 2, 3):
        x = _conv(g, x, f"visual.conv{number}", f"visual.bn{number}", 2 if number == 1 else 1)
    x = _halved(g, x)
    for stage, blocks in enumerate(sizes.stages, 1):
        for number in range(blocks):
            name, halves = f"visual.layer{stage}.{number}", number == 0 and stage > 1
            y = _conv(g, x, f"{name}.conv1", f"{name}.bn1")
            y = _conv(g, y, f"{name}.conv2", f"{name}.bn2")
            y = _conv(g, _halved(g, y) if halves else y, f"{name}.conv3", f"{name}.bn3", relu=False)
            if number == 0:
                shortcut = _halved(g, x) if halves else x
                x = _conv(g, shortcut, f"{name}.downsample.0", f"{name}.downsample.1", relu=False)
            x = g.add("Relu", g.add("Add", x, y))
    width = 32 * sizes.vision_width
    x = g.add("Transpose", g.add("Reshape", x, g.axes(0, width, -1)), perm=[0, 2, 1])
    mean = g.add("ReduceMean", x, axes=[1], keepdims=1)
    x = g.add("Add", g.add("Concat", mean, x, axis=1), g.tensor("visual.attnpool.positional_embedding"))
    first = g.add("Slice", x, g.axes(0), g.axes(1), g.axes(1))
    parts = [g.linear(of, f"visual.attnpool.{part}_proj") for of, part in ((first, "q"), (x, "k"), (x, "v"))]
    pooled = g.add("Reshape", _attention(g, parts, width, sizes.vision_heads), g.axes(0, width))
    return g.linear(pooled, "visual.attnpool.c_proj")


def _conv(g: Graph, x: str, conv: str, norm: str, stride: int = 1, relu: bool = True) -> str:
    """A convolution with the frozen batch norm behind it folded into it."""
    weight, bias, mean, var = (np.asarray(g._tensors[f"{norm}.{part}"], np.float64)
                               for part in ("weight", "bias", "running_mean", "running_var"))
    scale = weight / np.sqrt(var + 1e-5)
    kernel = np.asarray(g._tensors[conv + ".weight"], np.float64) * scale[:, None, None, None]
    side = kernel.shape[-1]
    y = g.add("Conv", x, g.store(np.float32(kernel), conv), g.store(np.float32(bias - mean * scale), norm),
              strides=[stride, stride], kernel_shape=[side, side], pads=[side // 2] * 4)
    return g.add("Relu", y) if relu else y


def _halved(g: Graph, x: str) -> str:
    return g.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])


def answers(g: Graph, rows: str, linear: Linear) -> str:
    """(N, D) -> (N, K) probabilities: Linear.probs."""
    length = g.add("Max", g.add("ReduceL2", rows, axes=[-1], keepdims=1), g.number(1e-12))
    x = g.add("Div", rows, length)
    bias = np.where(linear.seen, linear.bias, np.float32(-1e9))  # so that a class without shots gets no share here
    logits = g.add("Add", g.add("MatMul", x, g.store(np.float32(linear.weight.T), "weight")),
                   g.store(np.float32(bias), "bias"))
    if linear.seen.all():
        return g.add("Softmax", logits, axis=-1, name=ANSWERS)
    p = g.add("Softmax", logits, axis=-1)
    cosines = g.add("MatMul", x, g.store(np.float32(linear.text.T), "text"))
    zero_shot = g.add("Softmax", g.add("Mul", cosines, g.number(linear.scale)), axis=-1)
    z = g.add("Mul", zero_shot, g.store(np.float32(~linear.seen), "unseen"))
    rest = g.add("Sub", g.number(1), g.add("ReduceSum", z, g.axes(-1), keepdims=1))
    p = g.add("Add", g.add("Mul", p, rest), g.add("Mul", z, g.number(math.exp(linear.offset))))
    return g.add("Div", p, g.add("ReduceSum", p, g.axes(-1), keepdims=1), name=ANSWERS)


def normalised(g: Graph, pixels: str, recipe: PixelRecipe) -> str:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) with mean and deviation taken out."""
    mean, std = (np.array(value, np.float32).reshape(1, 3, 1, 1) for value in (recipe.mean, recipe.std))
    x = g.add("Transpose", g.add("Cast", pixels, to=1), perm=[0, 3, 1, 2])
    return g.add("Div", g.add("Sub", g.add("Div", x, g.number(255)), g.store(mean, "mean")), g.store(std, "std"))


def save_classifier(path: str | Path, linear: Linear, encoder: Any, uint8: bool, metadata: dict[str, str]) -> float:
    """Write pixels -> probabilities as one file, and return how far ONNX Runtime's unit rows lie from ours.

    uint8: pixels (N, R, R, 3) as Pillow has them, normalised inside; else (N, 3, R, R) float32, already normalised.
    Raise UserError if it is no CLIP, is over 2 GB, there is no `onnx`, or ONNX Runtime gives other rows.
    """
    g, sizes, recipe = _graph_of(encoder), encoder.model.architecture, encoder.recipe
    height, width = recipe.size
    x = normalised(g, PIXELS, recipe) if uint8 else PIXELS
    rows = g.add("Identity", image_rows(g, x, sizes), name=ROWS)
    answers(g, rows, linear)
    shape = (np.uint8, "N", height, width, 3) if uint8 else (np.float32, "N", 3, height, width)
    model = g.model({PIXELS: shape}, {ANSWERS: (np.float32, "N", len(linear.bias)),
                                      ROWS: (np.float32, "N", sizes.embed_dim)}, metadata)
    pixels = drawn_images(height)
    given = pixels if uint8 else recipe.normalized(pixels)
    wanted = encoder.images(pixels)
    content = _bytes_of(model, path)
    found, probs = _run(content, {PIXELS: given}, [ROWS, ANSWERS])
    gap = _require_same(path, found, wanted)
    if np.abs(probs - linear.probs(found)).max() > SAME:
        raise UserError(f"{path}: ONNX Runtime gives other probabilities than this program; nothing was written")
    with atomic_write(path) as file:
        file.write(content)
    return gap


def save_towers(folder: str | Path, encoder: Any) -> float:
    """Write a CLIP's towers as an ONNX encoder's folder, and return how far ONNX Runtime's unit rows lie from ours.

    The layout of the hub: onnx/vision_model.onnx, onnx/text_model.onnx, config.json, preprocessor_config.json. The
    vocabulary must be CLIP's own. Raise UserError as `save_classifier` does.
    """
    image, text = _graph_of(encoder), _graph_of(encoder)
    sizes, recipe, folder = encoder.model.architecture, encoder.recipe, Path(folder)
    scale = {"logit_scale": repr(encoder.scale)}
    image.add("Identity", image_rows(image, "pixel_values", sizes), name="image_embeds")
    text.add("Identity", text_rows(text, "input_ids", sizes), name="text_embeds")
    row = (np.float32, "N", sizes.embed_dim)
    models = {
        "vision_model.onnx": image.model({"pixel_values": (np.float32, "N", 3, *recipe.size)}, {"image_embeds": row},
                                         scale),
        "text_model.onnx": text.model({"input_ids": (np.int64, "N", "L")}, {"text_embeds": row}, scale)}
    contents = {name: _bytes_of(model, folder / name) for name, model in models.items()}
    pixels, tokens = drawn_images(recipe.size[0]), _drawn_texts(sizes)
    found, = _run(contents["vision_model.onnx"], {"pixel_values": recipe.normalized(pixels)}, ["image_embeds"])
    gap = _require_same(folder, found, encoder.images(pixels))
    found, = _run(contents["text_model.onnx"], {"input_ids": tokens.astype(np.int64)}, ["text_embeds"])
    gap = max(gap, _require_same(folder, found, encoder.texts(tokens)))
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with atomic_write(folder / "onnx" / name) as file:
            file.write(content)
    for name, said in _settings(sizes, recipe).items():
        write_json(folder / name, said)
    return gap


def _settings(sizes: Architecture, recipe: PixelRecipe) -> dict[str, dict]:
    """What the JSON files say. preprocess_cfg is open_clip's form: transformers' rounds an odd margin down."""
    mean, std, (height, width) = list(recipe.mean), list(recipe.std), recipe.size
    text = {"vocab_size": sizes.vocab_size, "max_position_embeddings": sizes.context_length, "pad_token_id": 0}
    config: dict[str, Any] = {"model_type": "clip", "projection_dim": sizes.embed_dim, "text_config": text}
    if recipe.odd_margin == "even":
        config["preprocess_cfg"] = {
            "size": [height, width], "mean": mean, "std": std, "fill_color": list(recipe.fill),
            "interpolation": Image.Resampling(recipe.interpolation).name.lower(),
            "resize_mode": {SQUASH: "squash", FIT: "longest"}.get(recipe.resize, "shortest")}
    hub = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "resample": recipe.interpolation,
           "do_center_crop": True, "crop_size": {"height": height, "width": width}, "do_rescale": True,
           "size": {"height": height, "width": width} if recipe.resize == SQUASH else
           {"shortest_edge": (recipe.scale or recipe.size)[0]},
           "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std}
    return {"config.json": config, **({} if recipe.resize == FIT else {"preprocessor_config.json": hub})}


def _graph_of(encoder: Any) -> Graph:
    model = getattr(encoder, "model", None)
    if model is None:
        raise UserError(f"{encoder.name} is no CLIP in Jittor, so its tower cannot be written as ONNX; export to .npz")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"an export to ONNX needs {error.name}: pip install '.[onnx]'") from None
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


def _bytes_of(model: Any, path: str | Path) -> bytes:
    if model.ByteSize() >= LARGEST:
        raise UserError(f"{path} would have {model.ByteSize() >> 20} MB, and one ONNX file holds 2,048; export to .npz")
    return model.SerializeToString()


def _run(content: bytes, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    import onnxruntime
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def _require_same(path: str | Path, found: np.ndarray, wanted: np.ndarray) -> float:
    gap = float(np.abs(unit_rows(found) - unit_rows(wanted)).max())
    if not gap <= SAME:
        raise UserError(f"{path}: ONNX Runtime's rows differ from this program's by {gap:.1e}, over {SAME:g}; nothing "
                        "was written")
    return gap
