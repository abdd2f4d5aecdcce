"""Jittor's headers, parsed once: they are most of what a build of Jittor and of its operators takes.

Jittor compiles about 160 files of its own and then every new operator; g++ spends two thirds of that
on the same headers (measured: `python benchmarks/start.py`). GCC can keep them parsed, as a precompiled
header: a file that each compilation is told to include, next to a folder of the same name with `.gch`
from which g++ takes whichever version fits its flags. Where none fits, g++ reads the file itself and
takes as long as ever: nothing can break.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sysconfig
from pathlib import Path

from jclip_fewshot.storage.files import write_text

# Jittor's core is glue around its kernels: -O1 builds it in three quarters of -O2's time and runs as fast.
CORE_FLAGS = "-O1"
KERNEL_FLAGS = "-Ofast"  # what Jittor takes for operators where cc_flags says nothing of optimisation
_ALWAYS = "-Wall -Wno-unknown-pragmas -std=c++14 -fPIC -march=native"
# -fopenmp and -g are how Jittor compiles operators, and g++ takes only a header that was made with them.
_VERSIONS = {"core": CORE_FLAGS, "kernel": f"-fopenmp {KERNEL_FLAGS} -g"}

# Jittor's operators declare themselves differently where JIT is defined; -Ofast tells them from the core.
_TEXT = """\
#ifdef __FAST_MATH__
#define JIT 1
#define JIT_cpu 1
#else
#include <Python.h>
#endif
#include "common.h"
#include "var.h"
#include "op.h"
#include "executor.h"
#include "fused_op.h"
#include "misc/cpu_math.h"
#include "ops/op_register.h"
#include "ops/array_op.h"
#include "ops/binary_op.h"
#include "ops/broadcast_to_op.h"
#include "ops/reduce_op.h"
#include "ops/unary_op.h"
#include <algorithm>
#include <assert.h>
#include <cmath>
#include <iostream>
#include <limits>
#include <sstream>
#include <unordered_map>
#include <vector>
"""


def path(jittor_home: Path, jittor: Path, machine: tuple) -> Path:
    """Where the header for this Jittor (its package's folder) and this machine and compiler lies."""
    facts = [_TEXT, _VERSIONS, str(jittor), _python_headers(), machine]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return jittor_home / ".cache/jittor/jclip_headers" / digest / "jittor.h"


def flags(header: Path) -> dict[str, str]:
    """The environment variables that make Jittor compile with `header`."""
    return {"cc_flags": f'-include "{header}" {CORE_FLAGS}', "kernel_flags": KERNEL_FLAGS}


def prepare(header: Path, jittor: Path, compiler: str) -> None:
    """Writes the header and its precompiled versions: 5 s and 150 MB, of which `drop_core` frees half."""
    write_text(header, _TEXT)
    folder = header.with_name(f"{header.name}.gch")
    folder.mkdir(exist_ok=True)
    includes = [f"-I{place}" for place in (jittor / "src", jittor / "extern", _python_headers())]
    running = {}
    for name, version in _VERSIONS.items():
        temporary = header.with_name(f"{name}.{os.getpid()}")  # g++ would try it if it lay among the finished ones
        command = [compiler, "-x", "c++-header", str(header), *_ALWAYS.split(), *version.split(), *includes,
                   "-o", str(temporary)]
        running[temporary] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        statuses = [process.wait() for process in running.values()]
    except BaseException:  # Ctrl-C
        for temporary, process in running.items():
            process.kill()
            process.wait()
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        raise
    if any(statuses):  # a Jittor with other headers: nothing is gained
        for temporary in running:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        write_text(header, "")
        return
    for temporary in running:
        os.replace(str(temporary), str(folder / temporary.stem))


def drop_core(header: Path) -> None:
    """Deletes the version that only a build of Jittor itself wants."""
    with contextlib.suppress(FileNotFoundError):
        (header.with_name(f"{header.name}.gch") / "core").unlink()


def _python_headers() -> str:
    return sysconfig.get_paths()["include"]
