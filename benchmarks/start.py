"""Seconds to the first feature: from an empty HOME (Jittor builds itself and its first operators), and warm.

    python benchmarks/start.py [--jittor-flags] [--warm 5]

A new Python process each time: starts Jittor, loads the demo's CLIP, encodes one image. --jittor-flags
builds with the flags that Jittor would choose, without the headers that this package keeps parsed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_FEATURE = """
import numpy as np
from PIL import Image
from jclip_fewshot import clip
model, preprocess = clip.load("weights/demo_clip.safetensors")
model.encode_image(preprocess(Image.fromarray(np.zeros((100, 100, 3), np.uint8))).unsqueeze(0)).numpy()
"""


def first_feature(environment: dict) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_FEATURE], env=environment, cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", type=int, default=5, help="warm starts, of which the median counts")
    parser.add_argument("--jittor-flags", action="store_true", help="build as Jittor would by itself")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "JITTOR_HOME": home, "JCLIP_DEVICE": "cpu"}
        for name in ("cc_flags", "kernel_flags"):
            environment.pop(name, None)
        if options.jittor_flags:
            environment.update(cc_flags="-O2", kernel_flags="-Ofast")
        print(f"empty HOME: {first_feature(environment):6.1f} s to the first feature", flush=True)
        warm = [first_feature(environment) for _ in range(options.warm)]
        print(f"warm:       {statistics.median(warm):6.2f} s (median of {options.warm}; "
              f"{min(warm):.2f} to {max(warm):.2f})")
        size = sum(file.lstat().st_size for file in Path(home).rglob("*") if file.is_file() and not file.is_symlink())
        print(f"on disk:    {size / 2 ** 20:6.0f} MiB")


if __name__ == "__main__":
    main()
