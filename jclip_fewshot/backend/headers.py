"""Jittor's headers, parsed once: they are two thirds of what a build takes (`python benchmarks/start.py`).

Each compilation includes jittor.h, beside which lies a folder named `.gch`, from which g++ takes the version that fits
its flags. Where none fits it reads the file itself.
"""

import hashlib
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from jclip_fewshot.backend.cpp import source
from jclip_fewshot.storage.files import write_text

# Jittor's core is glue around its kernels: -O1 builds it in three quarters of -O2's time and runs as fast.
CORE_FLAGS = "-O1"
KERNEL_FLAGS = "-Ofast"  # what Jittor takes for operators where cc_flags says nothing of optimisation
_ALWAYS = "-Wall -Wno-unknown-pragmas -std=c++14 -fPIC -march=native"
# -fopenmp and -g are how Jittor compiles operators, and g++ takes only a header that was made with them.
_VERSIONS = {"core": CORE_FLAGS, "kernel": f"-fopenmp {KERNEL_FLAGS} -g"}
# Jittor's operators declare themselves differently where JIT is defined; -Ofast tells them from the core.
_TEXT = source(__file__, "jittor.h")


def path(jittor_home: Path, jittor: Path, machine: tuple) -> Path:
    """Return where the header for this Jittor (its package's folder) and this machine and compiler lies."""
    facts = [_TEXT, _VERSIONS, str(jittor), sysconfig.get_path("include"), machine]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return jittor_home / ".cache/jittor/jclip_headers" / digest / "jittor.h"


def flags(header: Path) -> dict[str, str]:
    """Return the environment variables that make Jittor compile with `header`."""
    return {"cc_flags": f'-include "{header}" {CORE_FLAGS}', "kernel_flags": KERNEL_FLAGS}


def prepare(header: Path, jittor: Path, compiler: str) -> None:
    """Write the header and its precompiled versions: 5 s and 150 MB, of which `drop_core` frees half."""
    write_text(header, _TEXT)
    folder = header.with_name(f"{header.name}.gch")
    folder.mkdir(exist_ok=True)
    includes = [f"-I{place}" for place in (jittor / "src", jittor / "extern", sysconfig.get_path("include"))]
    with tempfile.TemporaryDirectory(dir=header.parent) as unfinished:  # g++ would try it among the finished ones
        running = [subprocess.Popen([compiler, "-x", "c++-header", str(header), *_ALWAYS.split(), *version.split(),
                                     *includes, "-o", f"{unfinished}/{name}"],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                   for name, version in _VERSIONS.items()]
        if any([process.wait() for process in running]):  # a Jittor with other headers: nothing is gained
            write_text(header, "")
            return
        for name in _VERSIONS:
            os.replace(f"{unfinished}/{name}", folder / name)


def drop_core(header: Path) -> None:
    """Delete the version that only a build of Jittor itself wants."""
    (header.with_name(f"{header.name}.gch") / "core").unlink(missing_ok=True)
