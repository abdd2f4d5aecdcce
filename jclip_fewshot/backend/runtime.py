"""Starts Jittor. The only module that imports it: everything else says

    from jclip_fewshot.backend import jt

`jt` is Jittor, started when it is first used, so that asking for help or reading a class list does
not wait for it. `start(device)` starts it on a chosen device; the environment variable JCLIP_DEVICE
(cpu, cuda or auto) chooses where nobody calls it. Before the import this module

- takes CUDA only where driver, device and toolkit all work (an nvcc on the PATH alone makes Jittor
  build for CUDA and die without a driver);
- gives Jittor oneDNN from the PyPI wheels, which it would otherwise download, and leaves out the
  CUDA extras that it would download;
- keeps CPU and CUDA builds in separate kernel caches, which Jittor mixes up;
- runs the first build (a minute and a half) in a child process, with progress, as often as Jittor
  asks for a rerun: it does so with exit status 0, which a caller takes for success.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclip_fewshot.backend import headers, toolkit
from jclip_fewshot.backend.plain_paths import importing_from, plain
from jclip_fewshot.console import progress, tell, warn
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import require_writable_folder, write_text

DEVICES = ("auto", "cpu", "cuda")
DEVICE_VARIABLE = "JCLIP_DEVICE"
LEAST_FILES = 32  # open at once
LOG_VARIABLE = "JCLIP_JITTOR_LOG"  # 1 shows Jittor's own log
# Object files in a finished CPU build of Jittor 1.3.11.0, and how long two cores take: for the bar alone.
_BUILD_FILES, _BUILD_SECONDS = 314, 95
_BUILD_BYTES, _FILE_BYTES = 500 << 20, 100 << 20  # with the operators of a first run; the precompiled headers
# CUDA 13 removed two fields that Jittor's helper_cuda.h reads and merely prints or compares.
_CUDA13_FLAGS = "-DclockRate=warpSize -DcomputeMode=integrated"
# CUDA 13's CUB, in Jittor's softmax, wants C++17; Jittor asks for C++14 and turns a 17 in cc_flags into it.
_CUDA13_STANDARD = "-std=c++17"

_LAUNCHER = "OMPI_COMM_WORLD_"  # what mpirun tells each process; ranks.py reads it, Jittor must not


@dataclass(frozen=True)
class Plan:
    """How Jittor will be started, and why."""

    device: str  # "cpu" or "cuda"
    reason: str
    onednn: str  # "PyPI wheels", "Jittor's download" or "none"
    environment: dict[str, str]
    compiler: str | None = None
    header: Path | None = None  # Jittor's headers, precompiled (headers.py)

    def __str__(self) -> str:
        where = "the CPU" if self.device == "cpu" else "CUDA"
        library = f", oneDNN: {self.onednn}" if self.device == "cpu" else ""
        return f"Jittor on {where}: {self.reason}{library}"


def jittor_home() -> Path:
    """The folder whose .cache/jittor holds Jittor's builds, by Jittor's own rule."""
    home = os.environ.get("JITTOR_HOME")
    if not home:
        config = Path.home() / ".cache/jittor/config.json"
        try:
            home = json.loads(config.read_text()).get("JITTOR_HOME")
        except (OSError, ValueError):
            home = None
    return plain(Path(home or Path.home()))


def cores() -> int:
    """Of this machine, as many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(device: str = "auto") -> Plan:
    """Decides device and libraries without importing Jittor.

    Raises:
        UserError: an unknown device; no compiler; CUDA asked for where it cannot work.
    """
    if device not in DEVICES:
        raise UserError(f"device {device!r} is none of {', '.join(DEVICES)} (--device or {DEVICE_VARIABLE})")
    compiler = shutil.which(os.environ.get("cc_path") or "g++")
    if not compiler and sys.platform == "linux":
        if os.environ.get("cc_path"):
            raise UserError(f"cc_path names no compiler: {os.environ['cc_path']}; unset it, or correct it")
        raise UserError("no C++ compiler: Jittor needs g++ (Debian, Ubuntu: apt-get install g++)")
    _require_open_files()
    home = jittor_home()
    try:
        require_writable_folder(home / ".cache/jittor", "Jittor builds in")
    except UserError as error:
        raise UserError(f"{error} by setting JITTOR_HOME")
    # OpenMP's idle threads spin for milliseconds by default and take the cores from decoding workers and from
    # whatever else runs: on a busy machine a batch of one went 3 to 10 times slower.
    environment = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}
    # gdb is looked for at every import, only to print a stack after a crash; ranks.py needs no MPI in Jittor.
    environment.update(log_silent="0" if os.environ.get(LOG_VARIABLE) == "1" else "1", use_mpi="0", gdb_path="")
    config = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}-config")
    if config.is_file():
        # In a virtual environment Jittor would take the headers of another Python, if it finds any.
        environment["python_config_path"] = os.environ.get("python_config_path", str(config))

    header = None
    chosen, reason, tools = _choose_device(device, home)
    if chosen == "cuda":
        environment.update(nvcc_path=str(tools.nvcc), cache_name=f"jclip_cuda{tools.version[0]}.{tools.version[1]}",
                           conv_opt="1", use_cutt="0", use_cutlass="0", use_nccl="0")
        if tools.version >= (13, 0):
            environment["cc_flags"] = _CUDA13_FLAGS
            own = os.environ.get("NVCC_APPEND_FLAGS", "")
            environment["NVCC_APPEND_FLAGS"] = own if "-std=" in own else f"{own} {_CUDA13_STANDARD}".strip()
    else:
        environment.update(nvcc_path="", cache_name="jclip_cpu")
        header = _choose_header(home, compiler)
        if header:
            environment.update(headers.flags(header))
    onednn = _choose_onednn(home)
    if onednn == "none":
        environment["use_mkl"] = "0"
    return Plan(chosen, reason, onednn, environment, compiler, header)


