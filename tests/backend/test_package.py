"""Jittor's copy: the lines that are mended, and no others, whichever environment it was made from."""

import filecmp
import shutil
from pathlib import Path

import pytest

from jclip_fewshot.backend import package
from jclip_fewshot.errors import UserError


@pytest.fixture
def installed() -> Path:
    return Path(package.PathFinder.find_spec("jittor").origin).parents[1]


def test_only_the_mended_files_differ(tmp_path, installed):
    copy = package.mended(tmp_path)
    differ = [name for name, path in package._files(installed) if not filecmp.cmp(path, copy / name, shallow=False)]
    assert sorted(differ) == sorted({name for name, _, _ in package._MENDS})
    assert package.mended(tmp_path) == copy and len(list(copy.parent.iterdir())) == 1
    # what would make every container and every environment another build
    assert "platform.node" not in (copy / "jittor_utils/__init__.py").read_text()


def test_two_environments_share_a_copy(tmp_path, installed, monkeypatch):
    for name in package.PACKAGES:
        shutil.copytree(installed / name, tmp_path / "an other" / name)
    here = package.mended(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "an other")
    assert package.mended(tmp_path) == here
    (tmp_path / "an other/jittor/nn.py").write_text("# changed by hand\n")
    assert package.mended(tmp_path) != here


def test_another_release_is_refused(tmp_path, installed, monkeypatch):
    for name in package.PACKAGES:
        shutil.copytree(installed / name, tmp_path / "other" / name)
    header = tmp_path / "other/jittor/src/pyjt/numpy.h"
    header.write_text(header.read_text().replace("arr->descr->elsize", "arr->descr->size"))
    monkeypatch.syspath_prepend(tmp_path / "other")
    with pytest.raises(UserError, match="not release 1.3.11.0 .jittor/src/pyjt/numpy.h differs"):
        package.mended(tmp_path)
    assert not list((tmp_path / ".cache/jittor/jclip_package").iterdir())


def test_no_jittor_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(package.PathFinder, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: python -m pip install --no-deps jittor==1.3.11.0"):
        package.mended(tmp_path)
