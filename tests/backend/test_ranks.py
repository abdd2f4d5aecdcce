"""Several processes: numbers from the launcher, a barrier of files, the same result.txt for any count."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from jclip_fewshot.backend import ranks
from jclip_fewshot.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def launched(monkeypatch):
    """Pretends to be rank `number` of `count`."""
    for name in ranks._RANK + ranks._SIZE + ranks._LOCAL_RANK + ranks._JOB:
        monkeypatch.delenv(name, raising=False)

    def launch(number, count, rank="OMPI_COMM_WORLD_RANK", size="OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(rank, str(number))
        monkeypatch.setenv(size, str(count))
    return launch


def test_numbers_come_from_the_launcher(launched):
    assert (ranks.rank(), ranks.size(), ranks.first()) == (0, 1, True)
    launched(2, 4)
    assert (ranks.rank(), ranks.size(), ranks.local_rank(), ranks.first()) == (2, 4, 2, False)
    launched(1, 3, "PMI_RANK", "PMI_SIZE")
    assert ranks.size() == 4  # Open MPI's numbers come first


def test_a_slurm_job_of_one_task_is_one_process(launched):
    launched(0, 1, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    assert ranks.size() == 1 and ranks.first()


def test_a_barrier_waits_for_all(launched, tmp_path, monkeypatch):
    launched(0, 2)
    mine = ranks.Barrier(tmp_path)
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: (mine.wait(20), passed.set()))
    waiting.start()
    assert not passed.wait(0.3)
    (mine._folder / "1.1").touch()  # the other comes
    waiting.join(5)
    assert passed.is_set()
    with pytest.raises(UserError, match="in vain for rank 1 of 2"):
        mine.wait(0.2)


def test_one_process_never_waits(launched, tmp_path):
    ranks.Barrier(tmp_path).wait(0)
    assert not any(tmp_path.iterdir())


def test_ranks_need_a_cache(launched):
    ranks.require_cache("")
    launched(0, 2)
    with pytest.raises(UserError, match="--cache"):
        ranks.require_cache("")


def mpirun(count, *command, cwd, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    line = ["mpirun", "-np", str(count), "--oversubscribe"] if count > 1 else []
    return subprocess.Popen(line + [sys.executable] + [str(part) for part in command], cwd=cwd, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, **options)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here (Debian: apt-get install openmpi-bin)")
def test_mpirun_writes_the_same_bytes(tmp_path):
    results = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        for script in ("train.py", "test.py"):
            flags = ["--heads", "tip_adapter", "--augment", "2"] if script == "train.py" else []
            done = mpirun(count, ROOT / script, "--demo", *flags, "--quiet", cwd=folder)
            out, err = done.communicate(timeout=600)
            assert done.returncode == 0, err
        results.append((folder / "result.txt").read_bytes())
    assert results[0] == results[1] == results[2]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here (Debian: apt-get install openmpi-bin)")
def test_a_dead_rank_stops_the_others(tmp_path):
    code = ("import os, signal, sys, time; from jclip_fewshot import ranks; barrier = ranks.Barrier('.')\n"
            "if ranks.rank() == 1: time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
            "barrier.wait()")
    begun = time.time()
    done = mpirun(2, "-c", code, cwd=tmp_path)
    _, err = done.communicate(timeout=120)
    assert done.returncode != 0 and time.time() - begun < 60
    assert str(int(signal.SIGKILL)) in err or "Killed" in err  # mpirun names the rank and the signal
