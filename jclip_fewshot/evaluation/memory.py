"""Peak memory of a stretch of code, as Linux counts it."""

from contextlib import suppress
from pathlib import Path


class PeakMemory:
    """The process's peak, lap by lap; Linux alone lets a process reset it, elsewhere every lap is 0."""

    highest = 0.0  # of all laps of the process so far, in MB, which Linux forgets with each reset

    def __init__(self) -> None:
        self._base = 0.0
        self.lap()

    def lap(self) -> float:
        """Return the peak since the last lap, in MB above the resident size at its beginning."""
        used = _peak() - self._base
        PeakMemory.highest = max(PeakMemory.highest, _peak())
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # 5: forget the peak resident size
        self._base = _peak()
        return max(used, 0.0)


def _peak() -> float:
    """VmHWM of /proc/self/status, in MB."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return 0.0
