"""Encoders as ONNX files, run by ONNX Runtime: what the hub has of CLIP, SigLIP, DINOv2 and v3, ConvNeXt, timm, …

    encoder = open_encoder("siglip-base-patch16-224")  # a folder as Xenova and timm have it, or a file

An image tower, and where there is one a text tower with tokenizer.json. They run in this process: ONNX Runtime brings
its own threads and operators and gets on with Jittor in either order of import (a test holds it to that); a child
process would only copy pixels and rows. No torch.

Letters: B batch, H, W pixels, L tokens, D feature width.
"""

from __future__ import annotations

import json
import math
import os
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.backend.runtime import cores, on_cuda, start
from jclip_fewshot.clip.tokenizer import token_array
from jclip_fewshot.console import warn
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder, Options
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.encoders.preprocessing import recipe_of, said_in
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import content_digest

INSTALL = "pip install '.[onnx]'"
CPU_BATCH, CUDA_BATCH = 16, 128
SCALE = 100.0  # where no file says it: OpenAI's, clipped there in training
IMAGE_ROWS = ("image_embeds", "pooler_output", "sentence_embedding")
TEXT_ROWS = ("text_embeds", "pooler_output", "sentence_embedding")
LAST = "last_hidden_state"
# model_type in config.json of transformers that have a class token in front, and nothing better than it among outputs
CLASS_TOKEN = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_msn", "vit_mae", "deit", "beit",
               "data2vec-vision", "clip_vision_model")
CLIP_WORDS = 49408  # of CLIP's own vocabulary
TEXT_LENGTHS = {"clip": 77, "siglip": 64, "siglip2": 64}  # where config.json leaves the default out
_JSON = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
         "special_tokens_map.json")
_SENTENCES = ("a photo of a cat.", "two red houses beside a river", "text", "3")


class Files(NamedTuple):
    """The ONNX files of an encoder, and the folder of their JSON files; `whole` holds both towers in one graph."""

    folder: Path
    image: Path
    text: Path | None
    whole: Path | None


def recognises(path: Path) -> bool:
    """Whether this is an ONNX file, or a folder with one where the hub has them."""
    if path.is_file():
        return path.suffix == ".onnx"
    return path.is_dir() and any(any(place.glob("*.onnx")) for place in (path, path / "onnx"))


def find_files(path: Path) -> Files:
    """Return which ONNX files of a folder, or beside a file, are the towers.

    Raise UserError if there is none, or several of which none has a usual name.
    """
    if path.is_dir():
        place = next(place for place in (path / "onnx", path) if any(place.glob("*.onnx")))
        found = sorted(file.name for file in place.glob("*.onnx"))
        usual = [name for name in ("vision_model.onnx", "model.onnx") if name in found]
        if not usual and len(found) > 1:
            raise UserError(f"{path} holds {', '.join(found)}; name the one to use, {place / found[0]}")
        image = place / (usual or found)[0]
    else:
        image, place = path, path.parent
    if image.name.startswith("text_model"):
        raise UserError(f"{image} is a text tower alone; give the folder that holds its image tower too")
    texts = [place / image.name.replace("vision_model", "text_model"), place / "text_model.onnx"]
    text = next((file for file in texts if file.is_file()), None) if image.name.startswith("vision_model") else None
    whole = place / "model.onnx"
    return Files(place.parent if place.name == "onnx" else place, image, text, whole if whole.is_file() else None)


