"""Decide how Jittor will run here, without importing it: device, libraries, and the environment that it reads.

Every build has a folder of its own, named by all that it depends on: Python, compiler, processor, flags.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from jclip_fewshot.backend import headers, toolkit
from jclip_fewshot.backend.package import mended
from jclip_fewshot.backend.plain_paths import plain
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import require_writable_folder, write_text

DEVICES = ("auto", "cpu", "cuda")
DEVICE_VARIABLE = "JCLIP_DEVICE"
LOG_VARIABLE = "JCLIP_JITTOR_LOG"  # 1 shows Jittor's own log
PYTHONS = ((3, 10), (3, 13))  # the first and the last that are served; pyproject.toml and the Makefile say it too


@dataclass(frozen=True)
class Plan:
    """How Jittor will be started, and why."""

    device: str  # "cpu" or "cuda"
    reason: str
    onednn: str  # where it is from, or "none"
    environment: dict[str, str]
    home: Path  # JITTOR_HOME
    package: Path  # the folder from which Jittor is imported (package.py)
    compiler: str | None = None
    header: Path | None = None  # Jittor's headers, precompiled (headers.py)

    def __str__(self) -> str:
        on_cpu = f"Jittor on the CPU: {self.reason}, oneDNN: {self.onednn}"
        return on_cpu if self.device == "cpu" else f"Jittor on CUDA: {self.reason}"

    @property
    def stamp(self) -> Path:
        """The file that says that this build is finished."""
        return self.home / ".cache/jittor" / f"jclip_built_{self.environment['cache_name']}"

    @property
    def built(self) -> bool:
        return self.stamp.exists() and (self.header is None or self.header.exists())


def jittor_home() -> Path:
    """Return the folder whose .cache/jittor holds Jittor's builds, by its rule. Raise UserError if there is none."""
    if home := os.environ.get("JITTOR_HOME"):
        return plain(Path(home))
    try:
        user = Path.home()
        home = json.loads((user / ".cache/jittor/config.json").read_text()).get("JITTOR_HOME")
    except RuntimeError:
        raise UserError("this user has no home folder for Jittor's build: set JITTOR_HOME to a folder that can be "
                        "written") from None
    except (OSError, ValueError):
        pass
    return plain(Path(home or user))


def plan(device: str = "auto") -> Plan:
    """Decide device and libraries. Raise UserError, which says what is missing, if Jittor cannot run so."""
    if device not in DEVICES:
        raise UserError(f"device {device!r} is none of {', '.join(DEVICES)} (--device or {DEVICE_VARIABLE})")
    (_, least), (_, last) = PYTHONS
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise UserError(f"Python {platform.python_version()} is not served: take Python 3.{least} to 3.{last}")
    wanted = os.environ.get("cc_path") or "g++"
    compiler = shutil.which(wanted)
    if not compiler and sys.platform == "linux":
        raise UserError(f"no C++ compiler {wanted}: Jittor needs g++ (Debian, Ubuntu: apt-get install g++), or the one "
                        "that the variable cc_path names")
    home = jittor_home()
    require_writable_folder(home / ".cache/jittor", "Jittor's build (JITTOR_HOME)")
    package = mended(home)
    build = {"use_mpi": "0", "python_config_path": str(_python_config(home))}  # ranks.py needs no MPI
    chosen, reason, tools = _choose_device(device, home)
    if tools:
        build.update(nvcc_path=str(tools.nvcc), conv_opt="1", use_cutt="0", use_cutlass="0", use_nccl="0")
        if tools.version >= (13, 0):
            # CUDA 13 removed two fields that Jittor's helper_cuda.h reads and merely prints or compares.
            build["cc_flags"] = "-DclockRate=warpSize -DcomputeMode=integrated"
            # Its CUB, in Jittor's softmax, wants C++17; Jittor asks for C++14 and turns a 17 in cc_flags into it.
            own = os.environ.get("NVCC_APPEND_FLAGS", "")
            build["NVCC_APPEND_FLAGS"] = own if "-std=" in own else f"{own} -std=c++17".strip()
    else:
        build["nvcc_path"] = ""
    header = None if tools else _choose_header(home, package, compiler)
    if header:
        build.update(headers.flags(header))
    onednn = "none" if os.environ.get("use_mkl") == "0" else toolkit.link_onednn(home)
    if onednn == "none":
        build["use_mkl"] = "0"
    chosen_by_user = {name: os.environ.get(name, "") for name in ("cc_flags", "kernel_flags", "debug")}
    facts = [package.name, sys.version, machine(compiler), tools and tools.version, {**chosen_by_user, **build}]
    build["cache_name"] = f"jclip_{chosen}_{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    manners = {  # what changes nothing in a build
        # OpenMP's idle threads spin for milliseconds by default and take the cores from whatever else runs: on a busy
        # machine a batch of one went 3 to 10 times slower.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        "log_silent": "0" if os.environ.get(LOG_VARIABLE) == "1" else "1",
        "gdb_path": "",  # looked for at every import, only to print a stack after a crash
        "use_cuda": "0",  # a 1 from outside ends the interpreter where there is no CUDA; runtime.py sets the flag
    }
    return Plan(chosen, reason, onednn, {**build, **manners}, home, package, compiler, header)


