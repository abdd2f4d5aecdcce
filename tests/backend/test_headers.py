"""Jittor's headers are parsed once, and nothing depends on that."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jclip_fewshot.backend import headers, runtime

GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="no g++ on this machine")


@pytest.fixture
def plain_environment(monkeypatch):
    for name in ("cc_flags", "kernel_flags", "debug", "cc_path"):
        monkeypatch.delenv(name, raising=False)


def fake_jittor(folder: Path) -> Path:
    """A package whose headers are those that ours includes, all but empty."""
    for line in headers._TEXT.splitlines():
        if line.startswith('#include "'):
            file = folder / "src" / line.split('"')[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("#pragma once\ninline int twice(int x);\n" if file.name == "var.h" else "#pragma once\n")
    (folder / "extern").mkdir()
    return folder


def test_gcc_takes_the_precompiled_versions(tmp_path):
    jittor = fake_jittor(tmp_path / "jittor")
    header = headers.path(tmp_path, jittor, ("this machine",))
    header.parent.mkdir(parents=True)
    headers.prepare(header, jittor, GXX)
    assert sorted(file.name for file in Path(f"{header}.gch").iterdir()) == ["core", "kernel"]

    # with the sources gone only a precompiled version can be what g++ read
    shutil.rmtree(jittor)
    source = tmp_path / "x.cc"
    source.write_text("int twice(int x) { return 2 * x; }\n#ifdef JIT\nint kernel = twice(1);\n#endif\n")
    for version, symbol in ((headers.CORE_FLAGS, False), (headers._VERSIONS["kernel"], True)):
        command = [GXX, "-include", str(header), *headers._ALWAYS.split(), *version.split(), "-c", str(source),
                   "-o", str(tmp_path / "x.o")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        assert (b"kernel" in (tmp_path / "x.o").read_bytes()) == symbol

    headers.drop_core(header)
    headers.drop_core(header)
    assert [file.name for file in Path(f"{header}.gch").iterdir()] == ["kernel"]


def test_a_jittor_with_other_headers_is_built_as_without(tmp_path):
    jittor = tmp_path / "jittor"
    (jittor / "src").mkdir(parents=True)
    header = tmp_path / "headers/jittor.h"
    header.parent.mkdir()
    headers.prepare(header, jittor, GXX)
    assert header.read_text() == "" and not list(header.parent.glob("*/*"))


def test_a_child_process_finds_its_parents_build(plain_environment, monkeypatch):
    parent = runtime.plan("cpu")
    assert parent.header is not None
    for name, value in parent.environment.items():
        monkeypatch.setenv(name, value)
    child = runtime.plan("cpu")
    monkeypatch.delenv("cc_flags")  # one of the two alone is still ours
    assert runtime.plan("cpu").environment == child.environment
    assert child.environment == parent.environment and child.stamp == parent.stamp


@pytest.mark.parametrize("name, value", [("cc_flags", "-O0 -g"), ("kernel_flags", "-O3"), ("debug", "1"),
                                         ("cc_path", "clang++")])
def test_flags_that_somebody_chose_are_left_alone(plain_environment, tmp_path, monkeypatch, name, value):
    if name == "cc_path":
        value = shutil.copy(GXX, str(tmp_path / value))
    monkeypatch.setenv(name, value)
    plan = runtime.plan("cpu")
    assert plan.header is None and not {"cc_flags", "kernel_flags"} & set(plan.environment)


def test_this_process_compiles_operators_with_the_header():
    started = runtime.start()
    if started.header is None:
        pytest.skip("this process was started with other flags")
    assert os.environ["cc_flags"] == started.environment["cc_flags"]
    assert (Path(f"{started.header}.gch") / "kernel").stat().st_size > 1e6
