"""Jittor starts on any machine, and what it cannot have is said in one line."""

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from jclip_fewshot import console
from jclip_fewshot.backend import build, device, runtime, toolkit
from jclip_fewshot.errors import UserError
from tests.conftest import ROOT, hear_ctrl_c


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_starts_with_a_fake_nvcc_an_empty_home_and_no_network(tmp_path):
    """The three ways in which `import jittor` dies elsewhere; the build itself is this machine's own."""
    script(tmp_path / "bin/nvcc", "echo 'Cuda compilation tools, release 12.2, V12.2.140'\n")
    (tmp_path / "site/sitecustomize.py").parent.mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(textwrap.dedent("""
        import socket
        def refuse(*_, **__):
            raise OSError("network is cut off")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        """))
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "JITTOR_HOME": str(device.jittor_home()),
                   "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    for name in ("nvcc_path", "use_mkl", "cache_name", "cc_flags", "kernel_flags", "conv_opt", "python_config_path",
                 "log_silent", runtime.DEVICE_VARIABLE):
        environment.pop(name, None)
    code = ("from jclip_fewshot.backend.runtime import jt, start\n"
            "print(start().device, jt.matmul(jt.ones((2, 3)), jt.ones((3, 2))).sum())")
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, timeout=900,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with contextlib.suppress(UserError):
        toolkit.find_gpu()
        pytest.skip("this machine has a GPU: the choice of the CPU cannot be seen here")
    assert done.stdout.split()[0] == "cpu" and "12" in done.stdout
    assert "Jittor on the CPU: no NVIDIA driver" in done.stderr


def test_cuda_without_a_gpu_says_what_is_missing(monkeypatch):
    def no_driver(name):
        raise OSError(f"{name}: cannot open shared object file")
    monkeypatch.setattr(toolkit.ctypes, "CDLL", no_driver)
    with pytest.raises(UserError, match="--device cuda: no NVIDIA driver"):
        runtime.plan("cuda")
    assert runtime.plan("auto").device == "cpu"
    assert runtime.plan("auto").environment["nvcc_path"] == ""  # an nvcc on the PATH must not count


GPU = toolkit.Gpu("NVIDIA H200", 1, (9, 0), (13, 0))


def test_cuda_plan_keeps_its_own_cache_and_downloads_nothing(monkeypatch):
    monkeypatch.setattr(toolkit, "find_gpu", lambda: GPU)
    monkeypatch.setattr(toolkit, "find_toolkit", lambda home: toolkit.Toolkit(Path("/cuda/bin/nvcc"), (13, 0)))
    plan = runtime.plan("auto")
    assert plan.device == "cuda" and "H200" in plan.reason
    assert plan.environment["cache_name"] != runtime.plan("cpu").environment["cache_name"]
    assert {plan.environment[name] for name in ("use_cutt", "use_cutlass", "use_nccl")} == {"0"}
    assert plan.environment["conv_opt"] == "1"  # no cuDNN
    assert "clockRate" in plan.environment["cc_flags"]  # CUDA 13
    assert plan.environment["NVCC_APPEND_FLAGS"] == "-std=c++17"  # CUB's least
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo -std=c++17")  # a child of a started process
    assert runtime.plan("auto").environment["NVCC_APPEND_FLAGS"] == "-lineinfo -std=c++17"


def test_cuda_needs_a_driver_as_new_as_the_compiler(monkeypatch):
    monkeypatch.setattr(toolkit, "find_gpu", lambda: toolkit.Gpu("NVIDIA T4", 1, (7, 5), (12, 4)))
    monkeypatch.setattr(toolkit, "find_toolkit", lambda home: toolkit.Toolkit(Path("/cuda/bin/nvcc"), (13, 0)))
    assert runtime.plan("auto").device == "cpu"
    with pytest.raises(UserError, match="update the driver"):
        runtime.plan("cuda")


def test_unknown_device_and_missing_compiler(monkeypatch):
    with pytest.raises(UserError, match="'tpu' is none of auto, cpu, cuda"):
        runtime.plan("tpu")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("cc_path", raising=False)
    with pytest.raises(UserError, match="apt-get install g"):
        runtime.plan("cpu")


def test_a_started_process_keeps_its_device():
    runtime.start("cpu" if runtime.start().device == "cpu" else "cuda")
    other = "cuda" if runtime.start().device == "cpu" else "cpu"
    with pytest.raises(UserError, match="needs a new one"):
        runtime.start(other)


def test_without_onednn_the_cost_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    monkeypatch.setattr(toolkit, "_wheel_folder", lambda wheel, name: None)
    monkeypatch.delenv("use_mkl", raising=False)
    assert runtime.plan("cpu").environment["use_mkl"] == "0"
    assert "five times slower" in capsys.readouterr().err


