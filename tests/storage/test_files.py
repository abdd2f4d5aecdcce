"""Files whole or not at all, regular ones only, and what is found out before the work."""

import os
import stat

import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import atomic_write, require_writable, require_writable_folder, write_text


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old" and entries(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize("check", [require_writable, lambda path: write_text(path, "x")])
def test_devices_pipes_and_folders_are_never_replaced(tmp_path, check):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (tmp_path / "fifo", tmp_path / "null", os.devnull, "/dev/stdout", tmp_path, "", f"{tmp_path}/new/"):
        with pytest.raises(UserError):
            check(path)
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert entries(tmp_path) == ["fifo", "null"]


def test_a_target_is_checked_without_making_anything(tmp_path):
    require_writable(tmp_path / "new/folder/a.txt", "--json")
    require_writable_folder(tmp_path / "runs", "--runs")
    assert not entries(tmp_path)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/a.txt", "/proc/a.txt", tmp_path / ("n" * 300), "a\0b"):
        with pytest.raises(UserError, match="--json"):
            require_writable(path, "--json")
    with pytest.raises(UserError, match="--runs.*a file"):
        require_writable_folder(tmp_path / "file", "--runs")
