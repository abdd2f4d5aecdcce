"""Images and texts a second through CLIP, compared with what the machine's matrix products would allow.

    python benchmarks/encode.py [--quick] [--models ViT-B/32 RN50] [--batches 1 32] [--torch-python PATH]
                                [--precisions float32 bfloat16] [--json FILE]

Every row: images (or texts) a second, the GFLOP/s of the products that were computed, their share of
the rate of a 1024^3 product measured in between, and the process's peak memory. With torch installed
(in this interpreter, or in the one named by --torch-python) OpenAI's PyTorch model runs in a process
of its own, by turns with ours; JCLIP, ONNX Runtime and OpenVINO (both on our own export) likewise where
they are importable. Weights are random, times are
medians over --repeats turns, so that what else the machine does falls on all alike; precisions and
libraries take turns in one run. --json writes {"rows": [{"model", "kind", "batch", "precision",
"images_per_second" or "texts_per_second", ...}]}.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np

Architecture = namedtuple("Architecture", [
    "embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size", "context_length",
    "vocab_size", "transformer_width", "transformer_heads", "transformer_layers"])
ARCHITECTURES = {
    "ViT-B/32": Architecture(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": Architecture(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14": Architecture(768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
    "RN50": Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
}
ROOT = Path(__file__).resolve().parent.parent
# Tokens of a sentence with both marks: the contest's templates around its class names.
SENTENCE_TOKENS = (9, 10, 11, 11, 12, 12, 13, 14, 15, 17)


def layout(model: str) -> dict:
    """Name and shape of the model's tensors."""
    from jclip_fewshot.clip import checkpoint
    sizes = ARCHITECTURES[model]._asdict()
    del sizes["transformer_heads"]  # no tensor has a shape by it
    return checkpoint.layout(checkpoint.Architecture(**sizes))


