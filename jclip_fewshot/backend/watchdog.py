"""Ctrl-C while Jittor computes or compiles, when Python hears no signal for half a minute: watchdog.cpp catches it,
hands it on to Python, and ends the process if Python is too slow."""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

from jclip_fewshot.backend.cpp import source


def arm(compiler: str | None, folder: Path, out: int, line: str, grace: float) -> bool:
    """End this process `grace` seconds after SIGINT or SIGTERM, at once after a second one; `out` is told the line.
    Return False where the library, which is kept in `folder`, cannot be compiled."""
    code = source(__file__, "watchdog.cpp").encode()
    library = folder / f"{hashlib.sha256(code + repr(os.uname()).encode()).hexdigest()[:16]}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = library.with_name(f".{library.name}.{os.getpid()}")
            subprocess.run([compiler or "g++", "-x", "c++", "-shared", "-fPIC", "-O1", "-w", "-", "-o", str(temporary)],
                           input=code, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)
            os.replace(temporary, library)
        ctypes.CDLL(str(library)).arm(out, os.open(os.devnull, os.O_WRONLY), ctypes.c_double(grace),
                                      f"{line}\n".encode("utf-8", "replace"))
    except (OSError, subprocess.SubprocessError):
        return False
    return True
