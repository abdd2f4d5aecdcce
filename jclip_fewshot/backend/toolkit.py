"""What this machine offers: oneDNN, a CUDA driver and toolkit. Looks, and makes folders of links."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from jclip_fewshot.backend.cpp import source
from jclip_fewshot.backend.plain_paths import link_to
from jclip_fewshot.console import warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import write_text

ONEDNN_WHEELS = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
ONEDNN_REMEDY = f"python -m pip install {' '.join(name + '==2021.2.0' for name in ONEDNN_WHEELS)}"
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"  # Jittor's name of the release that the PyPI wheels 2021.2.0 hold
# What Jittor's CUDA build opens by name: header, library.
_NEEDED = {"CUDA runtime": ("cuda_runtime.h", "libcudart.so"),
           "cuBLAS": ("cublas_v2.h", "libcublas.so"),
           "cuBLASLt": ("cublasLt.h", "libcublasLt.so"),
           "cuRAND": ("curand.h", "libcurand.so")}


class Gpu(NamedTuple):
    name: str
    devices: int
    capability: tuple[int, int]
    driver_cuda: tuple[int, int]  # the newest CUDA release that the driver runs


class Toolkit(NamedTuple):
    nvcc: Path
    version: tuple[int, int]


def find_gpu() -> Gpu:
    """Return the first device as the CUDA driver has it. Raise UserError where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UserError("no NVIDIA driver (libcuda.so.1 not found)") from None
    if driver.cuInit(0) != 0:
        raise UserError("the NVIDIA driver does not start (cuInit failed)")
    count, device, cuda, major, minor = (ctypes.c_int() for _ in range(5))
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise UserError("the NVIDIA driver sees no device (is CUDA_VISIBLE_DEVICES empty?)")
    driver.cuDriverGetVersion(ctypes.byref(cuda))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(100)
    driver.cuDeviceGetName(name, 100, device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(errors="replace"), count.value, (major.value, minor.value),
               (cuda.value // 1000, cuda.value % 1000 // 10))


def _nvcc_candidates(jittor_home: Path) -> list[Path]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    # where `python -m jittor_utils.install_cuda` puts CUDA 12.2 and cuDNN 8
    homes += sorted(map(str, jittor_home.glob(".cache/jittor/jtcuda/*")), reverse=True)
    on_path = os.path.realpath(shutil.which("nvcc") or "")
    return [Path(os.environ.get("nvcc_path", "")), *(Path(home, "bin/nvcc") for home in homes if home), Path(on_path),
            Path("/usr/local/cuda/bin/nvcc"), Path("/opt/cuda/bin/nvcc")]  # those that are no files are passed over


def _nvcc_version(nvcc: Path) -> tuple[int, int] | None:
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, timeout=30).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _wheel_folders() -> list[Path]:
    """Folders that hold NVIDIA's PyPI wheels, as PyTorch installs them."""
    return [folder for root in sys.path if root.endswith("-packages") for folder in sorted(Path(root).glob("nvidia/*"))]


def find_toolkit(jittor_home: Path) -> Toolkit:
    """Return the first nvcc for which every header and library can be found, or else raise UserError. Where they lie
    elsewhere (PyTorch's nvidia-* wheels), it is one in a folder of links that looks like a toolkit."""
    problem = "no nvcc found (PATH, CUDA_HOME, /usr/local/cuda); with a network: python -m jittor_utils.install_cuda"
    for nvcc in filter(Path.is_file, dict.fromkeys(_nvcc_candidates(jittor_home))):
        version = _nvcc_version(nvcc)
        if version is None:
            problem = f"{nvcc} does not run as a CUDA compiler"
            continue
        home, x86 = nvcc.parent.parent, nvcc.parent.parent / "targets/x86_64-linux"
        includes = [folder / "include" for folder in (home, x86, *_wheel_folders())]
        libraries = [home / "lib64", *(folder / "lib" for folder in (home, x86, *_wheel_folders()))]
        # a versioned name has CUDA's own number, but for cuRAND, which has been version 10 since CUDA 10
        found = {part: (_find(includes, header),
                        _find(libraries, library, f"{library}.{10 if part == 'cuRAND' else version[0]}"))
                 for part, (header, library) in _NEEDED.items()}
        missing = [part for part, paths in found.items() if None in paths]
        if missing:
            problem = f"{nvcc} has no {', '.join(missing)} beside it; pip install nvidia-cublas nvidia-curand, " \
                      "or with a network: python -m jittor_utils.install_cuda"
            continue
        own = {part: (includes[0] / header, libraries[0] / library) for part, (header, library) in _NEEDED.items()}
        if found == own and (includes[0] / "npp.h").exists():
            return Toolkit(nvcc, version)
        folder = jittor_home / ".cache/jittor/jclip_toolkit" / f"cuda{version[0]}.{version[1]}"
        return Toolkit(_linked_toolkit(folder, nvcc, found), version)
    raise UserError(problem)


def _find(folders: list[Path], *names: str) -> Path | None:
    paths = (folder / name for folder in folders for name in names)
    return next(filter(Path.exists, paths), None)


def _linked_toolkit(folder: Path, nvcc: Path, found: dict) -> Path:
    """Make `folder` look like a CUDA toolkit: bin/nvcc, include/, lib64/ of links. Return its nvcc."""
    include, lib64 = folder / "include", folder / "lib64"
    for header_folder in dict.fromkeys(header.parent for header, _ in found.values()):
        for entry in sorted(header_folder.iterdir()):
            link_to(include / entry.name, entry)
    if not (include / "npp.h").exists():  # of which Jittor's reductions want the limits alone; few toolkits have it
        write_text(include / "npp.h", source(__file__, "npp.h"))
    for part, (_, library) in found.items():
        for name in (_NEEDED[part][1], library.name):  # the second is the one that the loader asks for
            link_to(lib64 / name, library)
    script = folder / "bin" / "nvcc"
    write_text(script, f'#!/bin/sh\nexec "{nvcc}" "$@"\n')
    script.chmod(0o755)
    return script


def _wheel_folder(wheel: str, name: str) -> Path | None:
    """The folder in which a PyPI wheel's file of that name lies; None where it is absent."""
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(os.path.abspath(str(file.locate()))) for file in files if file.name == name]
    return next((path.parent for path in paths if path.is_file()), None)


def link_onednn(jittor_home: Path) -> str:
    """Give Jittor the oneDNN that it would download. Return where it is from, "none" after a warning. Its own download
    is left alone; links of ours are renewed where a virtual environment was deleted."""
    folder = jittor_home / ".cache/jittor/mkl" / ONEDNN_FOLDER
    there = (folder / "lib/libmkldnn.so").is_file()
    if there and not (folder / "lib").is_symlink():
        return "Jittor's download"
    if not there or not (folder / "include/mkldnn.h").is_file():
        library, header = map(_wheel_folder, ONEDNN_WHEELS, ("libmkldnn.so", "mkldnn.h"))
        if library is None or header is None:
            warn(f"oneDNN is missing, so matrix products run about five times slower: {ONEDNN_REMEDY}")
            return "none"
        link_to(folder / "lib", library)
        link_to(folder / "include", header)
    return "PyPI wheels"