def random_state_dict(shapes: dict) -> dict:
    """Weights of the size that keeps activations near 1."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("running_var") or len(shape) == 1 and name.endswith("weight"):
            weights[name] = np.ones(shape, dtype=np.float32)
        else:
            inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 100
            weights[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5 * inputs ** -0.5)
    return weights


def inputs_of(sizes: Architecture, kind: str, batch: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    if kind == "image":
        return rng.standard_normal((batch, 3, sizes.image_resolution,
                                   sizes.image_resolution), dtype=np.float32)
    tokens = np.zeros((batch, sizes.context_length), dtype=np.int32)
    for row, length in zip(tokens, np.resize(SENTENCE_TOKENS, batch)):
        row[:length] = rng.integers(1, sizes.vocab_size - 2, length)
        row[length - 1] = sizes.vocab_size - 1
    return tokens


def transformer_flop(length: int, width: int, layers: int) -> float:
    """Products of one sequence, of whose last block one token is read out; 2 a multiply-add."""
    token, pairs = 24 * width ** 2, 4 * length * width
    last = length * 4 * width ** 2 + 20 * width ** 2 + 4 * length * width
    return (layers - 1) * length * (token + pairs) + last


def flop(sizes: Architecture, kind: str, batch: int) -> float:
    """What one batch costs here, in floating-point operations."""
    if kind == "text":
        length = int(np.resize(SENTENCE_TOKENS, batch).max())
        width = sizes.transformer_width
        return batch * (transformer_flop(length, width, sizes.transformer_layers) + \
                        2 * width * sizes.embed_dim)
    width = sizes.vision_width
    if isinstance(sizes.vision_layers, int):
        side, patch = sizes.image_resolution // sizes.vision_patch_size, sizes.vision_patch_size
        return batch * (2 * side ** 2 * 3 * patch ** 2 * width + 2 * width * sizes.embed_dim
                        + transformer_flop(side ** 2 + 1, width, sizes.vision_layers))
    total, side = 0.0, sizes.image_resolution
    for name, shape in layout("RN50").items():
        if name.startswith("visual.") and len(shape) == 4:
            if name.startswith("visual.conv"):
                pixels = (side // 2) ** 2
            else:
                stage, block = int(name[len("visual.layer")]), int(name.split(".")[2])
                pixels = (side // 2 ** (stage + 1)) ** 2
                if block == 0 and stage > 1 and name.endswith(("conv1.weight", "conv2.weight")):
                    pixels *= 4  # the average pool comes after the second convolution
            total += 2 * pixels * np.prod(shape)
    tokens, wide = (side // 32) ** 2 + 1, 32 * width
    return batch * (total + 4 * tokens * wide ** 2 + 2 * wide * (wide + sizes.embed_dim) + 4 * tokens * wide)


class Ours:
    label = "jclip_fewshot"

    def __init__(self):
        sys.path.insert(0, str(ROOT))
        from jclip_fewshot.backend import jt
        from jclip_fewshot.clip import build_model
        self.jt, self.build = jt, build_model
        self.square = jt.random((1024, 1024))

    def prepare(self, model: str, shapes: dict) -> None:
        from jclip_fewshot.clip.cpu import Matrices
        self.model = self.build(random_state_dict(shapes))
        self.matrices = {precision: Matrices(precision) for precision in PRECISIONS}

    def encode(self, kind: str, batch: np.ndarray, precision: str = "float32") -> np.ndarray:
        # as CLIP.set_precision does, but what was packed is kept for the next turn
        self.model.matrices = self.model.visual.matrices = self.matrices[precision]
        if kind == "text":
            return self.model.encode_text(batch).numpy()
        return self.model.encode_image(self.jt.array(batch)).numpy()

    def product_rate(self, seconds: float = 0.15) -> float:
        """GFLOP/s of products of two 1024 x 1024 matrices, one after the other."""
        self.jt.matmul(self.square, self.square).sync()
        count, begun = 0, clock()
        while clock() - begun < seconds:
            self.jt.matmul(self.square, self.square).sync()
            count += 1
        return count * 2 * 1.024 ** 3 / (clock() - begun)


class JCLIP(Ours):
    label = "JCLIP"

    def __init__(self):
        super().__init__()
        from jclip.model import build_model
        self.build = lambda weights: build_model(
            {name: self.jt.array(value) for name, value in weights.items()})

    def prepare(self, model: str, shapes: dict) -> None:
        self.model = self.build(random_state_dict(shapes))

    def encode(self, kind: str, batch: np.ndarray, precision: str = "float32") -> np.ndarray:
        with self.jt.no_grad():
            encode = self.model.encode_image if kind == "image" else self.model.encode_text
            return encode(self.jt.array(batch)).numpy()


class Torch:
    """OpenAI's clip/model.py, written out again."""

    label = "PyTorch"

    def __init__(self):
        import torch
        self.torch = torch
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))

    def prepare(self, model: str, shapes: dict) -> None:
        weights = {name: self.torch.as_tensor(value) for name, value in random_state_dict(shapes).items()}
        self.models = {}
        for precision in PRECISIONS:
            one = torch_clip(self.torch, ARCHITECTURES[model]).eval()
            one.load_state_dict(weights, strict=False)  # the stored batch counters are not among them
            self.models[precision] = one.to(getattr(self.torch, precision))

    def encode(self, kind: str, batch: np.ndarray, precision: str = "float32") -> np.ndarray:
        model, batch = self.models[precision], self.torch.from_numpy(batch)
        with self.torch.no_grad():
            if kind == "text":
                return model.encode_text(batch).float().numpy()
            return model.encode_image(batch.to(getattr(self.torch, precision))).float().numpy()