def test_onednn_links_survive_a_deleted_environment(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        for name in ("lib/libmkldnn.so", "include/mkldnn.h"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("")
    for folder in (old, new):
        places = {"libmkldnn.so": folder / "lib", "mkldnn.h": folder / "include"}
        monkeypatch.setattr(toolkit, "_wheel_folder", lambda wheel, name, places=places: places[name])
        assert toolkit.link_onednn(tmp_path) == "PyPI wheels"
        linked = tmp_path / ".cache/jittor/mkl" / toolkit.ONEDNN_FOLDER
        assert (linked / "lib/libmkldnn.so").is_file() and (linked / "include/mkldnn.h").is_file()
        (folder / "lib/libmkldnn.so").unlink()  # the environment goes
    monkeypatch.setattr(toolkit, "_wheel_folder", lambda wheel, name: None)
    assert toolkit.link_onednn(tmp_path) == "none"


def test_onednn_that_jittor_downloaded_is_left_alone(tmp_path, monkeypatch):
    own = tmp_path / ".cache/jittor/mkl" / toolkit.ONEDNN_FOLDER / "lib"
    own.mkdir(parents=True)
    (own / "libmkldnn.so").write_text("Jittor's")
    assert toolkit.link_onednn(tmp_path) == "Jittor's download"
    assert (own / "libmkldnn.so").read_text() == "Jittor's"


def cuda_home(folder: Path, files) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return script(folder / "bin/nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'\n")


RUNTIME = ("include/cuda_runtime.h", "lib64/libcudart.so")
LIBRARIES = ("include/cublas_v2.h", "include/cublasLt.h", "include/curand.h",
             "lib/libcublas.so.13", "lib/libcublasLt.so.13", "lib/libcurand.so.10")


def test_a_toolkit_is_put_together_from_pytorchs_wheels(tmp_path, monkeypatch):
    nvcc = cuda_home(tmp_path / "cuda", RUNTIME)
    monkeypatch.setattr(toolkit, "_nvcc_candidates", lambda home: [nvcc])
    monkeypatch.setattr(toolkit, "_wheel_folders", lambda: [])
    with pytest.raises(UserError, match="has no cuBLAS, cuBLASLt, cuRAND beside it"):
        toolkit.find_toolkit(tmp_path)

    cuda_home(tmp_path / "nvidia/cu13", LIBRARIES)
    monkeypatch.setattr(toolkit, "_wheel_folders", lambda: [tmp_path / "nvidia/cu13"])
    for _ in range(2):  # made once, found again
        found = toolkit.find_toolkit(tmp_path)
        assert found.version == (13, 0)
        home = found.nvcc.parent.parent
        for name in ("include/cuda_runtime.h", "include/cublas_v2.h", "lib64/libcudart.so", "lib64/libcublas.so",
                     "lib64/libcublas.so.13", "lib64/libcurand.so", "include/npp.h"):
            assert (home / name).is_file(), name
        assert "NPP_MAX_32S" in (home / "include/npp.h").read_text()
        assert b"13.0" in subprocess.run([str(found.nvcc)], stdout=subprocess.PIPE).stdout


def test_a_complete_toolkit_is_taken_as_it_is(tmp_path, monkeypatch):
    names = [name.replace("lib/", "lib64/").replace(".so.13", ".so").replace(".so.10", ".so") for name in LIBRARIES]
    nvcc = cuda_home(tmp_path / "cuda", RUNTIME + tuple(names) + ("include/npp.h",))
    monkeypatch.setattr(toolkit, "_nvcc_candidates", lambda home: [tmp_path / "absent/nvcc", nvcc])
    assert toolkit.find_toolkit(tmp_path) == toolkit.Toolkit(nvcc, (13, 0))


def test_jittor_home_follows_jittors_own_rule(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    assert device.jittor_home() == tmp_path
    (tmp_path / ".cache/jittor").mkdir(parents=True)
    (tmp_path / ".cache/jittor/config.json").write_text('{"JITTOR_HOME": "/data/jittor"}')
    assert device.jittor_home() == Path("/data/jittor")
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "own"))
    assert device.jittor_home() == tmp_path / "own"


def fake_plan(home: Path, code: str) -> device.Plan:
    """A plan whose Jittor is `code`."""
    package = home / "package"
    (package / "jittor").mkdir(parents=True, exist_ok=True)
    (package / "jittor/__init__.py").write_text(textwrap.dedent(code))
    return device.Plan("cpu", "a test", "none", {"cache_name": "fake"}, home, package)


def test_rerun_requests_are_followed_and_end(tmp_path, monkeypatch):
    """Jittor's 'please rerun your command' leaves with status 0, which passes for success."""
    monkeypatch.setattr(console, "quiet", True)
    plan = fake_plan(tmp_path, f"""
        import pathlib, sys
        count = pathlib.Path({str(tmp_path / 'count')!r})
        count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
        if int(count.read_text()) < 3:
            print("jit_utils updated, please rerun your command.")
            sys.exit(0)
        class array:
            def __init__(self, x): pass
            def sync(self): pass
        """)
    build.build(plan)
    assert plan.built and (tmp_path / "count").read_text() == "3"

    plan.stamp.unlink()
    with pytest.raises(UserError, match="again and again"):
        build.build(fake_plan(tmp_path, "import sys; sys.exit(0)"))
    with pytest.raises(UserError, match="cc1plus: out of memory.*log:"):
        build.build(fake_plan(tmp_path, "raise RuntimeError('cc1plus: out of memory')"))
    assert not plan.built


def test_ctrl_c_belongs_to_python_after_jittor_has_started():
    code = ("import os, signal, subprocess, sys\n"
            "from jclip_fewshot.backend.runtime import jt\n"
            "jt.flags\n"
            "child = subprocess.Popen(['sleep', '60']); child.kill(); child.wait()\n"
            "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
            "except KeyboardInterrupt:\n    print('survived both')\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          preexec_fn=hear_ctrl_c)
    assert done.returncode == 0 and "survived both" in done.stdout


def test_a_build_that_has_no_room_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100 << 20))
    with pytest.raises(UserError, match="needs 500 MB, and the disk of .* has 100;"):
        build.build(fake_plan(tmp_path, ""))