def _require_open_files() -> None:
    """Raises the limit of open files where it is low and may be raised; Jittor's compiler waits forever without."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        wanted = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
        if wanted < LEAST_FILES:
            raise UserError(f"only {hard} open files are allowed, Jittor needs {LEAST_FILES}: ulimit -n 1024")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _choose_device(device: str, home: Path) -> tuple:
    """(cpu or cuda, why, toolkit or None)."""
    if device == "cpu":
        return "cpu", "asked for", None
    gpu = toolkit.find_gpu()
    if isinstance(gpu, str):
        problem, tools = gpu, None
    else:
        tools = toolkit.find_toolkit(home)
        problem = tools if isinstance(tools, str) else None
        if problem is None and tools.version[0] > gpu.driver_cuda[0]:
            problem = f"the driver runs CUDA {gpu.driver_cuda[0]}, nvcc is CUDA {tools.version[0]}: update the driver"
    if problem is None:
        return "cuda", f"{gpu}, nvcc {tools.version[0]}.{tools.version[1]}", tools
    if device == "cuda":
        raise UserError(f"--device cuda: {problem}; --device cpu runs without")
    return "cpu", problem, None


def _choose_header(home: Path, compiler: str | None) -> Path | None:
    """The precompiled header for a CPU build; None where g++ is not the compiler or somebody chose other flags."""
    if not re.match(r"(.*-)?g\+\+", os.path.basename(compiler or "")) or os.environ.get("debug", "0") != "0":
        return None
    header = headers.path(home, _jittor_folder(), compiler)
    # a child process finds its parent's flags, which are ours
    chosen = {name: os.environ.get(name, "").strip() for name in headers.flags(header)}
    ours = all(chosen[name] in ("", value) for name, value in headers.flags(header).items())
    return header if ours else None


def _jittor_folder() -> Path:
    package = importlib.util.find_spec("jittor")
    if package is None:
        raise UserError("Jittor is not installed: pip install jittor==1.3.11.0")
    return plain(Path(package.origin).parents[1]) / "jittor"


def _choose_onednn(home: Path) -> str:
    if os.environ.get("use_mkl") == "0":
        return "none"
    if toolkit.link_onednn(home):
        return "PyPI wheels" if toolkit.onednn_is_linked(home) else "Jittor's download"
    try:  # Jittor can fetch it where its server is in reach
        socket.create_connection(("cg.cs.tsinghua.edu.cn", 443), timeout=5).close()
        return "Jittor's download"
    except OSError:
        warn("oneDNN is missing, matrix products run about five times slower; "
             f"pip install {' '.join(name + '==2021.2.0' for name in toolkit.ONEDNN_WHEELS)}")
        return "none"


def build_stamp(started: Plan) -> Path:
    """The file that says that Jittor is built for this plan, this Python and this Jittor."""
    from importlib import metadata
    quiet_ones = ("log_silent", "gdb_path", "GOMP_SPINCOUNT")  # without effect on the compiler
    flags = {name: value for name, value in started.environment.items() if name not in quiet_ones}
    others = {name: os.environ.get(name, "") for name in ("cc_flags", "kernel_flags", "debug")}
    facts = [metadata.version("jittor"), _jittor_folder(), sys.version, started.compiler, os.uname(),
             {**others, **flags}]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return jittor_home() / ".cache/jittor" / f"jclip_built_{digest}"


# Leaves by os._exit: at Python's own exit Jittor would wait for its pool of compilers, after an error forever.
_BUILD_CODE = """\
import os, sys, traceback
status = 1
try:
    import jittor as jt
    jt.array([1.0]).sync()
    print('jclip: built')
    status = 0
