"""What this machine offers: a compiler, oneDNN, a CUDA driver and toolkit.

Looks, and makes folders of links; imports neither Jittor nor anything else heavy.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jclip_fewshot.backend.plain_paths import link_to
from jclip_fewshot.storage.files import write_text

ONEDNN_WHEELS = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
ONEDNN_REMEDY = f"python -m pip install {' '.join(name + '==2021.2.0' for name in ONEDNN_WHEELS)}"
# Jittor looks for oneDNN under this name; the PyPI wheels 2021.2.0 hold the same release.
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device, as the driver describes it."""

    name: str
    count: int
    capability: tuple[int, int]
    driver_cuda: tuple[int, int]  # the newest CUDA release that the driver runs

    def __str__(self) -> str:
        return f"{self.name} (compute {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True)
class Toolkit:
    """An nvcc with the headers and libraries that Jittor asks for."""

    nvcc: Path
    version: tuple[int, int]


def find_gpu() -> Gpu | str:
    """Return the first device as the CUDA driver has it; a string says why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 not found)"
    if driver.cuInit(0) != 0:
        return "the NVIDIA driver does not start (cuInit failed)"
    count, device, cuda = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver sees no device (is CUDA_VISIBLE_DEVICES empty?)"
    driver.cuDriverGetVersion(ctypes.byref(cuda))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(100)
    driver.cuDeviceGetName(name, 100, device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(errors="replace"), count.value, (major.value, minor.value),
               (cuda.value // 1000, cuda.value % 1000 // 10))


def _nvcc_candidates(jittor_home: Path) -> Iterator[Path]:
    if os.environ.get("nvcc_path"):
        yield Path(os.environ["nvcc_path"])
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable], "bin", "nvcc")
    # where `python -m jittor_utils.install_cuda` puts CUDA 12.2 and cuDNN 8
    yield from sorted(jittor_home.glob(".cache/jittor/jtcuda/*/bin/nvcc"), reverse=True)
    on_path = shutil.which("nvcc")
    if on_path:
        yield Path(on_path).resolve()
    for folder in ("/usr/local/cuda", "/opt/cuda"):
        yield Path(folder, "bin", "nvcc")


def _nvcc_version(nvcc: Path) -> tuple[int, int] | None:
    try:
        text = subprocess.run([str(nvcc), "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=30).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _wheel_folders() -> list[Path]:
    """Folders that hold NVIDIA's PyPI wheels, as PyTorch installs them."""
    roots = [Path(entry) for entry in sys.path if entry.endswith("-packages")]
    roots += [Path(entry) for entry in site.getsitepackages()]
    return [folder for root in dict.fromkeys(roots) for folder in sorted(root.glob("nvidia/*")) if folder.is_dir()]


# Jittor's reductions on CUDA include npp.h for these limits alone; few toolkits have it, PyTorch's wheels never.
_NPP_LIMITS = """\
#pragma once
#define NPP_MIN_32U 0
#define NPP_MAX_32U 4294967295U
#define NPP_MIN_32S (-2147483647 - 1)
#define NPP_MAX_32S 2147483647
#define NPP_MIN_64U 0
#define NPP_MAX_64U 18446744073709551615ULL
#define NPP_MIN_64S (-9223372036854775807LL - 1)
#define NPP_MAX_64S 9223372036854775807LL
"""

# What Jittor's CUDA build opens by name, with its file names: header, library.
_NEEDED = {"CUDA runtime": ("cuda_runtime.h", "libcudart.so"),
           "cuBLAS": ("cublas_v2.h", "libcublas.so"),
           "cuBLASLt": ("cublasLt.h", "libcublasLt.so"),
           "cuRAND": ("curand.h", "libcurand.so")}


def _find(folders: list[Path], name: str, cuda: int) -> Path | None:
    """`name` or, for a library, its versioned file (`libcublas.so.13`) in the first folder that has it."""
    # cuRAND has been version 10 since CUDA 10; the others carry CUDA's own number.
    names = [name, f"{name}.10" if "curand" in name else f"{name}.{cuda}"]
    for folder in folders:
        for candidate in names:
            if (folder / candidate).exists():
                return folder / candidate
    return None


