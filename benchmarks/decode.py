"""What feeding the encoder costs: images a second by workers, the encoder fed and unfed, the cache's lookup.

    python benchmarks/decode.py [--workers 0 1 2 4 8 16] [--images 600] [--files 181729] [--model ViT-B/32]

1. A core's milliseconds for each step of one image, on ../shared/photos (where it is there) and on generated
   500 x 375 JPEGs; large ones.
2. Images a second out of `Decoder` by number of worker processes, and by number of threads; then the whole
   of `encode_images` with an encoder that does nothing: the ceiling on a machine with a GPU. Both are also
   given as images a second and busy core, so that the rate of a machine with more cores can be estimated.
3. `encode_images` with a CLIP of random weights against the same encoder called on a ready batch, by turns.
4. The cache: writing --files rows of 512, opening them, finding them all again from their paths.

--model "" leaves out 3, --files 0 leaves out 4. About two minutes on 2 cores.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from jclip_fewshot import console as progress
from jclip_fewshot.backend.runtime import cores
from jclip_fewshot.clip.preprocess import normalize, resize_and_crop
from jclip_fewshot.data.decode import Decoder, Recipe, decode, open_image
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.encoders.base import ROWS, Encoder
from jclip_fewshot.features.encode import encode_images, stored_rows
from jclip_fewshot.storage.feature_cache import FeatureCache
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.storage.row_store import as_keys

RECIPE = Recipe(PixelRecipe((224, 224)))
SHAPE = (1, 224, 224, 3)
BATCH = 64


def photograph_like(folder: Path, count: int, size=(500, 375)) -> list:
    """JPEGs of about 65 kB: smooth colours, edges and grain."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        base = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        grain = rng.integers(-12, 13, (size[1], size[0], 3))
        pixels = (np.asarray(base).astype(np.int16) + grain).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{size[0]}-{i}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def steps(paths) -> None:
    times = []
    for path in paths:
        marks = [time.perf_counter()]
        data = path.read_bytes()
        content_digest(data)
        marks.append(time.perf_counter())
        image, _ = open_image(data)
        marks.append(time.perf_counter())
        pixels = np.asarray(resize_and_crop(image, 224))
        marks.append(time.perf_counter())
        normalize(pixels)
        marks.append(time.perf_counter())
        times.append(np.diff(marks))
    names = ("read and digest", "decode", "resize and crop", "normalise")
    means = np.median(times, axis=0) * 1e3
    print("  one core, ms: " + ", ".join(f"{name} {mean:.2f}" for name, mean in zip(names, means))
          + f"; together {means.sum():.2f}")


def large(folder: Path) -> None:
    for size in ((1200, 900), (4000, 3000), (12000, 9000)):
        paths, out = photograph_like(folder, 2, size), np.empty(SHAPE, np.uint8)
        start = time.perf_counter()
        for path in paths:
            decode(str(path), RECIPE, out)
        print(f"  {size[0]} x {size[1]}: {(time.perf_counter() - start) / len(paths) * 1e3:.1f} ms")


def busy_seconds(decoder) -> float:
    """CPU seconds of the workers so far."""
    ticks = 0
    for worker in decoder.workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Nothing(Encoder):
    """An encoder that costs nothing."""

    def __init__(self, width: int, batch_size: int) -> None:
        super().__init__("nothing", "0" * 32, "float32", 224, width, 100.0, batch_size, "cuda")

    def images(self, pixels, depth=ROWS):
        return np.ones((len(pixels.copy()), self.width), np.float32)


def by_workers(paths, count: int, workers) -> None:
    many = [paths[i % len(paths)] for i in range(count)]
    nothing = Nothing(4, BATCH)
    print("    workers    Decoder  a busy core   threads  encode_images   images/s")
    for w in workers:
        with Decoder(many, RECIPE, BATCH, w) as decoder:
            for _ in decoder.batches(range(min(count, 4 * w))):  # started
                pass
            before, start = busy_seconds(decoder), time.perf_counter()
            for _ in decoder.batches(range(count)):
                pass
            rate = count / (time.perf_counter() - start)
            busy = busy_seconds(decoder) - before
        threads = ""
        if w:
            with ThreadPoolExecutor(w) as pool:
                start = time.perf_counter()
                list(pool.map(lambda path: decode(str(path), RECIPE, np.empty(SHAPE, np.uint8)), many))
                threads = f"{count / (time.perf_counter() - start):.0f}"
        start = time.perf_counter()
        encode_images(nothing, many, workers=w)
        whole = count / (time.perf_counter() - start)
        a_core = f"{count / busy:.0f}" if busy else ""
        print(f"  {w:>9} {rate:>10.0f} {a_core:>12} {threads:>9} {whole:>14.0f}")


