"""Imported first by the scripts, before anything heavy: Ctrl-C, a missing .venv and closed streams meet no traceback.

From here on SIGINT and SIGTERM end a script within two seconds with status 130 or 143 and one line: during imports on
the spot; inside `command.run` the first one raises KeyboardInterrupt, so that finished rows are written, and a second
one, or `GRACE` seconds, ends it all the same.
"""

import atexit
import contextlib
import faulthandler
import importlib.util
import os
import signal
import sys

GRACE = 1.5  # seconds for the orderly way out
SCRIPTS = ("train.py", "test.py", "__main__.py", "jclip-fewshot")
NEEDED = ("numpy", "PIL", "tqdm", "msgspec", "jittor")
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

heard = 0  # the signal that ends this process, once there was one
native = False  # backend/watchdog.py times the way out
working = False  # inside command.run, where the first signal raises KeyboardInterrupt
stderr = 2  # where the last line goes; file descriptor 2 itself is silenced when a signal is heard


def begin() -> None:
    """Take the signals and open closed streams; for a script's first line."""
    global stderr
    for number in range(3):  # a closed one would be given to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    stderr = os.dup(2)
    faulthandler.enable(2, all_threads=False)  # a crash in a library says where, instead of nothing
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a background job
            signal.signal(number, _hear)


def signals_are_ours() -> bool:
    """Return whether this is a script, not a program or notebook that uses the package."""
    return _hear in (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def _hear(number: int, _: object) -> None:
    global heard
    if heard or not working:
        heard = heard or number
        leave("stopped")
    heard = number
    if not native:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # compilers and Jittor complain of the same signal
        signal.signal(signal.SIGALRM, lambda *_: leave("stopped"))
        signal.setitimer(signal.ITIMER_REAL, GRACE)
    raise KeyboardInterrupt


def leave(line: str) -> None:
    """End the process at once with the status of the signal that was heard; no exit handler may wait for a child."""
    with contextlib.suppress(OSError):
        clear = "\r\033[K" if os.isatty(stderr) else ""
        os.write(stderr, f"{clear}{line}\n".encode("utf-8", "replace"))
    os._exit(128 + (heard or signal.SIGINT))


def finish(status: int) -> None:
    """End the process as sys.exit does but for the interpreter's own end, a second in which nobody hears Ctrl-C."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def find_packages() -> None:
    """Go on in the checkout's .venv where this Python lacks the packages; else say what to type."""
    missing = next((name for name in NEEDED if importlib.util.find_spec(name) is None), None)
    if missing is None:
        return
    python = os.path.join(_ROOT, ".venv", "bin", "python")
    ready = os.path.exists(os.path.join(_ROOT, ".venv", "ready"))  # make writes it when everything is installed
    if ready and os.access(python, os.X_OK) and os.environ.get("JCLIP_VENV") != python:
        os.environ["JCLIP_VENV"] = python  # once, should something be missing there too
        os.execv(python, [python, *sys.orig_argv[1:]])
    os.write(stderr, f"error: {sys.executable} has no package {missing}; in {_ROOT} type make demo, which sets up "
                     ".venv, or install by yourself: pip install -e .\n".encode())
    os._exit(2)


def read_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: names and lists are UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and not os.environ.get("PYTHONUTF8"):
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")  # the terminal's stays
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if os.path.basename(getattr(sys.modules.get("__main__"), "__file__", None) or "") in SCRIPTS:
    begin()
    find_packages()
    read_utf8()
