"""The Jittor that is built and imported: a copy of the installed package in which a few lines are mended.

It lies in JITTOR_HOME, under a digest of what it holds, so that all environments of one Python share one build.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path

from jclip_fewshot.backend.cpp import source
from jclip_fewshot.errors import UserError

PACKAGES = ("jittor", "jittor_utils")
_LEFT_OUT = ("__pycache__", "test", "demo", "notebook")

# (file, what Jittor 1.3.11.0 has, what stands in its place)
_MEND = re.compile(r"^@@ (\S+)\n(.*?)^@@ becomes\n(.*?)^@@ end$", re.MULTILINE | re.DOTALL)
_MENDS = tuple((name, old[:-1], new[:-1]) for name, old, new in _MEND.findall(source(__file__, "mends.txt")))


def mended(home: Path) -> Path:
    """Return the folder of the mended copy, for `sys.path`. Raise UserError without the release that is known here."""
    spec = PathFinder.find_spec("jittor")  # not sys.modules, where the copy may stand already
    if spec is None or not spec.origin:
        raise UserError("Jittor is not installed: python -m pip install --no-deps jittor==1.3.11.0")
    installed = Path(spec.origin).parents[1]
    files = dict(sorted(_files(installed)))
    digest = hashlib.sha256(repr(_MENDS).encode())
    for name, path in files.items():
        digest.update(f"\0{name}\0".encode() + path.read_bytes())
    folder = home / ".cache/jittor/jclip_package" / digest.hexdigest()[:16]
    if not folder.is_dir():
        _copy(files, folder)
    return folder


def _files(installed: Path) -> list[tuple[str, Path]]:
    """(name, path) of what a build and an import of Jittor read."""
    found = []
    for package in PACKAGES:
        for place, folders, names in os.walk(installed / package):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            found += [(str((Path(place) / name).relative_to(installed)), Path(place) / name) for name in names]
    return found


def _copy(files: dict[str, Path], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent, ignore_cleanup_errors=True) as part:
        temporary = Path(part)
        for name, path in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(path.read_bytes())
        for name, old, new in _MENDS:
            text = (temporary / name).read_text(encoding="utf-8") if name in files else ""
            if text.count(old) != 1:
                raise UserError(f"the installed Jittor is not release 1.3.11.0 ({name} differs): "
                                "python -m pip install --no-deps --force-reinstall jittor==1.3.11.0")
            (temporary / name).write_text(text.replace(old, new), encoding="utf-8")
        temporary.chmod(0o755)  # it is private before
        with contextlib.suppress(OSError):  # another process was quicker
            temporary.rename(folder)
