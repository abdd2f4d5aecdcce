"""Files are written whole or not at all: to a temporary neighbour, then renamed."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jclip_fewshot.errors import UserError

DIGEST_BYTES = 16
ABOUT = "about.json"


def content_digest(data: bytes) -> bytes:
    """Return a name of bytes by their content: 128 bits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def fed_with(path: str | Path, digest: Any) -> Any:
    """Return one of hashlib's digests that a large file has gone into (hashlib.file_digest comes with Python 3.11)."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest


def lock(fd: int) -> bool:
    """Take a file's lock if nobody has it; return False also where the file system knows no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextlib.contextmanager
def named(path: str | Path, kind: str = "") -> Iterator[None]:
    """Make one line that names the file of whatever is raised while it is read, as a file of this kind."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise  # the file may be sound
    except Exception as error:  # what struct, zipfile, msgspec, NumPy and unpicklers raise on damaged bytes
        damaged = f": cannot be read as {kind}" if kind else " is damaged or of an unknown format"
        raise UserError(f"{path}{damaged} ({type(error).__name__}: {str(error)[:300]})") from None


def require_writable(path: str | Path, flag: str = "", said: str | Path = "") -> None:
    """Raise UserError, before hours of work, if `atomic_write(path)` could not succeed; leave nothing behind.

    flag: how the user named it (`--result`), for the message. said: what to call it there; the path by default.
    """
    name = f"{flag} {said or path}".strip()
    folder = _target(path, name).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{name}: {folder} is a file, not a folder; give another path")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # the superuser's rights say nothing of a read-only disk
            file.write(bytes(1 << 16))  # nor does an empty file of a full one
    except OSError as error:
        raise UserError(f"{name}: cannot write to {folder} ({error.strerror}); give another path") from None


def require_writable_folder(path: str | Path, flag: str = "") -> None:
    """Raise UserError if files could not lie in the folder `path`, which may not exist yet."""
    require_writable(Path(path) / "record", flag, path)


def _target(path: str | Path, name: str) -> Path:
    """Where a file is written: what a link points at, so that the link stays. Raise UserError if it is no file."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:  # a name too long, a NUL, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name[:200]}: no file can have that name ({reason})") from None
    if stat.S_ISDIR(mode) or not Path(path).name or str(path).endswith(os.sep):
        raise UserError(f"{name}: a folder, not a file's name")
    if not stat.S_ISREG(mode) or os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        raise UserError(f"{name}: a device or pipe, which cannot be written whole or not at all; name a regular file")
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, and rename it to `path` when the block ends well; else `path` stays.

    Raise UserError if `path` is a folder, a device or a pipe; OSError, which names `path`, if it cannot be written.
    """
    target = _target(path, str(path))
    temporary = str(target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def mark_folder(folder: Path, about: str) -> None:
    """Make a folder of the cache; ABOUT in it says what it holds, and that it is the cache's own."""
    folder.mkdir(parents=True, exist_ok=True)
    if about and not (folder / ABOUT).exists():
        write_text(folder / ABOUT, about + "\n")


def shipped_folder(inside: str, beside: str) -> Path:
    """Return a folder that comes with the program: `inside` the package when installed, `beside` it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / inside
    return installed if installed.is_dir() else package.parent / beside
