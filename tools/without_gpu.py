#!/usr/bin/env python3
"""Compiles for a GPU where there is none: does nvcc take what Jittor and this package ask of it?

    pip install nvidia-cublas nvidia-curand          # the headers, where the toolkit has none
    python tools/without_gpu.py benchmarks/gpu.py --device cuda --small

Runs a Python script against a driver, a runtime, a cuBLAS and a cuRAND (no_gpu.c) that answer as an H200 would and
compute nothing: every kernel is compiled for sm_90 and loaded, every result is zeros. So numbers mean nothing, and a
part that looks at its numbers may well stop; what counts is whether a compiler's error is printed. Some 15 minutes
on 2 cores for the command above.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from jclip_fewshot.backend import device, toolkit
from jclip_fewshot.errors import UserError

# Each library under the name that nvcc's users link, and the one that the loader then asks for.
LIBRARIES = {"libcuda.so": "libcuda.so.1", "libcudart.so": "libcudart.so.{cuda}", "libcublas.so": "libcublas.so.{cuda}",
             "libcublasLt.so": "libcublasLt.so.{cuda}", "libcurand.so": "libcurand.so.10"}


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        real = toolkit.find_toolkit(device.jittor_home())
    except UserError as error:
        sys.exit(f"nothing to compile with: {error}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "bin").mkdir()
        (home / "lib64").mkdir()
        include = real.nvcc.parent.parent / "include"
        if not include.is_dir():
            include = real.nvcc.parent.parent / "targets/x86_64-linux/include"
        (home / "include").symlink_to(include)
        (home / "bin/nvcc").write_text(f'#!/bin/sh\nexec "{real.nvcc}" "$@"\n')
        (home / "bin/nvcc").chmod(0o755)
        for name, versioned in LIBRARIES.items():
            versioned = versioned.format(cuda=real.version[0])
            subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-I{include}",
                            f"-DCUDA_RELEASE={1000 * real.version[0] + 10 * real.version[1]}",
                            str(ROOT / "tools/no_gpu.c"), "-o", str(home / "lib64" / versioned),
                            f"-Wl,-soname,{versioned}"], check=True)
            (home / "lib64" / name).symlink_to(versioned)
        # a HOME of its own, since Jittor writes a JITTOR_HOME down there and goes by it ever after
        environment = {**os.environ, "CUDA_HOME": str(home), "LD_LIBRARY_PATH": str(home / "lib64"),
                       "HOME": str(home), "JITTOR_HOME": str(home), "JCLIP_DEVICE": "cuda"}
        sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], env=environment).returncode)


if __name__ == "__main__":
    main()
