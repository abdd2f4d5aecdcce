"""What a GPU does with the whole of it: encoder, a contest-size test set, methods on rows, refinement.

    python benchmarks/gpu.py [--device cuda] [--torch-python PATH] [--small]

Weights are random (rates do not depend on them), so no checkpoint is needed. Each part prints a table and a
failed part says so and lets the next ones run.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TORCH_RATE = """
import sys, time, torch
n, device = int(sys.argv[1]), sys.argv[2]
a = torch.randn(n, n, device=device, dtype=torch.float16 if device == "cuda" else torch.float32)
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
for _ in range(3): a @ a
wait(); begun = time.time()
for _ in range(10): a @ a
wait(); print(2 * n ** 3 * 10 / (time.time() - begun) / 1e12)
"""

TORCH_IMAGES = """
import sys, time, torch
sys.path.insert(0, "benchmarks")
from encode import ARCHITECTURES, torch_clip
batch, device = int(sys.argv[1]), sys.argv[2]
dtype = torch.float16 if device == "cuda" else torch.float32
model = torch_clip(torch, ARCHITECTURES["ViT-B/32"]).eval()
model = model.to(device, dtype)
images = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
with torch.no_grad():
    for repeats in (3, 20):
        wait(); begun = time.time()
        for _ in range(repeats): model.encode_image(images)
        wait(); seconds = (time.time() - begun) / repeats
print(f"batch {batch}: {batch / seconds:.1f} images/s")
"""


def product_rate(size: int, half: bool) -> float:
    """TFLOP/s of Jittor's size³ product."""
    from jclip_fewshot.backend import jt
    a = jt.randn((size, size))
    a = a.float16() if half else a
    for repeats in (3, 10):
        begun = time.perf_counter()
        for _ in range(repeats):
            jt.matmul(a, a).sync()
        jt.sync_all(True)
        seconds = time.perf_counter() - begun
    return 2 * size ** 3 * repeats / seconds / 1e12


def encoder(options):
    """Images a second by batch, and their share of the product rate of the same precision."""
    from encode import layout, random_state_dict

    from jclip_fewshot.backend import jt
    from jclip_fewshot.clip import build_model
    state = random_state_dict(layout("ViT-B/32"))
    dtypes = ["float16", "float32"] if options.device == "cuda" else ["float32"]
    reference = None
    for dtype in dtypes:
        rate = product_rate(1024 if options.small else 8192, dtype == "float16")
        model = build_model(state, dtype=dtype)
        print(f"{dtype}: product rate {rate:.1f} TFLOP/s")
        pixels = np.random.default_rng(0).standard_normal((4, 3, 224, 224), dtype=np.float32)
        rows = model.encode_image(jt.array(pixels)).numpy().astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if reference is None:
            reference = rows
        print(f"  least cosine with the first precision: {(rows * reference).sum(axis=1).min():.6f}")
        for batch in ([1, 8] if options.small else [1, 8, 32, 64, 128, 256, 512, 1024]):
            images = jt.array(np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32))
            for repeats in (2, 3 if options.small else 20):
                begun = time.perf_counter()
                for _ in range(repeats):
                    model.encode_image(images).sync()
                jt.sync_all(True)
                seconds = (time.perf_counter() - begun) / repeats
            gflop = 8.8 * batch
            share = gflop / seconds / 1e3 / rate
            print(f"  batch {batch:5}: {batch / seconds:9.1f} images/s, {share:6.1%} of the rate")
    if options.torch_python:
        print("torch product rate, TFLOP/s:", subprocess.run(
            [options.torch_python, "-c", TORCH_RATE, "1024" if options.small else "8192", options.device],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip())
        print("OpenAI's model in torch,", subprocess.run(
            [options.torch_python, "-c", TORCH_IMAGES, "8" if options.small else "256", options.device], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip())


def contest_size(options):
    """Seconds from JPEG files to feature rows for as many images as the contest's test set has."""
    from encode import layout, random_state_dict
    from PIL import Image

    from jclip_fewshot.clip.checkpoint import write_safetensors
    from jclip_fewshot.encoders import open_encoder
    from jclip_fewshot.features.encode import encode_images
    count = 64 if options.small else 3073
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder, "random.safetensors"), random_state_dict(layout("ViT-B/32")))
        rng, paths = np.random.default_rng(0), []
        for number in range(count):
            low = rng.integers(0, 255, (25, 33, 3), np.uint8)  # smooth like a photograph, not noise
            path = Path(folder, f"image_{number}.jpg")
            buffer = io.BytesIO()
            Image.fromarray(low).resize((500, 375), Image.BICUBIC).save(buffer, "JPEG", quality=90)
            path.write_bytes(buffer.getvalue())
            paths.append(path)
        model = open_encoder(Path(folder, "random.safetensors"),
                             dtype="float16" if options.device == "cuda" else "float32")
        encode_images(model, paths[:32])  # compiles
        for workers in sorted({1, 4, 8, 16} if not options.small else {1, 2}):
            begun = time.perf_counter()
            encode_images(model, paths, workers=workers)
            seconds = time.perf_counter() - begun
            print(f"  {workers:2} workers: {seconds:7.2f} s, {count / seconds:8.1f} images/s")


def methods(options):
    """Seconds of each method's fit, its folds and its answers, at the contest's size."""
    from jclip_fewshot.pipeline import Pipeline
    from jclip_fewshot.task import Task
    classes, width = (20, 64) if options.small else (374, 512)
    rng = np.random.default_rng(0)
    text = rng.standard_normal((classes, width)) + 3
    labels = np.repeat(np.arange(classes), 4)
    rows = text[labels] + 2 * rng.standard_normal((len(labels), width))
    Pipeline().fit(Task(rows, labels, text),
                   on_fit=lambda name, seconds: print(f"  {name:15} {seconds:7.2f} s", flush=True))


def refinement(options):
    """Seconds of the refinement of a large test set."""
    from jclip_fewshot.combine.refinement import refine
    from jclip_fewshot.task import Task
    n, classes, width = (500, 20, 64) if options.small else (50_000, 1000, 512)
    rng = np.random.default_rng(0)
    text = rng.standard_normal((classes, width), dtype=np.float32) + 3
    labels, truth = np.repeat(np.arange(classes), 4), rng.integers(0, classes, n)
    task = Task(text[labels] + 2 * rng.standard_normal((len(labels), width), dtype=np.float32), labels, text)
    features = text[truth] + 2 * rng.standard_normal((n, width), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    def probs(rows):
        logits = 50 * rows @ task.text.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    begun = time.perf_counter()
    refine(probs(features), features, task)
    print(f"  N = {n}, K = {classes}: {time.perf_counter() - begun:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter with torch, to compare with")
    parser.add_argument("--small", action="store_true", help="tiny sizes: to try the script itself")
    options = parser.parse_args()
    from jclip_fewshot.backend import runtime
    runtime.start(options.device)
    for part in (encoder, contest_size, methods, refinement):
        print(f"\n{part.__name__}: {part.__doc__}", flush=True)
        try:
            part(options)
        except Exception:
            traceback.print_exc(file=sys.stdout)


if __name__ == "__main__":
    main()