def find_toolkit(jittor_home: Path) -> Toolkit | str:
    """Return the first nvcc for which every header and library can be found; a string says what is missing.

    Where they lie elsewhere (PyTorch's nvidia-* wheels), a folder of links that looks like a toolkit is made under
    `jittor_home`/.cache/jittor/jclip_toolkit.
    """
    problem = "no nvcc found (PATH, CUDA_HOME, /usr/local/cuda); with a network: python -m jittor_utils.install_cuda"
    for nvcc in filter(Path.is_file, dict.fromkeys(_nvcc_candidates(jittor_home))):
        version = _nvcc_version(nvcc)
        if version is None:
            problem = f"{nvcc} does not run as a CUDA compiler"
            continue
        home = nvcc.parent.parent
        own_includes = [home / "include", home / "targets/x86_64-linux/include"]
        own_libraries = [home / "lib64", home / "lib", home / "targets/x86_64-linux/lib"]
        includes = own_includes + [folder / "include" for folder in _wheel_folders()]
        libraries = own_libraries + [folder / "lib" for folder in _wheel_folders()]
        headers = {part: found for part, (name, _) in _NEEDED.items() if (found := _find(includes, name, version[0]))}
        shared = {part: found for part, (_, name) in _NEEDED.items() if (found := _find(libraries, name, version[0]))}
        missing = [part for part in _NEEDED if part not in headers or part not in shared]
        if missing:
            problem = f"{nvcc} has no {', '.join(missing)} beside it; pip install nvidia-cublas nvidia-curand, " \
                      "or with a network: python -m jittor_utils.install_cuda"
            continue
        if (own_includes[0] / "npp.h").exists() and all(
                headers[part] == own_includes[0] / header and shared[part] == own_libraries[0] / library
                for part, (header, library) in _NEEDED.items()):
            return Toolkit(nvcc, version)
        folder = jittor_home / ".cache/jittor/jclip_toolkit" / f"cuda{version[0]}.{version[1]}"
        return Toolkit(link_toolkit(folder, nvcc, headers, shared), version)
    return problem


def link_toolkit(folder: Path, nvcc: Path, headers: dict, shared: dict) -> Path:
    """Make `folder` look like a CUDA toolkit: bin/nvcc, include/, lib64/ of links. Return its nvcc."""
    include, lib64 = folder / "include", folder / "lib64"
    for header_folder in dict.fromkeys(header.parent for header in headers.values()):
        for entry in sorted(header_folder.iterdir()):
            link_to(include / entry.name, entry)
    if not (include / "npp.h").exists():
        write_text(include / "npp.h", _NPP_LIMITS)
    for part, (_, library) in _NEEDED.items():
        link_to(lib64 / library, shared[part])
        link_to(lib64 / shared[part].name, shared[part])  # the name that the loader asks for
    script = folder / "bin" / "nvcc"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec "{nvcc}" "$@"\n')
    script.chmod(0o755)
    return script


def _onednn_wheel_files() -> tuple[Path | None, Path | None]:
    """(folder of libmkldnn.so, folder of mkldnn.h) of the PyPI wheels, each None where absent."""
    def folder(wheel: str, name: str) -> Path | None:
        try:
            files = metadata.distribution(wheel).files or []
        except metadata.PackageNotFoundError:
            return None
        paths = [Path(os.path.abspath(str(file.locate()))) for file in files if file.name == name]
        return next((path.parent for path in paths if path.is_file()), None)
    return folder(ONEDNN_WHEELS[0], "libmkldnn.so"), folder(ONEDNN_WHEELS[1], "mkldnn.h")


def link_onednn(jittor_home: Path) -> bool:
    """Give Jittor the oneDNN that it would download. Return whether it is in place.

    A library that Jittor itself has put there is left alone; links of ours are renewed, so that they survive a deleted
    virtual environment.
    """
    folder = jittor_home / ".cache/jittor/mkl" / ONEDNN_FOLDER
    library, header = _onednn_wheel_files()
    there = (folder / "lib" / "libmkldnn.so").is_file()
    if there and (not (folder / "lib").is_symlink() or (folder / "include" / "mkldnn.h").is_file()):
        return True
    if library is None or header is None:
        return False
    link_to(folder / "lib", library)
    link_to(folder / "include", header)
    return True


def onednn_is_linked(jittor_home: Path) -> bool:
    """Return whether oneDNN is our link to the PyPI wheels, not Jittor's own download."""
    return (jittor_home / ".cache/jittor/mkl" / ONEDNN_FOLDER / "lib").is_symlink()
