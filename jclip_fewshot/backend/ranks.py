"""Several processes (`mpirun -np 4 python test.py`) share the encoding, which is nearly the whole cost of a run.

Rank and size come from the environment that MPI's launcher sets, rows meet in the feature cache (a folder that all
ranks see), and a barrier is a file of each rank there.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jclip_fewshot.console import tell
from jclip_fewshot.errors import UserError

# A process's number, how many there are, its number on its own machine: Open MPI, MPICH and Intel MPI, Slurm's srun.
_LAUNCHERS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
              ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
              ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
_JOB = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "SLURM_JOB_ID")
VARIABLES = tuple(name for launcher in _LAUNCHERS for name in launcher) + _JOB
# The programs that start ranks: one of them is an ancestor of each.
_PROGRAMS = ("mpirun", "mpiexec", "orterun", "orted", "prterun", "prted", "prun", "hydra_", "pmi_proxy", "slurmstepd",
             "srun", "jsrun", "jsm", "aprun", "apinit", "palsd", "flux")
PATIENCE = 24 * 3600.0  # seconds that a rank waits for the others
SAY_AFTER, SAY_AGAIN = 10.0, 300.0  # seconds after which a line says who is waited for


def _numbers() -> tuple[int, int, int]:
    """(rank, size, local rank) by the first launcher that gives rank and size; one that gives half is a left-over."""
    for names in _LAUNCHERS:
        rank, size, local = (os.environ.get(name, "") for name in names)
        if rank.isdigit() and size.isdigit() and int(rank) < int(size):
            return int(rank), int(size), int(local) if local.isdigit() else int(rank)
    return 0, 1, 0


def require_launcher() -> None:
    """Raise UserError if variables left over from another job call this one of several processes: nobody would come."""
    if size() > 1 and not _started_by_launcher():
        found = " and ".join(name for name in VARIABLES if os.environ.get(name))
        raise UserError(f"{found} call this process {rank()} of {size()}, but no mpirun, mpiexec or srun has started "
                        f"it: unset {found}")


def _started_by_launcher() -> bool:
    """False where /proc shows that no mpirun, mpiexec or srun is among this process's ancestors."""
    process = os.getpid()
    try:
        while process > 1:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            if status["Name"].startswith(_PROGRAMS):
                return True
            process = int(status["PPid"])
    except (OSError, ValueError):
        return True  # nothing is to be seen
    return False


def rank() -> int:
    """Return this process's number, 0 without a launcher."""
    return _numbers()[0]


def size() -> int:
    """Return how many processes share the work, 1 without a launcher."""
    return _numbers()[1]


def first() -> bool:
    """Return whether this is the process that fits, prints and writes."""
    return rank() == 0


def use_own_gpu() -> None:
    """Show each rank of a machine one of its GPUs: before CUDA starts, so another process counts them."""
    if size() == 1:
        return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        gpus = [name for name in shown.split(",") if name.strip()]
    else:
        code = "from jclip_fewshot.backend.toolkit import find_gpu; print(find_gpu().devices)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
        counted = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).stdout
        gpus = [str(number) for number in range(int(counted or 0))]  # it fails where there is none
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[_numbers()[2] % len(gpus)]


def require_cache(cache: str) -> None:
    if size() > 1 and not cache:
        raise UserError("several processes gather features through the cache: give --cache a folder that all see")


def wait_for(whom: Callable[[], str]) -> None:
    """Return when `whom()` names nobody; say now and then who is waited for. Raise UserError after PATIENCE seconds."""
    begun, pause, say = time.monotonic(), 0.01, SAY_AFTER
    while name := whom():
        waited = time.monotonic() - begun
        if waited > PATIENCE:
            raise UserError(f"waited {PATIENCE:.0f} s in vain for {name}; what is encoded is kept in the cache: run "
                            "the same command again")
        if waited > say:
            tell(f"waiting for {name} ({waited:.0f} s)")
            say += SAY_AGAIN
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


class Barrier:
    """Waits, in a folder that all ranks see, until each has come to the same point. An earlier job's file of the same
    number lets a rank pass too soon; it then encodes itself what it misses."""

    def __init__(self, folder: str | Path) -> None:
        job = next((os.environ[name] for name in _JOB if os.environ.get(name)), "")
        self._folder = Path(folder) / "ranks" / hashlib.sha256(job.encode()).hexdigest()[:16]
        self._stage = 0

    def wait(self) -> None:
        """Return when all ranks have called it as often as this one; see `wait_for`."""
        if size() == 1:
            return
        self._stage += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._stage}.{rank()}").touch()
        wait_for(self._missing)

    def _missing(self) -> str:
        return next((f"rank {other} of {size()}" for other in range(size())
                     if not (self._folder / f"{self._stage}.{other}").exists()), "")
