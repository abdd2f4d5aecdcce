"""What every command does around its work: device, quietness, mistakes said in one line, and a way out."""

import errno
import io
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from jclip_fewshot import console, errors
from jclip_fewshot.backend import device, ranks, runtime, watchdog
from jclip_fewshot.cli import start
from jclip_fewshot.config import DeviceConfig
from jclip_fewshot.errors import UserError, one_line

_cache = ""  # where the features of this command are kept, if they are

# What to do about the errors that a machine's limits raise.
_REMEDIES = {errno.EMFILE: "raise the limit of open files: ulimit -n 1024",
             errno.ENOSPC: "free some space, or choose another folder", errno.EDQUOT: "free some of your quota",
             errno.ENOMEM: "free memory, or raise the limit: ulimit -v unlimited",
             errno.EAGAIN: "raise the limit of processes: ulimit -u",
             errno.EROFS: "choose a folder that can be written", errno.EACCES: "choose a folder that is yours"}
_NO_MEMORY = "out of memory; free some, raise the limit (ulimit -v unlimited), or take fewer --workers"
_SIGNS_OF_IT = ("std::bad_alloc", "Unable to alloc", "out of memory", "Cannot allocate memory",
                "can't start new thread", "Resource temporarily unavailable")  # in what Jittor says


def speak_as(settings: DeviceConfig) -> None:
    """Set how talkative to be. Raise UserError if this process is one of several by left-over variables alone."""
    global _cache
    ranks.require_launcher()
    console.quiet = settings.quiet or not ranks.first()
    _cache = "" if getattr(settings, "features", "") else getattr(settings, "cache", "")
    if settings.verbose:
        os.environ[device.LOG_VARIABLE] = "1"
    warnings.showwarning = lambda message, *_: console.warn(str(message))  # a line, without file and number


def set_up(settings: DeviceConfig) -> runtime.Plan:
    """Do this, and start Jittor as the settings say, with the watchdog of its long calls."""
    speak_as(settings)
    if start.signals_are_ours():
        start.native = watchdog.arm(shutil.which(os.environ.get("cc_path") or "g++"),
                                    device.jittor_home() / ".cache/jittor/jclip_watchdog", start.stderr,
                                    _last_line(""), start.GRACE)
    if settings.device != "cpu":
        ranks.use_own_gpu()
    return runtime.start(settings.device)


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave with its status, or one line and another.

    2: a UserError, or an error of the machine (full disk, no memory). 130, 143: Ctrl-C, SIGTERM. 1: a result could not
    be printed; whatever was to be saved is saved.
    """
    try:
        _run(main)
    except KeyboardInterrupt as stop:  # raised anywhere, within the handling of another error too
        sys.stdout.flush()
        start.leave(_last_line(str(stop)))


def _run(main: Callable[[], int | None]) -> None:
    out = sys.stdout = _Lasting(sys.stdout, 1)
    sys.stderr = _Lasting(sys.stderr, 2)
    status, said = 2, ""
    try:
        errors.flags = start.working = True
        status = main() or 0
    except SystemExit as end:  # argparse: after -h, or after a mistake that it has said
        status = int(end.code or 0)
    except Exception as error:
        if start.heard:  # a compiler that died of the same Ctrl-C
            start.leave(_last_line(""))
        said = one_line(_said(error))
        if not said:
            raise
        if console.verbose:
            traceback.print_exc()
    finally:
        errors.flags = start.working = False
    if said:
        print(f"error: {said}" if ranks.first() else f"rank {ranks.rank()}: {said}", file=sys.stderr)
    sys.stdout.flush()
    if out.lost and status == 0:
        print(f"error: the results could not be printed ({out.lost}); what was to be saved is saved", file=sys.stderr)
        status = 1
    if start.signals_are_ours():
        start.finish(status)
    sys.exit(status)


def _said(error: Exception) -> str:
    """What to say of a mistake, or of a machine that has run out of something; "" of a fault of this program."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
        return f"{what}; {_REMEDIES.get(error.errno or 0, '--verbose shows where')}"
    if isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS_OF_IT):
        return _NO_MEMORY
    return next((f"Jittor: {os.strerror(number)}; {_REMEDIES[number]}" for number in (errno.ENOSPC, errno.EMFILE)
                 if os.strerror(number) in text), "")


def _last_line(what: str) -> str:
    what = what or (f"features that are finished are kept in {_cache}" if _cache else "")
    return f"stopped; {what}" if what else "stopped"


class _Lasting:
    """A stream that outlives its reader: once nothing can be written, what comes is dropped and `lost` says why."""

    def __init__(self, stream: TextIO | None, number: int) -> None:
        self.lost = "" if stream else "closed"
        self._number = number
        self._stream: Any = stream or open(os.devnull, "w")  # noqa: SIM115  as long as the process
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # LANG=C knows no ✓

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., object], *given: str) -> None:
        try:
            act(*given)
        except (OSError, ValueError) as error:
            self.lost = getattr(error, "strerror", None) or str(error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._number)  # what still waits in buffers goes there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
