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
from jclip_fewshot.data import demo
from jclip_fewshot.errors import UserError
from tests.conftest import ROOT
from tests.small_contest import TESTS, small_contest


@pytest.fixture
def launched(monkeypatch):
    """Pretends to be rank `number` of `count`."""
    for name in ranks.VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def launch(number, count, rank="OMPI_COMM_WORLD_RANK", size="OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(rank, str(number))
        monkeypatch.setenv(size, str(count))
    return launch


def test_numbers_come_from_the_launcher(launched):
    assert (ranks.rank(), ranks.size(), ranks.first()) == (0, 1, True)
    launched(2, 4)
    assert (*ranks._numbers(), ranks.first()) == (2, 4, 2, False)
    launched(1, 3, "PMI_RANK", "PMI_SIZE")
    assert ranks.size() == 4  # Open MPI's numbers come first


def test_a_slurm_job_of_one_task_is_one_process(launched):
    launched(0, 1, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    assert ranks.size() == 1 and ranks.first()


def test_a_barrier_waits_for_all(launched, tmp_path, monkeypatch):
    launched(0, 2)
    mine = ranks.Barrier(tmp_path)
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: (mine.wait(), passed.set()))
    waiting.start()
    assert not passed.wait(0.3)
    (mine._folder / "1.1").touch()  # the other comes
    waiting.join(5)
    assert passed.is_set()
    monkeypatch.setattr(ranks, "PATIENCE", 0.2)
    with pytest.raises(UserError, match="in vain for rank 1 of 2"):
        mine.wait()


def test_who_is_waited_for_is_said(launched, tmp_path, monkeypatch, capsys):
    launched(0, 2)
    monkeypatch.setattr(ranks, "SAY_AFTER", 0.05)
    monkeypatch.setattr(ranks, "PATIENCE", 0.5)
    with pytest.raises(UserError, match="rank 1 of 2"):
        ranks.Barrier(tmp_path).wait()
    assert capsys.readouterr().err.count("waiting for rank 1 of 2") == 1


def test_numbers_left_over_from_another_job_are_refused_at_once(launched, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")  # no rank beside it
    assert ranks.size() == 1
    monkeypatch.setenv("PMI_RANK", "5")  # of 2
    assert ranks.size() == 1
    ranks.require_launcher()
    monkeypatch.setenv("PMI_RANK", "0")  # both are there, but no launcher among the ancestors
    with pytest.raises(UserError, match="no mpirun, mpiexec or srun .* unset PMI_RANK and PMI_SIZE"):
        ranks.require_launcher()


def test_a_launcher_among_the_ancestors_is_seen(tmp_path):
    launcher = tmp_path / "mpirun"
    launcher.symlink_to(shutil.which("bash"))
    code = "from jclip_fewshot.backend import ranks; print(ranks._started_by_launcher())"
    done = subprocess.run([str(launcher), "-c", f'"{sys.executable}" -c "{code}"; true'], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True)
    assert done.stdout == "True\n"


DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuInit(unsigned flags) {
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    FILE *log = fopen(getenv("FAKE_LOG"), "a");
    fprintf(log, "%d %s\n", getpid(), shown ? shown : "all");
    fclose(log);
    return 0;
}
int cuDeviceGetCount(int *count) {
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    *count = 4;
    if (shown)
        for (*count = 1; *shown; shown++)
            *count += *shown == ',';
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int room, int device) { strncpy(name, "fake", room); return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = 9; return 0; }
"""


@pytest.mark.parametrize("shown, gpus",
                         [(None, ["0", "1", "2", "3", "0"]), ("2,3", ["2", "3", "2"]), ("1", ["1", "1"])])
def test_each_rank_chooses_its_gpu_before_cuda_starts(tmp_path, shown, gpus):
    (tmp_path / "driver.c").write_text(DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "driver.c", "-o", "libcuda.so.1"], cwd=tmp_path, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "FAKE_LOG": str(tmp_path / "log"),
                   "PYTHONPATH": str(ROOT), "OMPI_COMM_WORLD_SIZE": str(len(gpus))}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if shown is not None:
        environment["CUDA_VISIBLE_DEVICES"] = shown
    code = ("import os; from jclip_fewshot.backend import ranks, toolkit; ranks.use_own_gpu()\n"
            "toolkit.find_gpu(); print(os.getpid())")
    for rank, gpu in enumerate(gpus):
        (tmp_path / "log").write_text("")
        environment.update(OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_LOCAL_RANK=str(rank))
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, check=True,
                              text=True, env=environment)
        seen = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()
                if line.split()[0] == done.stdout.strip()]
        assert seen == [gpu]  # at the one start of CUDA in the rank's own process


def test_one_process_never_waits(launched, tmp_path):
    ranks.Barrier(tmp_path).wait()
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
    small_contest(tmp_path)
    learn = ["--data", tmp_path / "data", "--model", demo.CHECKPOINT, "--heads", "tip_adapter", "--augment", "2",
             "--unlabelled", tmp_path / "data/TestSetA", "--tune", "off"]
    results = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        for script, flags in (("train.py", learn), ("test.py", [])):
            done = mpirun(count, ROOT / script, *flags, "--quiet", cwd=folder)
            out, err = done.communicate(timeout=600)
            assert done.returncode == 0, err
        results.append((folder / "result.txt").read_bytes())
    assert results[0] == results[1] == results[2] and results[0].count(b"\n") == TESTS


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here (Debian: apt-get install openmpi-bin)")
def test_a_dead_rank_stops_the_others(tmp_path):
    code = ("import os, signal, sys, time; from jclip_fewshot.backend import ranks; barrier = ranks.Barrier('.')\n"
            "if ranks.rank() == 1: time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
            "barrier.wait()")
    begun = time.time()
    done = mpirun(2, "-c", code, cwd=tmp_path)
    _, err = done.communicate(timeout=120)
    assert done.returncode != 0 and time.time() - begun < 60
    assert str(int(signal.SIGKILL)) in err or "Killed" in err  # mpirun names the rank and the signal


def test_ranks_of_a_machine_without_a_gpu_choose_none():
    code = ("import os; from jclip_fewshot.backend import ranks; ranks.use_own_gpu(); "
            "print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment.update(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="1",
                       LD_LIBRARY_PATH="", PYTHONPATH=str(ROOT))
    if shutil.which("nvidia-smi"):
        pytest.skip("a machine with a GPU")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout == b"None\n", done.stderr
