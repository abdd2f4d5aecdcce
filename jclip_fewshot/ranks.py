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
import shutil
import time
from pathlib import Path
from typing import Optional, Sequence, Union

from .errors import UserError

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
        from .toolkit import find_gpu
        gpu = find_gpu()
        if not isinstance(gpu, str):
            os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank() % gpu.count)


def require_cache(cache: str) -> None:
    """Raises UserError where several ranks have no cache to meet in."""
    if size() > 1 and not cache:
        raise UserError("several processes gather features through the cache: give --cache a folder that all see")


class Barrier:
    """Waits, in a folder that all ranks see, until each has come to the same point."""

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
        begun, pause = time.monotonic(), 0.01
        while True:
            missing = self._missing()
            if missing is None:
                return
            if time.monotonic() - begun > patience:
                raise UserError(f"rank {missing} of {size()} did not come in {patience:.0f} s; what is encoded is "
                                f"kept in the cache: run the same command again")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def close(self) -> None:
        """The first rank takes the barrier's files away, when all have passed the last one."""
        if size() > 1 and first():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _missing(self) -> Optional[int]:
        for other in range(size()):
            if not (self._folder / f"{self._stage}.{other}").exists():
                return other
        return None