except SystemExit as stop:
    status = stop.code or 0
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
os._exit(status)
"""


def _plain_python() -> str:
    """This Python, by a path that Jittor's unquoted command lines can take."""
    executable = Path(sys.executable)
    return str(plain(executable.parents[1]) / "bin" / executable.name)


def _build(started: Plan, stamp: Path) -> None:
    """Imports Jittor in child processes until one gets through; shows how far it is."""
    environment = {**os.environ, **started.environment, "log_silent": "0", **_home_variables(jittor_home())}
    environment = {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER)}
    own = Path(importlib.util.find_spec("jittor").origin).parents[1]
    packages = [path for path in (str(_jittor_folder().parent), os.environ.get("PYTHONPATH", "")) if path]
    if Path(packages[0]) != own:  # a link to it
        environment["PYTHONPATH"] = os.pathsep.join(packages)
    log = stamp.with_name(f"{stamp.name}.{os.getpid()}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    _require_room(log.parent)
    tell(f"Building Jittor for this machine, once: about {_BUILD_SECONDS} s on 2 cores ({stamp.parent})")
    begun = time.time()
    if started.header:
        headers.prepare(started.header, _jittor_folder(), started.compiler)
    for _ in range(4):  # "jit_utils updated, please rerun your command" comes at most twice
        with open(log, "wb") as output:
            child = subprocess.Popen([_plain_python(), "-c", _BUILD_CODE], env=environment, stdin=subprocess.DEVNULL,
                                     stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                _watch(child, started, begun)
            except BaseException:
                _end_group(child)
                log.unlink()
                raise
            _end_group(child)
        text = log.read_text(errors="replace")
        if child.returncode != 0:
            raise UserError(f"Jittor does not start ({_last_words(text)}); its log: {log}")
        if "jclip: built" in text:
            log.unlink()
            if started.header:
                headers.drop_core(started.header)
            write_text(stamp, "")
            tell(f"Jittor is built: {time.time() - begun:.0f} s")
            return
    raise UserError(f"Jittor asks to be started again and again; its log: {log}")


def _require_room(folder: Path) -> None:
    """Raises UserError where the build would run into the end of a disk or of a file, and not say so."""
    free = shutil.disk_usage(str(folder)).free
    if free < _BUILD_BYTES:
        raise UserError(f"Jittor's build needs {_BUILD_BYTES >> 20} MB, and the disk of {folder} has {free >> 20}; "
                        "free some, or put JITTOR_HOME on another disk")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < _FILE_BYTES:
        raise UserError(f"Jittor's build makes files of {_FILE_BYTES >> 20} MB, here limited to {limit >> 20} MB: "
                        "ulimit -f unlimited")


def _end_group(child: subprocess.Popen) -> None:
    """Ends a child and its pool of compilers; what they leave half-written, Jittor makes again."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _watch(child: subprocess.Popen, started: Plan, begun: float) -> None:
    """Waits for the child; on a terminal, counts the object files that it has made."""
    folders = jittor_home() / ".cache/jittor/jt1.3.11"
    pattern = f"*/*/*/*/*/{started.environment['cache_name']}/**/obj_files/*.o"
    with progress(stage="build", unit="files", total=_BUILD_FILES) as bar:
        while child.poll() is None:
            # only this build's objects: the folder may hold another Python's
            with contextlib.suppress(FileNotFoundError):  # g++ takes a file away and makes it again
                made = sum(file.stat().st_mtime >= begun for file in folders.glob(pattern))
                bar.update(min(made, _BUILD_FILES) - bar.n)
            time.sleep(0.5)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"


_started: Plan | None = None
_jittor = None
_lock = threading.RLock()
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = _started is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _refuse_fork() -> None:
    if _forked:
        raise UserError("this process was forked after Jittor had started, and Jittor's threads do not survive that: "
                        "fork before anything is computed, or take a new process (multiprocessing's spawn)")


@contextlib.contextmanager
def exclusive():
    """For what may be called from several threads: Jittor works in any of them, but in one at a time.

    Also a decorator. Raises UserError in a process that was forked after Jittor had started.
    """
    _refuse_fork()
    with _lock:
        yield


@exclusive()
def start(device: str | None = None) -> Plan:
    """Starts Jittor, once per process; later calls must ask for the same device.

    device: "cpu" or "cuda"; "auto" and None leave it to JCLIP_DEVICE, then to what works here.
    Raises:
        UserError: Jittor cannot be started so; the message says what is missing. Or see `exclusive`.
    """
    global _started, _jittor
    asked = device if device not in (None, "auto") else os.environ.get(DEVICE_VARIABLE) or "auto"
    if _started is not None:
        if asked not in ("auto", _started.device):
            raise UserError(f"Jittor already runs on {_started.device} in this process; {asked} needs a new one")
        return _started
    started = plan(asked)
    stamp = build_stamp(started)
    if not stamp.exists() or started.header and not started.header.exists():
        _build(started, stamp)
    os.environ.update(started.environment)
    os.environ[DEVICE_VARIABLE] = started.device  # child processes follow
    tell(str(started))
    try:
        _jittor = _import(jittor_home())
    except SystemExit:
        # The stamp was older than the build: Jittor rebuilt a part and wants a new process.
        stamp.unlink()
        _build(started, stamp)
        if os.environ.get("JCLIP_RESTARTED") == "1":
            raise UserError("Jittor asks to be started again and again; delete "
                            f"{jittor_home() / '.cache/jittor'} and try again")
        os.environ["JCLIP_RESTARTED"] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable] + _own_arguments())
    # Jittor's kernels are built with -Ofast, which flushes subnormal numbers to zero; numpy remarks on it.
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")
    _jittor.flags.use_cuda = 1 if started.device == "cuda" else 0
    _compile_by_one_thread_when_warm(stamp)
    _started = started
    return started


def _compile_by_one_thread_when_warm(stamp: Path) -> None:
    """Switches Jittor's compile threads off for a command that compiled nothing new when it last ran.

    Of its threads one may read a variable of a function that has ended, once in some ten thousand runs, and crash.
    With every operator compiled they gain nothing either: without them a warm run is a tenth faster.
    """
    operators = Path(_jittor.flags.cache_path, "jit")
    script, command = (sys.argv + ["", ""])[:2]
    said = os.path.basename(script) + ("" if command[:1] in ("", "-") else f" {command}")  # __main__.py evaluate
    warm = stamp.with_name(f"{stamp.name}.warm.{re.sub(r'[^A-Za-z0-9]+', '_', said)[:60]}")

    def compiled() -> int:
        with contextlib.suppress(OSError):
            return sum(entry.name.endswith(".so") for entry in os.scandir(operators))
        return 0

    def remember() -> None:
        with contextlib.suppress(OSError):
            if compiled() > before:
                warm.unlink()
            else:
                warm.touch()
    before = compiled()
    if before and warm.exists():
        _jittor.flags.use_parallel_op_compiler = 0
    atexit.register(remember)


def _python_for_operators(home: Path) -> str:
    """The Python by which Jittor runs its assembler for each new operator: in an environment that writes no config."""
    python = _plain_python()
    if str(home) == os.environ.get("HOME"):
        return python
    lent = " ".join(f"{name}={shlex.quote(value)}" for name, value in _home_variables(home).items())
    text = f'#!/bin/sh\n{lent} exec {shlex.quote(python)} "$@"\n'
    script = home / ".cache/jittor/jclip_python" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not script.exists():
        write_text(script, text)
    script.chmod(0o755)
    return str(script)


# What Jittor and its compile pool would otherwise do at the import, each undone afterwards.
_DURING_IMPORT = {
    "DISABLE_MULTIPROCESSING": "1",  # no pool of compilers outlives the import: what there is to compile is compiled
    "JPY_PARENT_PID": "1",  # Jittor leaves SIGINT alone
}


def _import(home: Path):
    """Imports Jittor without its traces: signal handlers, a pool of processes, a HOME that sticks.

    Under mpirun without the sign by which it would insist on an MPI of its own.
    """
    folder, python = _jittor_folder().parent, _python_for_operators(home)  # while HOME is the user's: links lie there
    changed = {**_DURING_IMPORT, **_home_variables(home)}
    hidden = [name for name in os.environ if name.startswith(_LAUNCHER)]
    before = {name: os.environ.get(name) for name in [*changed, *hidden, "use_parallel_op_compiler"]}
    for name in hidden:
        del os.environ[name]
    os.environ.update(changed)
    imported_before_us = "jittor" in sys.modules
    executable, sys.executable = sys.executable, python  # Jittor keeps it, for its operators' command lines
    try:
        with importing_from(folder):
            with _signals_kept():
                _import_core(importlib.import_module("jittor_utils"))  # sets the handlers
            _restore("use_parallel_op_compiler", before)  # switched off with the pool: its threads are harmless
            with _signals_kept():
                module = importlib.import_module("jittor")
        if imported_before_us and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGCHLD):  # to Python, which takes its own for still in place
                signal.signal(number, signal.getsignal(number))
        return module
    finally:
        sys.executable = executable
        for name in before:
            _restore(name, before)


def _import_core(utils: Any) -> None:
    """Jittor's part in C++. In a notebook it sets a variable to what is its default and logs that: it is not asked to.

    What a notebook does want, C++'s output in the cell, is switched on as Jittor does.
    """
    in_notebook, utils.is_in_ipynb = getattr(utils, "is_in_ipynb", False), False
    getattr(utils, "try_import_jit_utils_core", bool)()
    utils.is_in_ipynb = in_notebook
    if in_notebook and utils.cc is not None:
        utils.cc.ostream_redirect(True, True)


def _restore(name: str, before: dict[str, str | None]) -> None:
    if before[name] is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before[name]


def _home_variables(home: Path) -> dict[str, str]:
    """Jittor writes a JITTOR_HOME other than HOME into HOME's config.json and goes by it ever after."""
    return {"JITTOR_HOME": str(home), "HOME": str(home)}


@contextlib.contextmanager
def _signals_kept():
    """Jittor's handlers, set behind Python's back, end the process on the spot without a word of Python's: at Ctrl-C
    always, and where a child (a decode worker, a compiler) was killed. From C, since Python's own way works in the
    main thread alone."""
    process = ctypes.CDLL(None)
    kept = {}
    for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGQUIT, signal.SIGILL, signal.SIGBUS, signal.SIGFPE,
                   signal.SIGSEGV):
        kept[number] = ctypes.create_string_buffer(512)  # a struct sigaction, and room
        process.sigaction(int(number), None, kept[number])
    try:
        yield
    finally:
        for number, action in kept.items():
            process.sigaction(int(number), action, None)


def _own_arguments() -> list:
    """This process's command line after the interpreter, `-m package` included."""
    return getattr(sys, "orig_argv", [None] + sys.argv)[1:]


class _Jittor:
    """Stands for the module: starts Jittor when an attribute is first asked for."""

    def __getattr__(self, name: str):
        _refuse_fork()
        if _jittor is None:
            if name.startswith("__"):  # inspection (doctest, pickle, hasattr) must not start a build
                raise AttributeError(name)
            start()
        value = getattr(_jittor, name)
        return value


jt = _Jittor()


def on_cuda() -> bool:
    """True where Jittor runs on a GPU."""
    return start().device == "cuda"
