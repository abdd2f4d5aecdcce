"""Presses Ctrl-C in a pseudo-terminal, at chosen moments; by hand at many of each command:

    python -m tests.cli.terminal --moments 40 [--folder DIR]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CTRL_C = b"\x03"


class Ended(NamedTuple):
    """How a process ended after the key was pressed (seconds None: it had ended before, or never did)."""

    status: int | None
    seconds: float
    screen: str
    after: str  # what came on the screen after the key
    left: list[int]  # its children and theirs that live on

    def said(self) -> list[str]:
        """The lines after the key, without the terminal's echo, a bar's remains and answers of `predict` (tabs)."""
        after = self.after.replace("^C", "\n").replace("\r\033[K", "\n").replace("\r", "\n")
        return [line for line in after.split("\n") if line.strip() and "%|" not in line and "\t" not in line]


def catches_sigterm(pid: int) -> bool:
    """True once the script's first line has run: Python itself leaves SIGTERM alone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = int(text.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def descendants(pid: int) -> list[int]:
    """Living children, grandchildren, …"""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if fields[0] != "Z" and int(fields[1]) == pid:
            found += [int(folder.name)] + descendants(int(folder.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def press(command: list[str], cwd: Path, after: float = 0.0, words: str = "", key: bytes = CTRL_C, again: float = 0.0,
          send: int = 0, patience: float = 60.0, **environment: str) -> Ended:
    """Runs `command` on a terminal and presses `key` `after` seconds after its first line, or after `words` came.

    again: presses it once more, so many seconds later. send: a signal to the process alone, instead of the key.
    """
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(command, cwd=str(cwd), stdin=side, stdout=side, stderr=side, preexec_fn=own_terminal,
                             env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment})
    os.close(side)
    screen, begun, pressed, family = b"", time.monotonic(), None, []

    def read(seconds: float) -> None:
        nonlocal screen
        if select.select([main], [], [], seconds)[0]:
            try:
                screen += os.read(main, 1 << 16)
            except OSError:  # nobody has it open any more
                time.sleep(seconds)

    try:
        while child.poll() is None and not catches_sigterm(child.pid):
            read(0.002)
        moment = time.monotonic() + after
        while child.poll() is None and (time.monotonic() < moment or not re.search(words.encode(), screen)):
            if words and not re.search(words.encode(), screen):
                moment = time.monotonic() + after
            assert time.monotonic() < begun + 300, f"never said {words!r}: {screen!r}"
            read(0.005)
        family = descendants(child.pid)
        read(0)
        mark = len(screen)
        pressed = time.monotonic()
        if send:
            child.send_signal(send)
        else:
            os.write(main, key)
        while child.poll() is None and time.monotonic() < pressed + patience:
            if again and time.monotonic() > pressed + again:
                os.write(main, key)
                again = 0.0
            read(0.01)
        seconds = time.monotonic() - pressed
        read(0.1)
        end = time.monotonic() + 2
        while any(map(alive, family)) and time.monotonic() < end:
            time.sleep(0.02)
        return Ended(child.poll(), seconds, screen.decode(errors="replace"),
                     screen[mark:].decode(errors="replace"), [pid for pid in family if alive(pid)])
    finally:
        for pid in [child.pid, *family]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        child.wait()
        os.close(main)


def commands(name: str) -> dict:
    """The commands of the demo, each with nothing cached."""
    python = sys.executable
    return {"train": [python, str(ROOT / "train.py"), "--demo", "--name", name, "--cache", f"cache-{name}"],
            "train without cache": [python, str(ROOT / "train.py"), "--demo", "--name", name, "--cache", ""],
            "draw": [python, str(ROOT / "train.py"), "--demo", "--name", name],  # in a folder of its own
            "test": [python, str(ROOT / "test.py"), "--demo", "--cache", f"cache-{name}"],
            "validate": [python, "-m", "jclip_fewshot", "validate", "--demo", "--seeds", "2", "--name", name,
                         "--cache", f"cache-{name}"],
            "report": [python, "-m", "jclip_fewshot", "report", "runs/base", "--out", f"report-{name}"],
            "export": [python, "-m", "jclip_fewshot", "export", "runs/base", f"{name}.npz"],
            "predict": [python, "-m", "jclip_fewshot", "predict", "runs/base", "demo/TestSetA", "--cache", ""]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="moments a command [20]")
    parser.add_argument("--only", default="", help="one of the commands")
    parser.add_argument("--again", type=float, default=0.0, help="a second Ctrl-C so many seconds later")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cwd, environment = Path(folder), {**os.environ, "PYTHONPATH": str(ROOT)}
        for line in (["train.py", "--demo", "--methods", "tip_adapter", "--name", "base", "--quiet"],
                     ["test.py", "--demo", "--quiet"]):
            subprocess.run([sys.executable, str(ROOT / line[0]), *line[1:]], cwd=folder, env=environment, check=True,
                           stdout=subprocess.DEVNULL)
        bad = total = ended = 0
        for which in [given.only] if given.only else commands(""):
            begun = time.monotonic()
            where = Path(tempfile.mkdtemp(dir=folder)) if which == "draw" else cwd
            subprocess.run(commands("whole")[which], cwd=str(where), env=environment, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            length = time.monotonic() - begun
            slowest = 0.0
            for moment in range(given.moments):
                where = Path(tempfile.mkdtemp(dir=folder)) if which == "draw" else cwd
                after = length * moment / given.moments
                done = press(commands(f"{which.replace(' ', '-')}{moment}")[which], where, after, again=given.again)
                total += 1
                if done.status == 0:
                    ended += 1
                    continue
                slowest = max(slowest, done.seconds)
                said = done.said()
                if (done.status != 130 or done.seconds > 2 or "Traceback" in done.screen or done.left
                        or len(said) != 1 or not said[0].startswith("stopped")):
                    bad += 1
                    print(f"{which} after {after:.2f} s: status {done.status}, {done.seconds:.2f} s, left {done.left}, "
                          f"said {said}", flush=True)
            print(f"{which}: {given.moments} moments of {length:.1f} s, the slowest end {slowest:.2f} s", flush=True)
        print(f"{total} times, {ended} had ended before, {bad} wrong")
        sys.exit(bad > 0)


if __name__ == "__main__":
    main()
