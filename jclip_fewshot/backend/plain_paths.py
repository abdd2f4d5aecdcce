"""Paths that Jittor can build in: its command lines break at spaces and at some other letters.

It is given a link to such a path, whose name is a digest of the path, so that the next run finds the same build.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from jclip_fewshot.errors import UserError

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]*")


def plain(path: Path) -> Path:
    """Return `path`, or a link to it. Raise UserError if there is no place for such a link."""
    path = Path(os.path.abspath(str(path)))
    if _PLAIN.fullmatch(str(path)):
        return path
    places = [Path(tempfile.gettempdir(), f"jclip-links-{os.getuid()}")]
    with contextlib.suppress(RuntimeError):  # a user without a home
        places.insert(0, Path.home() / ".cache/jittor/jclip_links")
    for place in filter(lambda place: _PLAIN.fullmatch(str(place)), places):
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if place.stat().st_uid == os.getuid():  # no other user's folder of that name in /tmp
                path.mkdir(parents=True, exist_ok=True)
                link = place / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
                link_to(link, path)
                return link
    raise UserError(f"Jittor cannot build in {path}: letters other than A to z, 0 to 9 and _ . + - are in its name; "
                    "move it, or set TMPDIR to a folder of your own without them")


def link_to(link: Path, target: Path) -> None:
    """Point `link` at `target`, replacing an older or dangling link in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    os.replace(temporary, link)
