"""Ctrl-C while Jittor computes or compiles: Python hears a signal only between two of its own instructions.

Jittor holds the interpreter for as long as one call takes: half a minute where it compiles on a busy machine. So
the signal itself is caught in C, in a library of 30 lines that the compiler which Jittor needs anyway makes once:
it hands the signal on to Python, and ends the process if Python has not done so in time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

_LIBRARY: ctypes.CDLL | None = None  # stays loaded

# All that the handlers call may be called in a signal handler.
_CODE = r"""
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static struct sigaction python[65];
static volatile sig_atomic_t heard;
static pid_t process;
static int out, null;
static double grace;
static const char *line;

static void leave(int number) {
    if (isatty(out) && write(out, "\r\033[K", 4) < 0) {}
    if (write(out, line, strlen(line)) < 0) {}
    _exit(128 + heard);
}

static void hear(int number) {
    if (getpid() != process) { /* between fork and exec */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    if (heard)
        leave(number);
    int before = errno;
    heard = number;
    dup2(null, 2);
    struct itimerval timer = {{0, 0}, {(long)grace, (long)(grace * 1e6) % 1000000}};
    setitimer(ITIMER_REAL, &timer, 0);
    python[number].sa_handler(number);
    errno = before;
}

extern "C" void arm(int out_, int null_, double grace_, const char *line_) {
    const int numbers[] = {SIGINT, SIGTERM};
    process = getpid(), out = out_, null = null_, grace = grace_, line = strdup(line_);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    sigfillset(&action.sa_mask);
    action.sa_handler = leave;
    sigaction(SIGALRM, &action, 0);
    sigemptyset(&action.sa_mask);
    action.sa_handler = hear;
    for (int number : numbers) {
        sigaction(number, 0, &python[number]);
        if (python[number].sa_handler != SIG_IGN && python[number].sa_handler != SIG_DFL)
            sigaction(number, &action, 0);
    }
}
"""


def arm(compiler: str | None, folder: Path, out: int, line: str, grace: float) -> bool:
    """End this process `grace` seconds after SIGINT or SIGTERM, at once after a second one; Python hears the first.

    The library is kept in `folder`; `line` is written to the file descriptor `out`. Return False where it cannot be
    compiled: Python's own handlers are then all there is.
    """
    global _LIBRARY
    library = folder / (hashlib.sha256(f"{_CODE}{tuple(os.uname())}".encode()).hexdigest()[:16] + ".so")
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = library.with_name(f".{library.name}.{os.getpid()}")
            subprocess.run([compiler or "g++", "-x", "c++", "-shared", "-fPIC", "-O1", "-w", "-", "-o", str(temporary)],
                           input=_CODE.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
                           timeout=60)
            os.replace(str(temporary), str(library))
        _LIBRARY = ctypes.CDLL(str(library))
        _LIBRARY.arm.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.c_char_p]
        _LIBRARY.arm(out, os.open(os.devnull, os.O_WRONLY), grace, f"{line}\n".encode("utf-8", "replace"))
    except (OSError, subprocess.SubprocessError):
        return False
    return True
