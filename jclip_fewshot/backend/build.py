"""The first build of Jittor, in a child process: as often as Jittor asks for a rerun, with exit status 0."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from jclip_fewshot.backend import headers
from jclip_fewshot.backend.device import Plan, plain_python
from jclip_fewshot.console import progress, tell
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import write_text

_FILES, _SECONDS = 305, 95  # object files of a CPU build of Jittor 1.3.11.0, and how long two cores take: for the bar
_BYTES = 500 << 20  # with the operators of a first run

# Leaves by os._exit: at Python's own exit Jittor would wait for its pool of compilers, after an error forever.
_CODE = """\
import os, sys, traceback
sys.executable = sys.argv[1]
try:
    import jittor as jt
    jt.array([1.0]).sync()
    print('jclip: built', flush=True)
    os._exit(0)
except BaseException as error:
    traceback.print_exc()
    os._exit(bool(error.code) if isinstance(error, SystemExit) else 1)
"""


@contextlib.contextmanager
def jittors_environment(plan: Plan, **more: str) -> Iterator[None]:
    """Lend the environment that Jittor's import reads; under mpirun it would insist on an MPI of its own."""
    packages = [str(plan.package), os.environ.get("PYTHONPATH", "")]
    lent = {"JITTOR_HOME": str(plan.home), "PYTHONPATH": os.pathsep.join(filter(None, packages)), **more}
    before = {name: os.environ.pop(name) for name in list(os.environ)
              if name in lent or name.startswith("OMPI_COMM_WORLD_")}
    os.environ.update(lent)
    try:
        yield
    finally:
        for name in lent:
            os.environ.pop(name, None)
        os.environ.update(before)


def build(plan: Plan) -> None:
    """Import Jittor in child processes until one gets through, then write the stamp. Raise UserError if none does."""
    log = plan.stamp.with_name(f"{plan.stamp.name}.{os.getpid()}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(str(log.parent)).free
    if free < _BYTES:  # the build would not say that it has run into the end of the disk
        raise UserError(f"Jittor's build needs {_BYTES >> 20} MB, and the disk of {log.parent} has {free >> 20}; "
                        "free some, or put JITTOR_HOME on another disk")
    tell(f"Building Jittor for this machine, once: about {_SECONDS} s on 2 cores ({plan.stamp.parent})")
    begun = time.time()
    if plan.header and plan.compiler:
        headers.prepare(plan.header, plan.package / "jittor", plan.compiler)
    with jittors_environment(plan):
        environment = {**os.environ, **plan.environment, "log_silent": "0"}
    for _ in range(4):  # "jit_utils updated, please rerun your command" comes at most twice
        with open(log, "wb") as output:
            child = subprocess.Popen([sys.executable, "-c", _CODE, plain_python()], env=environment, stdout=output,
                                     stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                _watch(child, plan, begun)
            except BaseException:
                log.unlink()
                raise
            finally:
                with contextlib.suppress(ProcessLookupError):  # its pool of compilers; Jittor mends what is half-made
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        text = log.read_text(errors="replace")
        if child.returncode != 0:
            said = text.strip().rpartition("\n")[2][:200] or "it says nothing"
            raise UserError(f"Jittor does not start ({said}); its log: {log}")
        if "jclip: built" in text:
            log.unlink()
            if plan.header:
                headers.drop_core(plan.header)
            write_text(plan.stamp, "")
            tell(f"Jittor is built: {time.time() - begun:.0f} s")
            return
    raise UserError(f"Jittor asks to be started again and again; its log: {log}")


def _watch(child: subprocess.Popen, plan: Plan, begun: float) -> None:
    """Wait for the child; on a terminal, count the object files that it has made."""
    pattern = f"jt1.3.11/*/*/*/*/*/{plan.environment['cache_name']}/**/obj_files/*.o"
    with progress(stage="build", unit="files", total=_FILES) as bar:
        while child.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # g++ takes a file away and makes it again
                made = sum(file.stat().st_mtime >= begun for file in plan.stamp.parent.glob(pattern))
                bar.update(min(made, _FILES) - bar.n)
            time.sleep(0.5)
