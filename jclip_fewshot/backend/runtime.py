"""Start Jittor. The only module that imports it: everything else says `from jclip_fewshot.backend import jt`.

device.py decides how it runs, package.py mends its sources, build.py builds them the first time.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jclip_fewshot import console
from jclip_fewshot.backend.build import build, jittors_environment
from jclip_fewshot.backend.device import DEVICE_VARIABLE, Plan, plain_python, plan
from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError

_started: Plan | None = None
_jittor: Any = None
_lock = threading.RLock()
_process = 0  # where it was started


def cores() -> int:
    """Return how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_fork() -> None:
    if _process not in (0, os.getpid()):
        raise UserError("this process was forked after Jittor had started, and Jittor's threads do not survive that: "
                        "fork before anything is computed, or take a new process (multiprocessing's spawn)")


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """For what several threads may call, also as a decorator. Raise UserError in a process forked after the start."""
    _refuse_fork()
    with _lock:
        yield


@exclusive()
def start(device: str | None = None) -> Plan:
    """Start Jittor, once per process; later calls must ask for the same device.

    device: "cpu" or "cuda"; "auto" and None leave it to JCLIP_DEVICE, then to what works here.
    Raise UserError, which says what is missing, if it cannot be started so.
    """
    global _started, _jittor, _process
    asked = device if device not in (None, "auto") else os.environ.get(DEVICE_VARIABLE) or "auto"
    if _started is not None:
        if asked not in ("auto", _started.device):
            raise UserError(f"Jittor already runs on {_started.device} in this process; {asked} needs a new one")
        return _started
    started = plan(asked)
    if not started.built:
        build(started)
    os.environ.update(started.environment)
    os.environ[DEVICE_VARIABLE] = started.device  # child processes follow
    os.environ["JCLIP_PROGRESS"] = "1" if os.isatty(2) and not console.quiet else "0"  # package.py
    tell(str(started))
    try:
        _jittor = _import(started)
    except SystemExit:  # the stamp was older than the build: Jittor has rebuilt a part of itself
        started.stamp.unlink()
        raise UserError("Jittor has rebuilt a part of itself and wants a new process: run the same command again"
                        ) from None
    # Jittor's kernels are built with -Ofast, which flushes subnormal numbers to zero; numpy remarks on it.
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")
    _require_exact_arrays(_jittor)
    _jittor.flags.use_cuda = 1 if started.device == "cuda" else 0
    _started, _process = started, os.getpid()
    return started


def _import(started: Plan) -> Any:
    """Import Jittor without its traces: a pool of processes, an environment that sticks."""
    imported_before_us = "jittor" in sys.modules
    executable = sys.executable
    with jittors_environment(started, DISABLE_MULTIPROCESSING="1"):  # what there is to compile at import is compiled
        sys.executable = plain_python()  # Jittor keeps it, for its operators' command lines
        sys.path.insert(0, str(started.package))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Jittor's docstrings have backslashes that Python 3.12 warns of
                module = importlib.import_module("jittor")
        finally:
            sys.path.remove(str(started.package))
            sys.executable = executable
    if imported_before_us and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGCHLD):  # to Python, which takes its own for still in place
            signal.signal(number, signal.getsignal(number))
    return module


def _require_exact_arrays(module: Any) -> None:
    """Raise UserError if an array comes back as another one, as with a NumPy whose arrays Jittor misreads."""
    import numpy as np
    for kind in ("float32", "float64", "float16", "int32", "int64", "uint8", "bool"):
        array = np.arange(12).reshape(3, 4).astype(kind)
        for sent in (array, array.T, array[0, :1]):
            came = module.array(sent).numpy()
            if came.shape != sent.shape or not np.array_equal(came, sent):
                raise UserError(f"Jittor misreads the arrays of NumPy {np.__version__} ({kind}): install another "
                                "NumPy (python -m pip install 'numpy<2'), and import jclip_fewshot before jittor")


class _Jittor:
    """Stands for the module: starts Jittor when an attribute is first asked for."""

    def __getattr__(self, name: str) -> Any:
        _refuse_fork()
        if _jittor is None:
            if name.startswith("__"):  # inspection (doctest, pickle, hasattr) must not start a build
                raise AttributeError(name)
            start()
        return getattr(_jittor, name)


if TYPE_CHECKING:
    import jittor as jt  # of no type (pyproject.toml), so that jt.Var may stand in annotations
else:
    jt = _Jittor()


def on_cuda() -> bool:
    return start().device == "cuda"
