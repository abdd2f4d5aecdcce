"""Encoders as ONNX files, run by ONNX Runtime: what the hub has of CLIP, SigLIP, DINOv2 and v3, ConvNeXt, timm, …

A folder as Xenova and timm have it, or a file: an image tower, and where there is one a text tower with tokenizer.json.

B batch · H, W pixels · L tokens · D feature width
"""

import contextlib
import json
import math
import os
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.backend.runtime import cores, on_cuda, start
from jclip_fewshot.clip.checkpoint import read_tensors
from jclip_fewshot.clip.tokenizer import token_array
from jclip_fewshot.console import warn
from jclip_fewshot.encoders.base import ROWS, Depth, Encoder, Options
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.encoders.preprocessing import recipe_of, said_in
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import content_digest

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


def recognises(path: Path) -> bool:
    """Whether this is an ONNX file, or a folder with one where the hub has them."""
    if path.is_file():
        return path.suffix == ".onnx"
    return path.is_dir() and any(any(place.glob("*.onnx")) for place in (path, path / "onnx"))


def find_towers(path: Path) -> tuple[Path, Path | None]:
    """Return image tower and text tower, if there is one, among ONNX files; raise UserError if no name says which."""
    image = path
    if path.is_dir():
        place = next(place for place in (path / "onnx", path) if any(place.glob("*.onnx")))
        found = sorted(file.name for file in place.glob("*.onnx"))
        usual = [name for name in ("vision_model.onnx", "model.onnx") if name in found]
        if not usual and len(found) > 1:
            raise UserError(f"{path} holds {', '.join(found)}; name the one to use, {place / found[0]}")
        image = place / (usual or found)[0]
    if image.name.startswith("text_model"):
        raise UserError(f"{image} is a text tower alone; give the folder that holds its image tower too")
    if not image.name.startswith("vision_model"):
        return image, None
    texts = (image.name.replace("vision_model", "text_model"), "text_model.onnx")
    return image, next((image.with_name(name) for name in texts if image.with_name(name).is_file()), None)