def torch_clip(torch, sizes: Architecture):
    """OpenAI's model in torch, with its parameter names."""
    from collections import OrderedDict
    nn, functional = torch.nn, torch.nn.functional

    class QuickGELU(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    class Block(nn.Module):
        def __init__(self, width, heads, mask):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, heads)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(OrderedDict([
                ("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU()),
                ("c_proj", nn.Linear(4 * width, width))]))
            self.mask = mask

        def forward(self, x):
            y = self.ln_1(x)
            mask = self.mask if self.mask is None else self.mask.to(x.dtype)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
            return x + self.mlp(self.ln_2(x))

    class Transformer(nn.Module):
        def __init__(self, width, layers, heads, mask=None):
            super().__init__()
            self.resblocks = nn.Sequential(*[Block(width, heads, mask) for _ in range(layers)])

        def forward(self, x):
            return self.resblocks(x)

    class VisionTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            width, patch = sizes.vision_width, sizes.vision_patch_size
            self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(width))
            self.positional_embedding = nn.Parameter(torch.zeros(
                (sizes.image_resolution // patch) ** 2 + 1, width))
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = Transformer(width, sizes.vision_layers, width // 64)
            self.proj = nn.Parameter(torch.zeros(width, sizes.embed_dim))

        def forward(self, x):
            x = self.conv1(x).flatten(2).permute(0, 2, 1)
            first = self.class_embedding + torch.zeros(len(x), 1, x.shape[-1], dtype=x.dtype)
            x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
            x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
            return self.ln_post(x[:, 0, :]) @ self.proj

    class Bottleneck(nn.Module):
        def __init__(self, inputs, planes, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
            self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
            self.relu = nn.ReLU(inplace=True)
            self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.downsample = None
            if stride > 1 or inputs != 4 * planes:
                self.downsample = nn.Sequential(OrderedDict([
                    ("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(inputs, 4 * planes, 1, bias=False)),
                    ("1", nn.BatchNorm2d(4 * planes))]))

        def forward(self, x):
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.avgpool(self.relu(self.bn2(self.conv2(y))))
            y = self.bn3(self.conv3(y))
            y += x if self.downsample is None else self.downsample(x)
            return self.relu(y)

    class AttentionPool(nn.Module):
        def __init__(self, side, width, heads):
            super().__init__()
            self.positional_embedding = nn.Parameter(torch.zeros(side ** 2 + 1, width))
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
            self.c_proj = nn.Linear(width, sizes.embed_dim)
            self.heads = heads

        def forward(self, x):
            x = x.flatten(2).permute(2, 0, 1)
            x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
            bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
            x, _ = functional.multi_head_attention_forward(
                query=x, key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=self.heads,
                q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
                v_proj_weight=self.v_proj.weight, in_proj_weight=None, in_proj_bias=bias, bias_k=None,
                bias_v=None, add_zero_attn=False, dropout_p=0, out_proj_weight=self.c_proj.weight,
                out_proj_bias=self.c_proj.bias, use_separate_proj_weight=True, training=False,
                need_weights=False)
            return x[0]

    class ModifiedResNet(nn.Module):
        def __init__(self):
            super().__init__()
            width, inputs = sizes.vision_width, sizes.vision_width
            self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
            self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1,
                                             bias=False), nn.BatchNorm2d(width // 2)
            self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.avgpool, self.relu = nn.AvgPool2d(2), nn.ReLU(inplace=True)
            for stage, blocks in enumerate(sizes.vision_layers):
                made = []
                for number in range(blocks):
                    planes = width * 2 ** stage
                    made.append(Bottleneck(inputs, planes, 2 if stage and not number else 1))
                    inputs = 4 * planes
                setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
            self.attnpool = AttentionPool(sizes.image_resolution // 32, inputs, inputs // 64)

        def forward(self, x):
            for conv, norm in [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]:
                x = self.relu(norm(conv(x)))
            x = self.avgpool(x)
            return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    class CLIP(nn.Module):
        def __init__(self):
            super().__init__()
            width, length = sizes.transformer_width, sizes.context_length
            self.visual = VisionTransformer() if isinstance(sizes.vision_layers, int) else ModifiedResNet()
            mask = torch.full((length, length), float("-inf")).triu_(1)
            self.transformer = Transformer(width, sizes.transformer_layers, sizes.transformer_heads, mask)
            self.token_embedding = nn.Embedding(sizes.vocab_size, width)
            self.positional_embedding = nn.Parameter(torch.zeros(length, width))
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.zeros(width, sizes.embed_dim))
            self.logit_scale = nn.Parameter(torch.zeros([]))

        def encode_image(self, images):
            return self.visual(images)

        def encode_text(self, text):
            x = self.token_embedding(text) + self.positional_embedding
            x = self.ln_final(self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
            return x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection

    return CLIP()



class OnnxRuntime:
    """Our own export, run by ONNX Runtime."""

    label = "ONNX Rt"

    def __init__(self):
        sys.path.insert(0, str(ROOT))
        import onnxruntime
        self.library, self.threads = onnxruntime, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))

    def prepare(self, model: str, shapes: dict) -> None:
        from jclip_fewshot.clip.checkpoint.architecture import architecture
        from jclip_fewshot.export_onnx import Graph, image_rows, text_rows
        weights, self.sessions = random_state_dict(shapes), {}
        sizes = architecture(weights)
        for kind, rows, given in (("image", image_rows, (np.float32, "N", 3, *2 * [sizes.image_resolution])),
                                  ("text", text_rows, (np.int64, "N", "L"))):
            graph = Graph(weights)
            graph.add("Identity", rows(graph, "given", sizes), name="rows")
            made = graph.model({"given": given}, {"rows": (np.float32, "N", sizes.embed_dim)}, {})
            self.sessions[kind] = self.compiled(made.SerializeToString())

    def compiled(self, content: bytes):
        options = self.library.SessionOptions()
        options.intra_op_num_threads = self.threads
        return self.library.InferenceSession(content, options, ["CPUExecutionProvider"])

    def encode(self, kind: str, batch: np.ndarray, precision: str = "float32") -> np.ndarray:
        if kind == "text":  # cut after the longest text, as ours are
            batch = batch[:, :batch.argmax(axis=1).max() + 1].astype(np.int64)
        return self.run(self.sessions[kind], batch, precision)

    def run(self, session, batch: np.ndarray, precision: str) -> np.ndarray:
        return session.run(None, {"given": batch})[0]


class OpenVino(OnnxRuntime):
    """Our own export, run by OpenVINO."""

    label = "OpenVINO"

    def __init__(self):
        sys.path.insert(0, str(ROOT))
        import openvino
        self.core, self.threads = openvino.Core(), int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))

    def compiled(self, content: bytes) -> dict:
        model = self.core.read_model(content)
        return {precision: self.core.compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": self.threads}) for precision in PRECISIONS}

    def run(self, session, batch: np.ndarray, precision: str) -> np.ndarray:
        return session[precision](batch)[0]


def clock() -> float:
    """Seconds; with one thread the processor's own, which other programs do not stretch."""
    return time.process_time() if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter()


PRECISIONS = ("float32", "bfloat16")
BACKENDS = {"torch": Torch, "jclip": JCLIP, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def serve(backend: str) -> None:
    """A process with another library: takes orders on standard input, answers with seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    library, batches = BACKENDS[backend](), {}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "stop":
            return
        if order["do"] == "prepare":
            library.prepare(order["model"], order["shapes"])
            batches.clear()
            answer = {"ok": True}
        else:
            key = (order["kind"], order["batch"], order["precision"])
            if key not in batches:
                batches[key] = inputs_of(ARCHITECTURES[order["model"]], *key[:2])
                library.encode(order["kind"], batches[key], order["precision"])  # the first call is not counted
            seconds, output = timed(library, order["kind"], batches[key], order["precision"])
            answer = {"seconds": seconds, "memory": peak_memory(), "first": output[0][:4].tolist()}
        print(json.dumps(answer), file=answers, flush=True)


def timed(library, kind: str, batch: np.ndarray, precision: str) -> tuple:
    begun = clock()
    output = library.encode(kind, batch, precision)
    return clock() - begun, output


def peak_memory() -> float:
    """GB that this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Peer:
    """A library in a process of its own; none of it runs while ours is measured."""

    def __init__(self, name: str, python: str):
        self.label = BACKENDS[name].label
        self.precisions = PRECISIONS if name in ("torch", "openvino") else PRECISIONS[:1]
        self.process = subprocess.Popen([python, __file__, "--serve", name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.alive = bool(self.process.stdout.readline())

    def ask(self, **order) -> dict:
        if not self.alive:
            return {}
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        self.alive = bool(answer)
        return json.loads(answer) if answer else {}

    def close(self) -> None:
        # Not by closing the pipe, of which Jittor's compiler processes hold copies, nor by a signal,
        # which Jittor in this process would take for a lack of memory.
        self.ask(do="stop")
        self.process.wait()


def measure(ours: Ours, peers: list, model: str, kind: str, batch: int, precisions: list, repeats: int) -> list:
    """Medians over turns of: product rate, ours, each peer; one row a precision."""
    inputs = inputs_of(ARCHITECTURES[model], kind, batch)
    outputs = {precision: ours.encode(kind, inputs, precision) for precision in precisions}
    rates, seconds = [], {precision: [] for precision in precisions}
    others = {(precision, peer.label): [] for precision in precisions for peer in peers if precision in peer.precisions}
    for _ in range(repeats):
        for precision, taken in seconds.items():
            rates.append(ours.product_rate())
            count = max(1, int(0.3 / (taken[-1] if taken else 1)))  # short calls: several a turn
            taken.append(statistics.median(timed(ours, kind, inputs, precision)[0] for _ in range(count)))
            rates.append(ours.product_rate())
            for peer in peers:
                if precision not in peer.precisions:
                    continue
                answers = [peer.ask(do="encode", model=model, kind=kind, batch=batch, precision=precision)
                           for _ in range(count)]
                if all(answers):
                    others[precision, peer.label].append(statistics.median(one["seconds"] for one in answers))
                    require_close(answers[0]["first"], outputs[precision][0][:4], precision, peer.label)
    rows, rate = [], statistics.median(rates)
    for precision, taken in seconds.items():
        elapsed = statistics.median(taken)
        gflops = flop(ARCHITECTURES[model], kind, batch) / 1e9 / elapsed
        rows.append({
            "model": model, "kind": kind, "batch": batch, "precision": precision,
            f"{kind}s_per_second": batch / elapsed, "gflops": gflops, "product_gflops": rate, "share": gflops / rate,
            "peak_memory_gb": peak_memory(), "cosine": least_cosine(outputs[precision], outputs[precisions[0]]),
            "peers": {label: batch / statistics.median(times)
                      for (of, label), times in others.items() if of == precision and times}})
    return rows


def require_close(theirs: list, ours: np.ndarray, precision: str, label: str) -> None:
    bound = {"float32": 1e-3, "bfloat16": 3e-2}[precision]
    close = np.allclose(theirs, ours, rtol=bound, atol=bound * float(np.abs(ours).max()))
    assert close, f"{label} computes something else: {theirs}, {ours}"


def least_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    products = (rows.astype(float) * others).sum(axis=1)
    return float((products / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)).min())


def table_line(row: dict, columns: list) -> str:
    per_second = row[f"{row['kind']}s_per_second"]
    line = (f"{row['model']:10} {row['kind']:5} {row['batch']:5} {row['precision']:9} {per_second:9.1f} "
            f"{row['gflops']:8.1f} {row['product_gflops']:7.1f} {row['share']:6.2f} "
            f"{row['peak_memory_gb']:5.1f}")
    for label in columns:
        peer = row["peers"].get(label)
        line += f" {peer:10.1f} {per_second / peer:6.2f}" if peer else f" {'-':>10} {'-':>6}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(ARCHITECTURES), metavar="MODEL",
                        help=f"of {', '.join(ARCHITECTURES)} (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1 8 32 256")
    parser.add_argument("--kinds", nargs="+", choices=("image", "text"), default=["image", "text"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"],
                        help="by turns; cosines are to the first (default: float32)")
    parser.add_argument("--repeats", type=int, help="turns that the medians are over (default: 5)")
    parser.add_argument("--quick", action="store_true", help="ViT-B/32 and RN50, batches 1 and 32, 3 turns")
    parser.add_argument(
    "--torch-python",
    metavar="PATH",
     help="an interpreter that has torch (default: this one)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument("--serve", choices=list(BACKENDS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    models = arguments.models or (["ViT-B/32", "RN50"] if arguments.quick else list(ARCHITECTURES))
    batches = arguments.batches or ([1, 32] if arguments.quick else [1, 8, 32, 256])
    repeats = arguments.repeats or (3 if arguments.quick else 5)

    peers = []
    if arguments.torch_python or importlib.util.find_spec("torch"):
        peers.append(Peer("torch", arguments.torch_python or sys.executable))
    peers += [Peer(name, sys.executable) for name in ("jclip", "onnxruntime", "openvino")
              if importlib.util.find_spec(name)]
    peers = [peer for peer in peers if peer.alive]
    ours, rows = Ours(), []
    columns = [peer.label for peer in peers]
    print(f"{'model':10} {'kind':5} {'batch':>5} {'precision':9} {'a second':>9} {'GFLOP/s':>8} {'1024^3':>7} "
          f"{'share':>6} {'GB':>5}" + "".join(f" {label + '/s':>10} {'ratio':>6}" for label in columns), flush=True)
    try:
        for model in models:
            shapes = layout(model)
            ours.prepare(model, shapes)
            for peer in peers:
                peer.ask(do="prepare", model=model, shapes=shapes)
            kinds = [kind for kind in arguments.kinds if kind == "image" or model in ("ViT-B/32", "ViT-L/14")]
            for kind in kinds:  # the other models' text towers are ViT-B/32's
                for batch in batches:
                    measured = measure(ours, peers, model, kind, batch, arguments.precisions,
                                       repeats if batch < 128 else 1)
                    rows += measured
                    for row in measured:
                        print(table_line(row, columns), flush=True)
    finally:
        for peer in peers:
            peer.close()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
