"""The C++ files of the operators that are not Jittor's own."""

from functools import cache
from pathlib import Path


@cache
def source(module: str, *names: str) -> str:
    """Return the text of C++ files beside a module (its `__file__`)."""
    return "".join(Path(module).with_name(name).read_text(encoding="utf-8") for name in names)