class Tower:
    """One ONNX file in a session; `pixels` and `ids` are the names of those inputs, or empty."""

    def __init__(self, path: Path) -> None:
        self.path, runtime = path, library("onnxruntime")
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

    def type_of(self, name: str) -> type:
        return {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64,
                "tensor(int32)": np.int32}.get(self.inputs[name].type, np.int64)

    def fixed(self, name: str, axis: int) -> int:
        """The size of an input's axis where the graph fixes it, else 0."""
        size = self.inputs[name].shape[axis] if name else 0
        return size if isinstance(size, int) else 0

    def row(self, names: Sequence[str], wanted: str = "", model_type: str = "") -> str:
        """The output that is the row: the one that is wanted, of one of these names, or the only one that can be."""
        shapes, said = self.outputs, f"{self.path} gives {', '.join(self.outputs)}"
        if wanted and wanted not in shapes:
            raise UserError(f"{said}, and no {wanted}; name one of them with {parameter('output')}")
        usual = [wanted] if wanted else [name for name in names if name in shapes]
        if LAST in shapes and names is IMAGE_ROWS and (model_type in CLASS_TOKEN or len(shapes[LAST]) == 4):
            usual.append(LAST)
        flat = [name for name, shape in shapes.items() if len(shape) == 2 and not name.startswith("logits")]
        if not usual and len(flat) != 1:
            raise UserError(f"{said}; none is known to be the row of features: name it with {parameter('output')}")
        return (usual or flat)[0]

    def run(self, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
        """One output as float32."""
        feeds = {name: np.ascontiguousarray(array, self.type_of(name)) for name, array in feeds.items() if name}
        try:
            return self._session.run([output], feeds)[0].astype(np.float32, copy=False)
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise UserError(f"{self.path}: ONNX Runtime failed on {shapes} ({_line(error)}); it must be an image tower "
                            "or a text tower, and the JSON beside it its own") from None


class OnnxEncoder(Encoder):
    """A folder of ONNX files, or one file. A graph with a batch of its own has the last word on the size of batches.

    Raise UserError if there is no ONNX Runtime, or a file is missing, damaged, or says what is not computed here.
    """

    def __init__(self, path: Path, name: str, options: Options) -> None:
        device = start(options.device).device
        image_file, text_file = find_towers(path)
        folder = image_file.parent.parent if image_file.parent.name == "onnx" else image_file.parent
        config = said_in(folder / "config.json")
        recipe = recipe_of(folder, config)
        self._image = image = Tower(image_file)
        if not image.pixels:
            raise UserError(f"{image_file} takes no pictures (no input has four axes); give an image tower")
        self._text = text = Tower(text_file) if text_file is not None else image if image.ids else None
        self._words = Words(folder, config, text.fixed(text.ids, 1)) if text is not None else None
        self._text_row = text.row(TEXT_ROWS) if text is not None else ""
        self._row = image.row(IMAGE_ROWS, options.output, str(config.get("model_type", "")))
        self.has_text = text is not None
        towers = list(dict.fromkeys([image, text or image]))
        fixed = image.fixed(image.pixels, 0)
        super().__init__(name, _digest(folder, towers, options.output, options.cache),
                         "float16" if image.type_of(image.pixels) == np.float16 else "float32",
                         recipe.size[0], 0, SCALE, fixed or options.batch_size, device,
                         sum(tower.parameters for tower in towers), recipe)
        self.width = self.images(np.zeros((fixed or 1, *recipe.size, 3), recipe.dtype)).shape[1]
        if options.dtype not in ("auto", "float32", self.precision):
            warn(f"{name} computes in {self.precision}, as its file has it, not in {options.dtype}")
        if text is not None:
            width = self.texts(self.tokens([_SENTENCES[0]])).shape[1]
            if width != self.width:
                raise UserError(f"{image_file} gives {self._row} of {self.width} numbers and {self._text_row} of "
                                f"{width}: not one model's towers, or {parameter('output')} names another one")
            self.scale = self._found_scale(folder)

    def images(self, pixels: np.ndarray, depth: Depth = ROWS) -> np.ndarray:
        self.shape_at(depth)
        return self.features(self.recipe.normalized(pixels))

    def features(self, images: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) float32, normalised -> (B, D)."""
        tower, words = self._image, self._words
        blank = words.feeds(tower, words.ids([""])) if words is not None else {}
        found = tower.run({**blank, tower.pixels: images}, self._row)
        return found[:, 0] if found.ndim == 3 else found.reshape(*found.shape[:2], -1).mean(axis=2)

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        if self._text is None or self._words is None:
            return super().texts(tokens)
        blank = np.zeros((1, 3, *self.recipe.size), np.float32)
        return self._text.run({**self._words.feeds(self._text, tokens), self._text.pixels: blank}, self._text_row)

    def tokens(self, sentences: Sequence[str]) -> np.ndarray:
        return super().tokens(sentences) if self._words is None else self._words.ids(sentences)

    def _found_scale(self, folder: Path) -> float:
        """By the files beside the towers. SigLIP's bias, the same for every class, changes no softmax."""
        found, whole = _stored_scale(folder), self._image.path.with_name("model.onnx")
        if found is None and whole.is_file():
            found = self._fitted_scale(self._image if whole == self._image.path else Tower(whole))
        if found is None:
            with contextlib.suppress(KeyError, ValueError):
                found = float(self._image.said["logit_scale"])  # as our own export writes it
        if found is None:
            warn(f"{self.name}: no file beside it says the scale of its cosines (model.onnx with both towers and "
                 f"model.safetensors would); {SCALE:g} is taken")
        return SCALE if found is None else found

    def _fitted_scale(self, whole: Tower) -> float | None:
        """By the straight line through a graph's logits against the cosines: exact but for rounding."""
        wanted = "image_embeds", "text_embeds", "logits_per_image"
        if self._words is None or not (set(wanted) <= set(whole.outputs) and whole.ids and whole.pixels):
            return None
        drawn: np.ndarray = np.random.default_rng(0).integers(0, 256, (2, *self.recipe.size, 3))
        feeds = {whole.pixels: self.recipe.normalized(drawn.astype(self.recipe.dtype)),
                 **self._words.feeds(whole, self.tokens(_SENTENCES))}
        image, text, logits = (whole.run(feeds, name).astype(np.float64) for name in wanted)
        cosines = (unit_rows(image).astype(np.float64) @ unit_rows(text).T).reshape(-1)
        scale, bias = np.polyfit(cosines, logits.reshape(-1), 1)
        exact = np.abs(scale * cosines + bias - logits.reshape(-1)).max() <= 1e-2
        return float(scale) if exact and scale > 0 else None


class Words:
    """tokenizer.json and what is said of it beside it; without one, CLIP's own vocabulary has this program's."""

    def __init__(self, folder: Path, config: dict[str, Any], fixed: int) -> None:
        path, family = folder / "tokenizer.json", str(config.get("model_type", ""))
        said, text = said_in(folder / "tokenizer_config.json"), config.get("text_config")
        text = text if isinstance(text, dict) else {}
        lengths = (fixed, said.get("model_max_length"), text.get("max_position_embeddings"))
        self.length = next((n for n in lengths if isinstance(n, int) and 0 < n < 10**6), TEXT_LENGTHS.get(family, 77))
        self._tokenizer: Any = None
        self.padding, self._pads_last = 0, False
        if not path.is_file():
            if family == "clip" and text.get("vocab_size") == CLIP_WORDS:
                return
            raise UserError(f"{folder} has a text tower and no tokenizer.json; download that too")
        try:
            self._tokenizer = library("tokenizers").Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(f"{path} is no tokenizer ({_line(error)}); download it again") from None
        own = self._tokenizer.padding or {}
        pad = said.get("pad_token") or said_in(folder / "special_tokens_map.json").get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        padding = self._tokenizer.token_to_id(pad) if isinstance(pad, str) else None
        padding = own.get("pad_id", text.get("pad_token_id")) if padding is None else padding
        if not isinstance(padding, int) or not 0 <= padding < 2**31:
            raise UserError(f"{folder}: neither tokenizer_config.json nor config.json names a padding token")
        self.padding = padding
        self._tokenizer.no_padding()
        self._pads_last = self._tokenizer.encode("").ids[-1:] == [padding]  # the end mark is the padding as well
        self._tokenizer.enable_truncation(self.length)
        self._tokenizer.enable_padding(length=self.length, pad_id=padding)
        # SigLIP was trained on such texts; its tokenizer.json does this itself or leaves it to whoever calls it
        self._lower = family.startswith("siglip")
        self._plain = said.get("tokenizer_class") == "SiglipTokenizer"

    def ids(self, sentences: Sequence[str]) -> np.ndarray:
        """(B, L) int32, filled up; what is too long is cut off, and said."""
        if self._tokenizer is None:
            return token_array(sentences, self.length)
        cleaned = [sentence.lower() for sentence in sentences] if self._lower else list(sentences)
        if self._plain:
            cleaned = [" ".join(one.translate(str.maketrans("", "", string.punctuation)).split()) for one in cleaned]
        found = self._tokenizer.encode_batch(cleaned)
        long = [sentence for sentence, one in zip(sentences, found) if one.overflowing]
        if long:
            warn(f"{len(long)} of {len(sentences)} sentences are longer than the {self.length} tokens that the encoder "
                 f"takes, and are cut off: {long[0][:60]!r}…")
        return np.array([one.ids for one in found], np.int32)

    def feeds(self, tower: Tower, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What a tower is fed: (B, L) ids, and 1 for a sentence's tokens, its end among them, 0 for the padding."""
        filled = (ids != self.padding)[:, ::-1]
        length = np.where(filled.any(axis=1), ids.shape[1] - filled.argmax(axis=1), 0)
        mask = np.arange(ids.shape[1]) < (length + self._pads_last)[:, None]
        return {tower.ids: ids, **({"attention_mask": mask} if "attention_mask" in tower.inputs else {})}


def _stored_scale(folder: Path) -> float | None:
    """exp(logit_scale) of a model.safetensors."""
    path = folder / "model.safetensors"
    found = read_tensors(path, outline=True).get("logit_scale") if path.is_file() else None
    return math.exp(min(float(found.reshape(-1)[0]), 20)) if found is not None and found.size == 1 else None


def _digest(folder: Path, towers: Sequence[Tower], output: str, store: FeatureCache | None) -> str:
    """Of all that the rows depend on: the graphs, their weights beside them, the JSON files, the output."""
    paths = {path for tower in towers for path in (tower.path, *tower.external)}
    paths |= {folder / name for name in _JSON if (folder / name).is_file()}
    said = [f"{path.name} {file_digest(path, store)}" for path in sorted(paths)]
    return content_digest(json.dumps([*said, output]).encode()).hex()


def _external_files(path: Path) -> tuple[list[Path], int]:
    """The files beside a graph that hold its weights, and how many numbers these and the graph hold."""
    onnx = library("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise UserError(f"{path} is no ONNX file ({_line(error)}); download it again") from None
    tensors = list(onnx.external_data_helper._get_all_tensors(model))
    places = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    for place in sorted(places):
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise UserError(f"{path} wants weights from {place}, outside its folder; refused")
        if not (path.parent / place).is_file():
            raise UserError(f"{path} keeps its weights in {place}, which is not beside it; download that too")
    return [path.parent / place for place in places], sum(math.prod(tensor.dims) for tensor in tensors)


@cache
def _providers(cuda: bool) -> list[str]:
    if cuda and "CUDAExecutionProvider" in library("onnxruntime").get_available_providers():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if cuda:
        warn("this ONNX Runtime has no CUDA (pip install onnxruntime-gpu); the encoder runs on the CPU")
    return ["CPUExecutionProvider"]


def library(name: str) -> Any:
    """Return an imported library; raise UserError, which says how to get it, if it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"ONNX needs {name}: pip install '.[onnx]'") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