def parent(count: int) -> None:
    """What the parent does for each image in addition to the encoder: tasks, results, rows, cache."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(8)]
        for path in paths:
            Image.new("RGB", (224, 224)).save(path)
        nothing = Nothing(512, 256)
        many = [paths[i % 8] for i in range(count)]
        start = time.process_time()
        with FeatureCache(Path(folder) / "cache") as cache:
            encode_images(nothing, many, cache=cache, workers=2)
        spent = time.process_time() - start
        print("\nThe parent's own work, one copy of every batch included: "
              f"{spent / count * 1e6:.0f} us an image, so at most {count / spent:.0f} images/s")


def fed_against_unfed(model: str, paths, repeats: int = 3) -> None:
    import encode

    from jclip_fewshot.clip import build_model
    from jclip_fewshot.encoders.clip_encoder import ClipEncoder
    encoder = ClipEncoder(build_model(encode.random_state_dict(encode.layout(model))), model, "random")
    batch = np.random.default_rng(0).integers(0, 256, (encoder.batch_size, 224, 224, 3), dtype=np.uint8)
    encoder.images(batch)
    count = min(len(paths), 12 * encoder.batch_size)
    fed, unfed = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count // encoder.batch_size):
            encoder.images(batch)
        unfed.append((time.perf_counter() - start) / (count // encoder.batch_size * encoder.batch_size))
        start = time.perf_counter()
        encode_images(encoder, paths[:count], workers=cores())
        fed.append((time.perf_counter() - start) / count)
    share = statistics.median(u / f for u, f in zip(unfed, fed))
    print(f"  {model}, batch {encoder.batch_size}, {cores()} worker(s): "
          f"encoder alone {1 / statistics.median(unfed):.1f} images/s, "
          f"encode_images {1 / statistics.median(fed):.1f} "
          f"({100 * share:.1f} %, median of {repeats} turns, workers' start included)")


def lookup(files: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = []
        for k in range(0, files, 500):
            (folder / f"{k}").mkdir()
            for i in range(k, min(k + 500, files)):
                paths.append(folder / f"{k}" / f"{i}.jpg")
                paths[-1].write_bytes(b"%d" % i)
        time.sleep(2.5)  # younger files are not trusted
        rows = np.random.default_rng(0).standard_normal((1000, 512)).astype(np.float32)
        encoder = Nothing(512, 256)
        start = time.perf_counter()
        with FeatureCache(folder / "cache") as cache:
            store = stored_rows(cache, encoder, RECIPE)
            _, _, marks = cache.known_files(paths)
            digests = as_keys([content_digest(b"%d" % i) for i in range(files)])
            cache.remember_files(marks, digests)
            for begin in range(0, files, 256):
                part = digests[begin:begin + 256]
                store.put(part, rows[:len(part)].view(np.uint8))
        print(f"  written in {time.perf_counter() - start:.2f} s: "
              f"{sum(path.stat().st_size for path in (folder / 'cache').glob('*/*')) / 1e6:.0f} MB in "
              f"{len(list((folder / 'cache').glob('*/*.rows')))} shards")
        names = list(map(str, paths))
        for what in ("first", "again"):
            start, used = time.perf_counter(), time.process_time()
            found, bad = encode_images(encoder, names, cache=FeatureCache(folder / "cache"))
            print(f"  {files} images found ({what}), cache opened: {time.perf_counter() - start:.2f} s, "
                  f"{time.process_time() - used:.2f} s of them busy")
        assert not bad and (found[255] == rows[255]).all()


def main() -> None:
    found = cores()
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*",
                        default=[0] + [w for w in (1, 2, 4, 8, 12, 16, 24, 32) if w <= found])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--files", type=int, default=181729)
    parser.add_argument("--model", default="ViT-B/32")
    options = parser.parse_args()
    progress.quiet = True
    print(f"{found} cores, Pillow {Image.__version__}")
    photos = sorted((ROOT.parent / "shared/photos").glob("T*Set*/**/*.jp*g"))
    with tempfile.TemporaryDirectory() as folder:
        generated = photograph_like(Path(folder), 60)
        for name, paths in (("photographs of 300 x 200", photos),
                            ("generated JPEGs of 500 x 375", generated)):
            if not paths:
                print(f"\n{name}: ../shared/photos is not there")
                continue
            print(f"\n{name}, {sum(path.stat().st_size for path in paths) / len(paths) / 1e3:.0f} kB")
            steps(paths[:200])
            by_workers(paths, options.images, options.workers)
        print("\nDraft mode")
        large(Path(folder))
        parent(2000)
        if options.model:
            print("\nThe encoder fed against unfed")
            for name, paths in (("photographs", photos), ("generated", generated * 4)):
                if paths:
                    print(f" {name}")
                    fed_against_unfed(options.model, paths)
    if options.files:
        print("\nThe cache")
        lookup(options.files)


if __name__ == "__main__":
    main()
