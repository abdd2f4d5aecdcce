"""One reader of .npz: what NumPy writes comes back, whatever else is one line and no memory."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import Field, load_arrays, save_arrays

WRITTEN = {"x": np.arange(6, dtype=">f4").reshape(2, 3), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
           "s": np.array(3.5), "t": np.array(["a", "一"]), "b": np.array([b"a", b"bc"]), "e": np.zeros((0, 4)),
           "h": np.float16([1, 2]), "i": np.array([1, 2], "<u8"), "m": np.array([True, False])}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed, lambda path, **arrays: save_arrays(path, arrays)])
def test_what_numpy_writes_comes_back(tmp_path, write):
    write(tmp_path / "a.npz", **WRITTEN)
    found = load_arrays(tmp_path / "a.npz")
    assert set(found) == set(WRITTEN)
    for name, array in WRITTEN.items():
        expected = array.astype(str) if array.dtype.kind == "S" else array
        assert found[name].shape == array.shape and (found[name] == expected).all()
        assert found[name].dtype.isnative and found[name].flags.c_contiguous and found[name].flags.writeable


SCHEMA = {"y": Field("whole", "N", low=0, below="K"), "x": Field("float", "N D", rows=True),
          "c": Field("text", "K", needed=False)}
GOOD = {"x": np.ones((4, 3), np.float16), "y": np.arange(4), "c": np.array(list("abcd"))}


@pytest.mark.parametrize("changes, said", [
    ({"x": None}, "no array 'x'"), ({"x": np.ones((4, 3), complex)}, "complex128"),
    ({"x": np.ones((4, 3), bool)}, "bool"),
    ({"x": np.ones((4, 3), np.int8)}, "int8"), ({"x": np.zeros(4, "f4,i4")}, "f4'.* of shape"),
    ({"x": np.ones((4, 3), "M8[s]")}, r"datetime64\[s\] of shape"), ({"x": np.ones(4)}, r"shape \(4, D\)"),
    ({"x": np.ones((5, 3))}, r"shape \(4, D\)"), ({"x": np.zeros((4, 3))}, "row 0 of x is zero"),
    ({"x": np.full((4, 3), np.inf)}, r"x is not finite at \(0, 0\)"), ({"x": np.full((4, 3), 1e30)}, "not a feature"),
    ({"y": np.arange(4.0)}, "whole numbers"), ({"y": np.arange(4) - 1}, "y holds -1"),
    ({"y": np.arange(1, 5)}, "y holds 4; numbers below 4"), ({"y": np.full(4, 2**64 - 1, np.uint64)}, "below 4"),
    ({"c": np.array([None, "b"], object)}, r"\.astype\(str\)"), ({"c": np.array(["a\0b"] * 4)}, "NUL"),
    ({"c": np.frombuffer(b"\xff" * 16, "<U1")}, "no Unicode"),
    ({"c": np.frombuffer(np.array([[0x55000054, 97]] * 4, "<u4").tobytes(), "<U2")}, "no Unicode"),
    ({"c": np.array([b"\xff"] * 4)}, "no Unicode")])
def test_what_the_schema_does_not_allow(tmp_path, changes, said):
    np.savez(tmp_path / "a.npz", **{name: array for name, array in {**GOOD, **changes}.items() if array is not None})
    with pytest.raises(UserError, match=said):
        load_arrays(tmp_path / "a.npz", SCHEMA)


def test_arrays_that_nobody_asked_for_are_left_unread(tmp_path):
    np.savez(tmp_path / "a.npz", other=np.array([{}]), **GOOD)
    assert set(load_arrays(tmp_path / "a.npz", SCHEMA, others=None)) == set(GOOD)
    with pytest.raises(UserError, match="other is of Python objects"):
        load_arrays(tmp_path / "a.npz", SCHEMA)


def npy(header, data=b"", version=1):
    text = header if isinstance(header, bytes) else header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def zipped(path, content, name="x.npy", **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize("content", [
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999,), }"),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999, 99999, 99999), }", b"1234"),
    npy("{'descr': '<U1000000', 'fortran_order': False, 'shape': (1000000,), }"),
    npy("{'descr': '|V9', 'fortran_order': False, 'shape': (1,), }", b"123456789"),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"), npy("{'descr': '<f8'"), npy("((((" * 500),
    npy("'" * 999), npy(b"\xff\x00\x01"), npy("{'descr': " + "[" * 3000), npy("{}", version=9), b"\x93NUM", b"",
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", bytes(17)),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", bytes(15)),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1" + ",1" * 40 + "), }", bytes(8))])
def test_headers_that_lie(tmp_path, content):
    path = zipped(tmp_path / "a.npz", content)
    tracemalloc.start()
    with pytest.raises(UserError, match="a.npz"):
        load_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_compressed_file_that_grows_without_end(tmp_path):
    zeros = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (8000000,), }", bytes(64_000_000))
    path = zipped(tmp_path / "a.npz", zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="far larger than the file"):
        load_arrays(path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # these grow without bound while a part of them is read
        zipped(path, zeros, compression=method)
        with pytest.raises(UserError, match="neither deflate nor none"):
            load_arrays(path)


def test_damaged_members_are_one_line_whatever_compressed_them(tmp_path, shared):
    with pytest.raises(UserError, match="lzma_features.npz: cannot be read as .npz"):
        load_arrays(shared / "cases/lzma_features.npz")


def test_files_that_are_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(UserError, match="one array without a name"):
        load_arrays(tmp_path / "a.npy")
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones(3))
    (tmp_path / "cut.npz").write_bytes(buffer.getvalue()[:-10])
    (tmp_path / "empty.npz").write_bytes(b"")
    for path in (tmp_path / "cut.npz", tmp_path / "empty.npz", tmp_path, "/dev/zero", "\0"):
        with pytest.raises(UserError):
            load_arrays(path)
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("x.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8)))
    with pytest.raises(UserError, match="twice"):
        load_arrays(tmp_path / "twice.npz")


def test_objects_are_not_saved_and_nothing_is_left(tmp_path):
    with pytest.raises(UserError, match="c holds Python objects"):
        save_arrays(tmp_path / "a.npz", {"c": np.array(["a", None], object)})
    assert not list(tmp_path.iterdir())
