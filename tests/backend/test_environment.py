"""Homes that are files, cannot be written, have spaces and other letters; what must not be left behind."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from jclip_fewshot.backend import device, plain_paths, runtime
from jclip_fewshot.errors import UserError
from tests.conftest import ROOT


def starts(code="print(jt.ones(3).sum())", first="", **environment):
    """What Jittor prints in a process of that environment, with the builds of this one. first: run before it starts."""
    home = str(device.jittor_home())
    code = first + "from jclip_fewshot.backend import jt, runtime\n" + code
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "JITTOR_HOME": home, **environment})


def test_a_home_that_is_a_file_is_no_matter_and_jittor_home_does_not_stick(tmp_path):
    (tmp_path / "file").write_text("")
    done = starts(HOME=str(tmp_path / "file"))
    assert done.returncode == 0 and "3" in done.stdout, done.stderr
    (tmp_path / "home").mkdir()
    # an operator that was never compiled: Jittor starts a Python of its own for it
    new = f'jt.code([1], "float32", [], cpu_src="out0_p[0] = {time.time_ns()} * 0.f;").sync()\n'
    done = starts(new + "print(jt.ones(3).sum(), __import__('os').environ['HOME'])", HOME=str(tmp_path / "home"))
    assert done.returncode == 0 and done.stdout.split()[-1] == str(tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*"))  # Jittor's config.json least of all


def test_no_process_stays_and_no_variable_changes():
    code = ("import os; before = dict(os.environ); jt.flags\n"
            "after = {k: v for k, v in os.environ.items() if before.get(k) != v}\n"
            "print(*sorted(set(after) & {'HOME', 'JITTOR_HOME', 'PYTHONPATH', 'DISABLE_MULTIPROCESSING',"
            " 'use_parallel_op_compiler'}))\n"
            "print(open(f'/proc/self/task/{os.getpid()}/children').read())")
    assert starts(code).stdout.split() == []


def test_a_notebook_shows_our_lines_alone():
    done = starts("print(jt.ones(3).sum().item())", first="import builtins, types\nbuiltins.get_ipython = lambda: "
                  "types.SimpleNamespace(config={'IPKernelApp': 1})\n")
    assert done.stdout.split() == ["3.0"], done.stderr
    assert all(line.startswith("Jittor on the ") for line in done.stderr.splitlines()), done.stderr


def test_use_cuda_from_outside_is_no_matter_where_there_is_no_cuda():
    done = starts(use_cuda="1", JCLIP_DEVICE="cpu")
    assert done.returncode == 0 and "3" in done.stdout, done.stderr


def test_another_virtual_environment_finds_the_same_build(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "my venv"], check=True)
    packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    code = "from jclip_fewshot.backend import runtime; plan = runtime.plan('cpu'); print(plan.stamp, plan.built)"
    said = []
    for python in (sys.executable, tmp_path / "my venv/bin/python"):
        done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(packages)})
        said.append(done.stdout)
    assert said[0] == said[1]


def test_another_processor_of_the_same_name_is_another_build(monkeypatch):
    stamp = runtime.plan("cpu").stamp
    monkeypatch.setattr(device, "machine", lambda compiler: ("x86_64", "with fewer instructions"))
    assert runtime.plan("cpu").stamp != stamp


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
def test_a_python_that_is_not_served_is_one_line(monkeypatch, version):
    monkeypatch.setattr(device.sys, "version_info", version)
    with pytest.raises(UserError, match="is not served: take Python 3.10 to 3.13"):
        runtime.plan("cpu")


def test_the_pythons_that_are_served_are_the_same_everywhere():
    (least, last), project = device.PYTHONS, (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">=3.{least[1]},<3.{last[1] + 1}"' in project
    assert f"{least} <= v <= {last}" in (ROOT / "Makefile").read_text()


def test_pythons_headers_are_asked_for_and_found(tmp_path, monkeypatch):
    script = device._python_config(tmp_path)
    suffix = subprocess.run([script, "--extension-suffix"], capture_output=True, text=True).stdout.strip()
    includes = subprocess.run([script, "--includes"], capture_output=True, text=True).stdout.split()
    assert suffix == sysconfig.get_config_var("EXT_SUFFIX")
    assert Path(includes[0][2:], "Python.h").is_file() and all(part.startswith("-I") for part in includes)
    monkeypatch.setattr(device.sysconfig, "get_paths", lambda: {"include": "/none", "platinclude": "/none"})
    with pytest.raises(UserError, match="Python's headers .*apt-get install python3"):
        device._python_config(tmp_path)


def test_a_user_without_a_home_is_one_line(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(device.Path, "home", no_home)
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    with pytest.raises(UserError, match="no home folder.*set JITTOR_HOME"):
        runtime.plan("cpu")
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "with a space"))
    assert runtime.plan("cpu").home.resolve() == tmp_path / "with a space"


@pytest.mark.parametrize("home", ["file", "file/below", "/proc/nowhere"])
def test_a_jittor_home_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / home))
    with pytest.raises(UserError, match="JITTOR_HOME"):
        runtime.plan("cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_paths_with_other_letters_become_links_without(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = tmp_path / "my höme"
    link = plain_paths.plain(odd)
    assert link == plain_paths.plain(odd) != odd and link.resolve() == odd.resolve()
    assert " " not in str(link) and str(link).isascii()
    assert plain_paths.plain(Path("/usr/lib")) == Path("/usr/lib")
    monkeypatch.setenv("HOME", str(odd))  # where even HOME has one, the link lies in TMPDIR
    monkeypatch.setattr(plain_paths.tempfile, "gettempdir", lambda: str(tmp_path))
    assert plain_paths.plain(odd).parent == tmp_path / f"jclip-links-{os.getuid()}"
    monkeypatch.setattr(plain_paths.tempfile, "gettempdir", lambda: str(odd))
    with pytest.raises(UserError, match="move it"):
        plain_paths.plain(odd)