class Tower:
    """One ONNX file in a session; `pixels` and `ids` are the names of those inputs, or empty."""

    def __init__(self, path: Path) -> None:
        self.path, runtime = path, _library("onnxruntime")
        self.external, self.parameters = _external_files(path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0") or 0) or cores()
        options.log_severity_level = 4  # errors come back as exceptions
        try:
            self._session = runtime.InferenceSession(str(path), options, _providers(on_cuda()))
        except Exception as error:  # its exceptions have no common class
            raise UserError(f"{path}: ONNX Runtime cannot read it ({_line(error)}); download it again") from None
        self.inputs = {one.name: one for one in self._session.get_inputs()}
        self.outputs = {one.name: one.shape for one in self._session.get_outputs()}
        self.said = self._session.get_modelmeta().custom_metadata_map
        self.pixels = next((name for name, one in self.inputs.items() if len(one.shape) == 4), "")
        self.ids = next((name for name, one in self.inputs.items()
                         if "int" in one.type and len(one.shape) == 2 and "mask" not in name), "")
        others = sorted(set(self.inputs) - {self.pixels, self.ids, "attention_mask"})
        if others:
            raise UserError(f"{path} wants {', '.join(others)}, which is not given here; export image tower and text "
                            "tower by themselves")

    def type_of(self, name: str) -> type:
        """NumPy's type of an input."""
        said = self.inputs[name].type
        return {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64,
                "tensor(int32)": np.int32}.get(said, np.int64)

    def fixed(self, name: str, axis: int) -> int:
        """The size of an input's axis where the graph fixes it, else 0."""
        size = self.inputs[name].shape[axis]
        return size if isinstance(size, int) else 0

    def run(self, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
        """One output as float32."""
        feeds = {name: np.ascontiguousarray(array, self.type_of(name)) for name, array in feeds.items() if name}
        try:
            return self._session.run([output], feeds)[0].astype(np.float32, copy=False)
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise UserError(f"{self.path}: ONNX Runtime failed on {shapes} ({_line(error)})") from None


class OnnxEncoder(Encoder):
    """Towers as ONNX files; `bias` is SigLIP's, the same for every class, so that a softmax does not see it.

    image, text: each a tower and the name of the output that is the row. words: of the text tower.
    """

    def __init__(self, name: str, digest: str, recipe: PixelRecipe, image: tuple[Tower, str],
                 text: tuple[Tower, str] | None, words: Words | None, batch_size: int) -> None:
        (self._image, self._row), self._text, self._words = image, text, words
        self.has_text, self.bias = text is not None, 0.0
        tower = self._image
        fixed, cuda = tower.fixed(tower.pixels, 0), on_cuda()
        parameters = {one.path: one.parameters for one, _ in [image, *([text] if text else [])]}
        self.context_length = words.length if words is not None else 0
        super().__init__(name, digest, "float16" if tower.type_of(tower.pixels) == np.float16 else "float32",
                         recipe.size[0], 0, SCALE, fixed or batch_size or (CUDA_BATCH if cuda else CPU_BATCH),
                         "cuda" if cuda else "cpu", sum(parameters.values()), recipe)
        blank: np.ndarray = np.zeros((fixed or 1, *recipe.size, 3), recipe.dtype)
        self.width = self.images(blank).shape[1]
        if text is not None:
            width = self.texts(self.tokens([_SENTENCES[0]])).shape[1]
            if width != self.width:
                raise UserError(f"{tower.path.name} gives {self._row} of {self.width} numbers and {text[0].path.name} "
                                f"{text[1]} of {width}: these are not one model's towers, or {parameter('output')} "
                                "names another one")

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        self.shape_at(depth)
        return self.features(self.recipe.normalized(pixels))

    def features(self, images: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) float32, normalised -> (B, D)."""
        tower = self._image
        feeds = {tower.pixels: images}
        if tower.ids:
            blank = self._words.ids([""]) if self._words is not None else np.zeros((1, 8), np.int64)
            feeds.update(self._ids(tower, blank))
        found = tower.run(feeds, self._row)
        if found.ndim == 2:
            return found
        return found[:, 0] if found.ndim == 3 else found.mean(axis=tuple(range(2, found.ndim)))

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        if self._text is None:
            return super().texts(tokens)
        tower, row = self._text
        blank = np.zeros((1, 3, *self.recipe.size), np.float32)
        return tower.run({**self._ids(tower, tokens), tower.pixels: blank}, row)

    def _ids(self, tower: Tower, tokens: np.ndarray) -> dict[str, np.ndarray]:
        if "attention_mask" not in tower.inputs:
            return {tower.ids: tokens}
        mask = self._words.mask(tokens) if self._words is not None else np.ones_like(tokens)
        return {tower.ids: tokens, "attention_mask": mask}

    def tokens(self, sentences: Sequence[str]) -> np.ndarray:
        return super().tokens(sentences) if self._words is None else self._words.ids(sentences)


class Words:
    """tokenizer.json and what the files beside it say of it: length, padding, and what happens to the letters.

    Without one, a CLIP with CLIP's own vocabulary gets this program's tokenizer, which is open_clip's.
    """

    def __init__(self, folder: Path, config: dict[str, Any], fixed: int) -> None:
        path, family = folder / "tokenizer.json", str(config.get("model_type", ""))
        said, text = said_in(folder / "tokenizer_config.json"), config.get("text_config")
        text = text if isinstance(text, dict) else {}
        lengths = (fixed, said.get("model_max_length"), text.get("max_position_embeddings"))
        self.length = next((n for n in lengths if isinstance(n, int) and 0 < n < 10**6), TEXT_LENGTHS.get(family, 77))
        self._tokenizer: Any = None
        self.padding = 0
        if not path.is_file() and family == "clip" and text.get("vocab_size") == CLIP_WORDS:
            return
        if not path.is_file():
            raise UserError(f"{folder} has a text tower and no tokenizer.json; download that too")
        try:
            self._tokenizer = _library("tokenizers").Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(f"{path} is no tokenizer ({_line(error)}); download it again") from None
        own = self._tokenizer.padding or {}
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.length)
        pad = said.get("pad_token") or said_in(folder / "special_tokens_map.json").get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        padding = self._tokenizer.token_to_id(pad) if isinstance(pad, str) else None
        padding = own.get("pad_id", text.get("pad_token_id")) if padding is None else padding
        if not isinstance(padding, int):
            raise UserError(f"{folder}: neither tokenizer_config.json nor config.json names a padding token")
        self.padding = padding
        # SigLIP was trained on such texts; its tokenizer.json does this itself or leaves it to whoever calls it
        self._lower = family.startswith("siglip")
        self._plain = said.get("tokenizer_class") == "SiglipTokenizer"

    def ids(self, sentences: Sequence[str]) -> np.ndarray:
        """(B, L) int32, filled up; what is too long is cut off, and said."""
        if self._tokenizer is None:
            return token_array(sentences, self.length)
        found = self._tokenizer.encode_batch([self._cleaned(sentence) for sentence in sentences])
        ids = np.full((len(found), self.length), self.padding, np.int32)
        for row, one in zip(ids, found):
            row[:len(one.ids)] = one.ids
        long = [sentence for sentence, one in zip(sentences, found) if one.overflowing]
        if long:
            warn(f"{len(long)} of {len(sentences)} sentences are longer than the {self.length} tokens that the encoder "
                 f"takes, and are cut off: {long[0][:60]!r}…")
        return ids

    def _cleaned(self, sentence: str) -> str:
        if self._lower:
            sentence = sentence.lower()
        if self._plain:
            sentence = " ".join(sentence.translate(str.maketrans("", "", string.punctuation)).split())
        return sentence

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """(B, L) int64: 1 for a sentence's tokens, its end among them, 0 for the padding."""
        filled = (ids != self.padding)[:, ::-1]
        length = np.where(filled.any(axis=1), ids.shape[1] - filled.argmax(axis=1), 0)
        ends = self._tokenizer is not None and self._tokenizer.encode("").ids[-1:] == [self.padding]  # it pads as well
        return (np.arange(ids.shape[1]) < (length + ends)[:, None]).astype(np.int64)


def open_onnx(path: Path, name: str, options: Options) -> OnnxEncoder:
    """Open a folder or an ONNX file.

    options.batch_size: 0 takes 16 on the CPU, 128 on CUDA; a graph with a batch of its own has the last word.
    options.output: which of the image tower's outputs is the row; empty for the usual one.
    Raise UserError if there is no ONNX Runtime, or a file is missing, damaged, or says what is not computed here.
    """
    start(options.device)
    files = find_files(path)
    config = said_in(files.folder / "config.json")
    recipe = recipe_of(files.folder, config)
    image = Tower(files.image)
    if not image.pixels:
        raise UserError(f"{files.image} takes no pictures (no input has four axes); give an image tower")
    tower = Tower(files.text) if files.text is not None else image if image.ids else None
    for axis, side in ((2, recipe.size[0]), (3, recipe.size[1])):
        if image.fixed(image.pixels, axis) not in (0, side):
            raise UserError(f"{files.image} takes {image.fixed(image.pixels, axis)} pixels a side and the JSON beside "
                            f"it makes {side}; they belong to different models")
    words = Words(files.folder, config, tower.fixed(tower.ids, 1)) if tower is not None else None
    text = (tower, _row_output(tower, TEXT_ROWS)) if tower is not None else None
    row = _row_output(image, IMAGE_ROWS, options.output, str(config.get("model_type", "")))
    digest = _digest(files, {image, *([tower] if tower else [])}, options.output, options.cache)
    encoder = OnnxEncoder(name or str(path), digest, recipe, (image, row), text, words, options.batch_size)
    if options.dtype not in ("auto", "float32", encoder.precision):
        warn(f"{encoder.name} computes in {encoder.precision}, as its file has it, not in {options.dtype}")
    if text is not None:
        found = _stored_scale(files.folder)
        if found is None and files.whole is not None:
            found = _fitted_scale(encoder, image if files.whole == files.image else Tower(files.whole))
        found = found or _metadata_scale(image)
        if not found:
            warn(f"{encoder.name}: no file beside it says the scale of its cosines (model.onnx with both towers and "
                 f"model.safetensors would); {SCALE:g} is taken")
        encoder.scale, encoder.bias = found or (SCALE, 0.0)
    return encoder


def _row_output(tower: Tower, names: Sequence[str], wanted: str = "", model_type: str = "") -> str:
    """Which output is the row: the one that is wanted, one of the usual names, or the only one that can be meant."""
    shapes, said = tower.outputs, f"{tower.path} gives {', '.join(tower.outputs)}"
    if wanted and wanted not in shapes:
        raise UserError(f"{said}, and no {wanted}; name one of them with {parameter('output')}")
    usual = [wanted] if wanted else [name for name in names if name in shapes]
    if LAST in shapes and names is IMAGE_ROWS and (model_type in CLASS_TOKEN or len(shapes[LAST]) == 4):
        usual.append(LAST)
    flat = [name for name, shape in shapes.items() if len(shape) == 2 and not name.startswith("logits")]
    if not usual and len(flat) != 1:
        raise UserError(f"{said}; none of them is known to be the row of features: name it with {parameter('output')}")
    return (usual or flat)[0]


def _stored_scale(folder: Path) -> tuple[float, float] | None:
    """logit_scale and logit_bias of a model.safetensors, which holds the scale's logarithm."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), "np") as file:
            names = set(file.keys())
            found = {name: float(np.reshape(file.get_tensor(name), -1)[0])
                     for name in ("logit_scale", "logit_bias") if name in names}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({_line(error)}); download it again") from None
    return (math.exp(min(found["logit_scale"], 20)), found.get("logit_bias", 0.0)) if "logit_scale" in found else None


def _metadata_scale(tower: Tower) -> tuple[float, float] | None:
    """What our own export writes into its files."""
    try:
        return float(tower.said["logit_scale"]), float(tower.said.get("logit_bias", 0))
    except (KeyError, ValueError):
        return None


def _fitted_scale(encoder: OnnxEncoder, whole: Tower) -> tuple[float, float] | None:
    """The straight line through the logits of both towers against the cosines: exact but for rounding."""
    wanted = "image_embeds", "text_embeds", "logits_per_image"
    if not (set(wanted) <= set(whole.outputs) and whole.ids and whole.pixels):
        return None
    recipe = encoder.recipe
    drawn: np.ndarray = np.random.default_rng(0).integers(0, 256, (2, *recipe.size, 3)).astype(recipe.dtype)
    feeds = {whole.pixels: recipe.normalized(drawn), **encoder._ids(whole, encoder.tokens(_SENTENCES))}
    image, text, logits = (whole.run(feeds, name).astype(np.float64) for name in wanted)
    cosines = (unit_rows(image).astype(np.float64) @ unit_rows(text).T).reshape(-1)
    scale, bias = np.polyfit(cosines, logits.reshape(-1), 1)
    if np.abs(scale * cosines + bias - logits.reshape(-1)).max() > 1e-2 or scale <= 0:
        return None
    return float(scale), float(bias)


def _digest(files: Files, towers: set[Tower], output: str, store: FeatureCache | None) -> str:
    """Of all that the rows depend on: the graphs, their weights beside them, the JSON files, the output."""
    paths = {path for tower in towers for path in (tower.path, *tower.external)}
    paths |= {files.folder / name for name in _JSON if (files.folder / name).is_file()}
    said = [f"{path.name} {file_digest(path, store)}" for path in sorted(paths)]
    return content_digest(json.dumps([*said, output]).encode()).hex()


def _external_files(path: Path) -> tuple[list[Path], int]:
    """Return the files beside a graph that hold its weights, and how many numbers these and the graph hold.

    Raise UserError if it is no ONNX file, or a weight file is missing or would lie outside the graph's folder.
    """
    onnx = _library("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except Exception as error:
        raise UserError(f"{path} is no ONNX file ({_line(error)}); download it again") from None
    files: dict[Path, None] = {}
    numbers = 0
    for tensor in _tensors(model.graph):
        numbers += math.prod(tensor.dims)
        for entry in tensor.external_data:
            if entry.key == "location":
                place = Path(entry.value)
                if place.is_absolute() or ".." in place.parts:
                    raise UserError(f"{path} wants weights from {entry.value}, outside its folder; refused")
                files[path.parent / place] = None
    for file in files:
        if not file.is_file():
            raise UserError(f"{path} keeps its weights in {file.name}, which is not beside it; download that too")
    return list(files), numbers


def _tensors(graph: Any) -> list[Any]:
    """Every stored tensor of a graph and of the graphs inside it."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else list(attribute.tensors)
            for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs):
                found += _tensors(inner)
    return found


@cache
def _providers(cuda: bool) -> list[str]:
    if cuda and "CUDAExecutionProvider" in _library("onnxruntime").get_available_providers():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if cuda:
        warn("this ONNX Runtime has no CUDA (pip install onnxruntime-gpu); the encoder runs on the CPU")
    return ["CPUExecutionProvider"]


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"ONNX encoders need {name}: {INSTALL}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
