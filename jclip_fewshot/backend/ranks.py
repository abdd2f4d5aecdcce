"""Several processes under mpirun share the encoding: each computes a part of the rows, the cache gathers them.

    mpirun -np 4 python test.py

Encoding is all but the whole cost of a run and needs no talk between processes, so nothing of MPI but its
launcher is used: rank and size come from the environment that it sets, rows meet in the feature cache (a folder
that all ranks see), and a barrier is a file a rank in that folder. The launcher stops every rank when one dies.
The shards that it had finished stay in the cache.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

from jclip_fewshot.errors import UserError

# launchers and how they tell a process its number: Open MPI, MPICH and Intel MPI, Slurm's srun
_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
_JOB = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "SLURM_JOB_ID")
PATIENCE = 24 * 3600.0  # seconds that a rank waits for the others


def _number(names: Sequence[str], default: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return default


def rank() -> int:
    """This process's number, 0 without a launcher."""
    return _number(_RANK, 0) if size() > 1 else 0


def size() -> int:
    """How many processes share the work, 1 without a launcher."""
    return max(1, _number(_SIZE, 1))


def local_rank() -> int:
    """This process's number on its own machine: which GPU is its own."""
    return _number(_LOCAL_RANK, rank())


def first() -> bool:
    """True for the process that fits, prints and writes."""
    return rank() == 0


def use_own_gpu() -> None:
    """Shows each rank of a machine one of its GPUs. To be called before CUDA starts."""
    if size() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        from jclip_fewshot.backend.toolkit import find_gpu
        gpu = find_gpu()
        if not isinstance(gpu, str):
            os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank() % gpu.count)


def require_cache(cache: str) -> None:
    """Raises UserError where several ranks have no cache to meet in."""
    if size() > 1 and not cache:
        raise UserError("several processes gather features through the cache: give --cache a folder that all see")


def wait_until(done: Callable[[], bool], whom: Union[str, Callable[[], str]], patience: float = PATIENCE) -> None:
    """Returns when `done()` is true.

    Raises:
        UserError: it is not in `patience` seconds; names whom it waited for.
    """
    begun, pause = time.monotonic(), 0.01
    while not done():
        if time.monotonic() - begun > patience:
            raise UserError(f"waited {patience:.0f} s in vain for {whom if isinstance(whom, str) else whom()}; what is "
                            "encoded is kept in the cache: run the same command again")
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


class Barrier:
    """Waits, in a folder that all ranks see, until each has come to the same point.

    A file left by an earlier job of the same number lets a rank pass too soon; it then encodes what it misses itself.
    """

    def __init__(self, folder: Union[str, Path]) -> None:
        job = next((os.environ[name] for name in _JOB if os.environ.get(name)), "")
        digest = hashlib.sha256(job.encode()).hexdigest()[:16]
        self._folder = Path(folder) / "ranks" / digest
        self._stage = 0

    def wait(self, patience: float = PATIENCE) -> None:
        """Returns when all ranks have called it as often as this one.

        Raises:
            UserError: another rank has not come in `patience` seconds.
        """
        if size() == 1:
            return
        self._stage += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._stage}.{rank()}").touch()
        wait_until(lambda: self._missing() is None, lambda: f"rank {self._missing()} of {size()}", patience)

    def _missing(self) -> Optional[int]:
        for other in range(size()):
            if not (self._folder / f"{self._stage}.{other}").exists():
                return other
        return None
