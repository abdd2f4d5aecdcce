"""Peak memory of a stretch of code, as Linux counts it."""

from contextlib import suppress
from pathlib import Path


class PeakMemory:
    """The process's peak, lap by lap; Linux alone lets a process reset it, elsewhere every lap is 0."""

    def __init__(self) -> None:
        self._begin()

    def lap(self) -> float:
        """Return the peak since the last lap, in MB above the resident size at its beginning."""
        used = (_status("VmHWM") - self._base) / 1024
        self._begin()
        return max(used, 0.0)

    def _begin(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # 5: forget the peak resident size
        self._base = _status("VmRSS")


def _status(field: str) -> int:
    """A line of /proc/self/status in kB."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0