def cpuinfo() -> str:
    """Return what Linux says of the processors; nothing elsewhere."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return ""


def machine(compiler: str | None) -> tuple:
    """Return what code compiled here depends on; different processors may have the same name."""
    lines = cpuinfo().splitlines()
    told = [next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags", "Features")]
    processor = repr(told) if lines else platform.processor()
    return platform.machine(), processor, (compiler, os.path.getmtime(compiler)) if compiler else ()


def plain_python() -> str:
    """Return this Python, not the virtual environment's, by a path that Jittor's unquoted command lines can take."""
    executable = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    if not executable.is_file():
        executable = Path(sys.executable)
    return str(plain(executable.parents[1]) / "bin" / executable.name)


def _python_config(home: Path) -> Path:
    """Return a script that answers as python3.x-config, which many installations and virtual environments lack."""
    includes = list(dict.fromkeys(sysconfig.get_paths()[name] for name in ("include", "platinclude")))
    if not Path(includes[0], "Python.h").is_file():
        raise UserError(f"Python's headers are not installed ({includes[0]}/Python.h): Debian, Ubuntu: apt-get install "
                        f"python3.{sys.version_info.minor}-dev")
    text = ('#!/bin/sh\ncase "$1" in\n'
            f"--includes) echo '{' '.join(f'-I{include}' for include in includes)}' ;;\n"
            f"--extension-suffix) echo '{sysconfig.get_config_var('EXT_SUFFIX')}' ;;\nesac\n")
    script = home / ".cache/jittor/jclip_python" / f"config_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not script.exists():
        write_text(script, text)
        script.chmod(0o755)
    return script


def _choose_device(device: str, home: Path) -> tuple[str, str, toolkit.Toolkit | None]:
    """(cpu or cuda, why, toolkit or None)."""
    if device == "cpu":
        return "cpu", "asked for", None
    try:
        gpu, tools = toolkit.find_gpu(), toolkit.find_toolkit(home)
        driver, release = gpu.driver_cuda[0], tools.version[0]
        if release > driver:
            raise UserError(f"the driver runs CUDA {driver}, nvcc is CUDA {release}: update the driver")
    except UserError as problem:
        if device == "cuda":
            raise UserError(f"--device cuda: {problem}; --device cpu runs without") from None
        return "cpu", str(problem), None
    compute, nvcc = (".".join(map(str, numbers)) for numbers in (gpu.capability, tools.version))
    return "cuda", f"{gpu.name} (compute {compute}), nvcc {nvcc}", tools


def _choose_header(home: Path, package: Path, compiler: str | None) -> Path | None:
    """The precompiled header for a CPU build; None where g++ is not the compiler or somebody chose other flags."""
    if not re.match(r"(.*-)?g\+\+", os.path.basename(compiler or "")) or os.environ.get("debug", "0") != "0":
        return None
    header = headers.path(home, package / "jittor", machine(compiler))
    # a child process finds its parent's flags, which are ours
    ours = all(os.environ.get(name, "").strip() in ("", value) for name, value in headers.flags(header).items())
    return header if ours else None
