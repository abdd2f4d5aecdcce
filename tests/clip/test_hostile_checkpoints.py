"""Checkpoints that somebody has made to break a reader: one line each, in bounded memory and time."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jclip_fewshot.clip.checkpoint import check_state_dict, read_clip, read_state_dict, read_tensors, write_safetensors
from jclip_fewshot.errors import UserError

from .. import fuzz, mutations
from ..mutations import text_step as text

TINY = mutations.tiny_clip(np.random.default_rng(0))


def rebuilt(numel=6, offset=0, size=(2, 3), stride=(3, 1), storage="FloatStorage"):
    """{"a": tensor} as torch.save pickles it."""
    return b"\x80\x02}" + text("a") + mutations.tensor_steps(numel, size, stride, offset, storage=storage) + b"s."


def torch_zip(path, pickled, numbers=bytes(24), kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x/data.pkl", pickled, zipfile.ZIP_STORED)
        archive.writestr("x/data/0", numbers)
    return path


def test_the_pickle_made_here_is_sound(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    path = torch_zip(tmp_path / "a.pt", rebuilt(), numbers.tobytes())
    assert read_tensors(path)["a"].tolist() == numbers.reshape(2, 3).tolist()
    path = torch_zip(tmp_path / "t.pt", rebuilt(stride=(1, 2)), numbers.tobytes())
    assert read_tensors(path)["a"].tolist() == [[0, 2, 4], [1, 3, 5]]
    bits = (np.array([1.5, -2], np.float32).view(np.uint32) >> 16).astype("<u2")
    path = torch_zip(tmp_path / "b.pt", rebuilt(2, 0, (2,), (1,), "BFloat16Storage"), bits.tobytes())
    for script in (False, True):
        (tmp_path / "clip.pt").write_bytes(mutations.as_torch_zip(TINY, script))
        found = read_state_dict(tmp_path / "clip.pt")
        assert found.keys() == TINY.keys() and all((found[name] == TINY[name]).all() for name in TINY)
    assert read_tensors(path)["a"].tolist() == [1.5, -2] and read_tensors(path, outline=True)["a"].shape == (2,)


@pytest.mark.parametrize("arguments", [
    dict(size=(2**30,), stride=(0,)), dict(size=(2**15, 2**15), stride=(0, 0)), dict(size=(2, 3), stride=(3, 2)),
    dict(offset=1), dict(offset=-1), dict(size=(2, 3), stride=(-3, 1)), dict(size=(2,)), dict(size=(-2, -3)),
    dict(numel=2**31 - 1), dict(numel=-1), dict(size=(2,), stride=(2**31 - 1,)),
    dict(size=(1,) * 40, stride=(0,) * 40), dict(storage="Storage")])
def test_tensors_that_are_not_in_their_storage(tmp_path, arguments):
    path = torch_zip(tmp_path / "a.pt", rebuilt(**arguments))
    for outline in (False, True):
        with pytest.raises(UserError, match="a.pt"):
            read_tensors(path, outline=outline)


def test_a_storage_that_is_compressed_is_refused(tmp_path):
    n = 25_000_000
    path = torch_zip(tmp_path / "a.pt", rebuilt(n, 0, (n,), (1,)), bytes(4 * n), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    kind = fuzz.Kind({}, lambda _, path: read_tensors(path), [])
    assert fuzz.try_case(kind, "a", path, 4 * path.stat().st_size + fuzz.MEMORY) == "refused"


SHARED = b"}q\x00" + b"".join(b"}q%c(" % (i + 1) + text("l") + b"h%c" % i + text("r") + b"h%c" % i + b"u"
                              for i in range(60))
DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60
HOSTILE = {
    "LONG_BINPUT of 268 million": b"}r\xff\xff\xff\x0f", "LONG_BINPUT of 4 billion": b"}r\xff\xff\xff\xff",
    "doubled tuples as a key": b"}" + DOUBLED + b"Ns", "a deep tuple as a key": b"}" + b")" + b"\x85" * 900 + b"Ns",
    "a very deep tuple as a key": b"}" + b")" + b"\x85" * 300_000 + b"Ns",
    "a deep list as text": (b"c_codecs\nencode\n" + b"]q\x00" + b"]h\x00aq\x00" * 60 + b"0h\x00" + text("latin1")
                            + b"\x86R"),
    "doubled lists as text": b"c_codecs\nencode\n" + DOUBLED + b"0h\x00" + text("latin1") + b"\x86R",
    "shared dictionaries": SHARED, "a dictionary in itself": b"}q\x00" + text("a") + b"h\x00s",
    "deep dictionaries": (b"}" + text("a")) * 2000 + b"N" + b"s" * 2000, "a million lists": b"]" * 1_000_000,
    "a bytearray of 8 exabytes": b"\x96" + b"\xff" * 7 + b"\x7f", "a text of 4 GB": b"X\xff\xff\xff\xff",
    "bytes of 2 GB": b"B\xff\xff\xff\x7f", "a number of 2 GB": b"\x8b\xff\xff\xff\x7f", "a set": b"\x8f",
    "dtype of nested lists": b"cnumpy\ndtype\n" + b"]" * 900 + b"a" * 899 + b"\x85R",
    "a frame of 16 EB": b"\x95" + b"\xff" * 8,
    "an array of no bytes": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R",
    "a class given a state": b"cnumpy\ndtype\n}" + text("dtype") + b"Nsb",
    "a function given a state": b"ctorch._utils\n_rebuild_parameter\nN}" + text("__defaults__") + b"Ns\x86b",
    "a bytearray that is cut": b"\x96\x00\x01\x00\x00\x00\x00\x00\x00" + b"x" * 20}


@pytest.mark.parametrize("name", list(HOSTILE))
@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_that_would_fill_memory_hang_or_crash(tmp_path, name, zipped, capfd):
    pickled = b"\x80\x02" + HOSTILE[name] + b"."
    if not zipped:
        (tmp_path / "a.pkl").write_bytes(pickled)
        path = tmp_path / "a.pkl"
    else:
        path = torch_zip(tmp_path / "a.pkl", pickled)
    kind = fuzz.Kind({}, lambda _, path: read_state_dict(path), [])
    assert fuzz.try_case(kind, "a", path, 4 * path.stat().st_size + fuzz.MEMORY) == "refused"
    assert capfd.readouterr().err == ""


def test_no_crash_even_in_a_process_of_its_own(tmp_path):
    """A stack that overflows kills the interpreter; the test above would die with it."""
    for number, body in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.pkl").write_bytes(b"\x80\x02" + body + b".")
    code = ("import sys, pathlib\nfrom jclip_fewshot.clip.checkpoint import read_state_dict\n"
            "from jclip_fewshot.errors import UserError\n"
            "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
            "    try: read_state_dict(path)\n    except UserError as error: print(len(str(error)))\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                          cwd=str(Path(__file__).parents[2]), timeout=120)
    assert done.returncode == 0 and done.stderr == b"" and len(done.stdout.split()) == len(HOSTILE)


def test_a_zip_of_a_million_entries(tmp_path):
    path = tmp_path / "a.pt"
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    table = entry * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(table), 4, 0)
    path.write_bytes(b"PK\x03\x04" + table + end)
    with pytest.raises(UserError, match="table of contents is too large"):
        read_state_dict(path)


def test_one_storage_under_many_names_is_copied_once_at_most(tmp_path):
    """Ten thousand transposed views of one storage would be ten thousand copies."""
    n = 1000
    tensor = mutations.tensor_steps(n * n, (n, n), (1, n))
    body = b"\x80\x02}" + b"".join(text(str(i)) + tensor + b"s" for i in range(300)) + b"."
    path = torch_zip(tmp_path / "a.pt", body, bytes(4 * n * n))
    with pytest.raises(UserError, match="the same numbers too many times"):
        read_tensors(path)


def test_transposed_views_of_bfloat16_are_sound(tmp_path):
    """A whole checkpoint of them: each number is copied once, as float32."""
    n = 1000
    body = b"\x80\x02}" + text("a") + mutations.tensor_steps(n * n, (n, n), (1, n), storage="BFloat16Storage") + b"s."
    values = np.arange(n * n, dtype=np.float32).view(np.uint32) >> 16
    path = torch_zip(tmp_path / "a.pt", body, values.astype("<u2").tobytes())
    assert np.array_equal(read_tensors(path)["a"], (values << 16).view(np.float32).reshape(n, n).T)


def test_no_message_holds_a_terminals_orders(shared):
    with pytest.raises(UserError, match=r"storage \\x1b\[31m") as caught:
        read_state_dict(shared / "cases" / "escape_in_storage_key.pt")
    assert str(caught.value).isprintable()


# Weights that are none.


def changed(**tensors):
    return {**TINY, **{name.replace("__", "."): array for name, array in tensors.items()}}


@pytest.mark.parametrize("state, said", [
    (changed(ln_final__bias=np.ones(64, np.int64)), "ln_final.bias is of type int64"),
    (changed(ln_final__bias=np.ones(64, bool)), "ln_final.bias is of type bool"),
    (changed(ln_final__bias=np.full(64, np.nan, np.float16)), "ln_final.bias holds NaN"),
    (changed(ln_final__bias=np.full(64, -np.inf, np.float32)), "ln_final.bias holds NaN"),
    (changed(ln_final__bias=np.full(64, 1e300)), "ln_final.bias holds NaN or an infinite"),
    (changed(ln_final__bias=None), "missing: ln_final.bias"),
    (changed(ln_final__bias=np.ones((64, 1))), r"misshapen: ln_final.bias \(64, 1\)"),
    (changed(logit_scale=np.ones(3)), r"misshapen: logit_scale \(3,\)"),
    (changed(visual__conv1__weight=np.zeros((64, 3, 0, 0))), r"visual.conv1.weight has shape \(64, 3, 0, 0\)"),
    (changed(visual__conv1__weight=np.ones(64)), r"visual.conv1.weight has shape \(64,\)"),
    (changed(text_projection=np.zeros((64, 0))), r"text_projection has shape \(64, 0\)"),
    ({name: array for name, array in TINY.items() if "resblocks" not in name}, "no blocks")])
def test_weights_that_are_none(tmp_path, state, said):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(state, 4))
    with pytest.raises(UserError, match=said):
        check_state_dict(read_state_dict(tmp_path / "a.pkl"))


@pytest.mark.parametrize("array", [np.ones(()), np.ones((64, 64, 1)), np.ones(64, np.float16),
                                   np.ones((64, 64), np.int8)])
def test_q_k_and_v_of_odd_ranks(tmp_path, array):
    theirs = mutations.hugging_face(TINY)
    theirs["text_model.encoder.layers.0.self_attn.k_proj.weight"] = array
    write_safetensors(tmp_path / "a.safetensors", theirs)
    with pytest.raises(UserError, match="q, k and v of transformer.resblocks.0.attn.in_proj_weight"):
        read_state_dict(tmp_path / "a.safetensors")


def test_scalars_of_odd_ranks_in_hugging_faces_names(tmp_path):
    for name, array in (("logit_scale", np.ones(2)), ("text_projection.weight", np.ones(3)),
                        ("visual_projection.weight", np.ones((2, 2, 2)))):
        write_safetensors(tmp_path / "a.safetensors", {**mutations.hugging_face(TINY), name: array})
        with pytest.raises(UserError):
            check_state_dict(read_state_dict(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("content", ["[]", "[" * 50_000, '{"text_config": []}',
                                     '{"vision_config": {"hidden_act": {}}}'])
def test_a_strange_config_beside_the_weights(tmp_path, content):
    write_safetensors(tmp_path / "a.safetensors", mutations.hugging_face(TINY))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError):  # incomplete: what is missing is listed
        check_state_dict(read_state_dict(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("header", [
    "[" * 100_000, "{}", '{"a": null}', '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}', '{"a": {"dtype": "F32", "shape": [1], '
    '"data_offsets": [4, 8]}}', '{"a": {"dtype": "F32", "shape": [1125899906842624], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], '
    '"data_offsets": [0, 4]}}', '{"a\\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}'])
def test_headers_of_safetensors_that_lie(tmp_path, header):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    for read in (read_state_dict, lambda path: read_clip(path, outline=True)):
        with pytest.raises(UserError, match="a.safetensors"):
            read(tmp_path / "a.safetensors")


def test_what_is_no_regular_file(tmp_path):
    with pytest.raises(UserError, match="is a folder without a checkpoint"):
        read_state_dict(tmp_path)
    for path in ("/dev/zero", tmp_path / "absent", "\0", "x" * 5000):
        with pytest.raises(UserError, match="cannot be read"):
            read_state_dict(path)


def test_inspection_agrees_with_reading_and_reads_no_numbers(tmp_path):
    buffer = io.BytesIO(pickle.dumps(TINY, 4))
    (tmp_path / "a.pkl").write_bytes(buffer.getvalue())
    write_safetensors(tmp_path / "a.safetensors", TINY)
    for name in ("a.pkl", "a.safetensors"):
        found = read_clip(tmp_path / name, "quick_gelu", 64, outline=True)
        assert found.sizes == check_state_dict(read_state_dict(tmp_path / name))
    length = struct.unpack("<Q", (tmp_path / "a.safetensors").read_bytes()[:8])[0]
    assert json.loads((tmp_path / "a.safetensors").read_bytes()[8:8 + length])
