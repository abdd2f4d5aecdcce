"""Checkpoints of every format, good and bad."""

import hashlib
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from jclip_fewshot.clip.checkpoint import (
    Architecture,
    Conventions,
    Tower,
    check_state_dict,
    convert,
    layout,
    openai_names,
    read_clip,
    read_state_dict,
    read_tensors,
    write_safetensors,
)
from jclip_fewshot.clip.checkpoint.architecture import architecture
from jclip_fewshot.errors import UserError

from .clip_reference import EXPECTED, SIZES, hugging_face, random_weights

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def tiny():
    return random_weights(layout(Architecture(**SIZES["vit"])))


# Formats


def test_torch_files_of_both_generations():
    for name in ("legacy_torch.pt", "training_torch.pt"):
        tensors = read_tensors(DATA / name)
        assert sorted(tensors) == ["a.weight", "b", "c", "i", "n", "shared"]
        assert tensors["a.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]  # a transposed view
        assert tensors["shared"].tolist() == [[1, 4], [2, 5]]
        assert tensors["b"].dtype == np.float16 and tensors["b"].tolist() == [1.5, -2]
        assert tensors["c"].dtype == np.float32 and tensors["c"].tolist() == [3, -0.5]  # bfloat16
        assert tensors["n"].shape == () and tensors["i"].dtype == np.int64


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_legacy_file_of_any_pickle_protocol(tmp_path, monkeypatch, protocol):
    """Five pickles one after another, each with its own memo: with protocol 4 it counts from 0."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils, torch.FloatStorage = utils, type("FloatStorage", (), {"__module__": "torch"})

    def rebuild(*_):
        pass
    rebuild.__module__, rebuild.__qualname__, utils._rebuild_tensor_v2 = "torch._utils", "_rebuild_tensor_v2", rebuild
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Stored:
        def __init__(self, array, key):
            self.array, self.key = array, key

        def __reduce__(self):
            return rebuild, (Key(self.key), 0, self.array.shape, (3, 1), False, {})

    class Key(str):
        pass

    class TorchPickler(pickle.Pickler):
        def persistent_id(self, one):
            return ("storage", torch.FloatStorage, str(one), "cpu", 6, None) if isinstance(one, Key) else None
    arrays = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + i for i, name in enumerate(("a", "b"))}
    content = io.BytesIO()
    for part in (0x1950a86a20f9469cfc6c, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(part, content, protocol)
    pickler = TorchPickler(content, protocol)
    pickler.dump({name: Stored(array, str(i)) for i, (name, array) in enumerate(arrays.items())})
    pickle.dump(["0", "1"], content, protocol)
    for array in arrays.values():
        content.write(struct.pack("<q", array.size) + array.tobytes())
    (tmp_path / "old.pt").write_bytes(content.getvalue())
    found = read_tensors(tmp_path / "old.pt")
    assert all((found[name] == array).all() for name, array in arrays.items()) and len(found) == 2


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    def too_large(_):
        raise MemoryError
    (tmp_path / "large.safetensors").write_bytes(save({"a": np.ones(3)}))
    monkeypatch.setattr("jclip_fewshot.clip.checkpoint.read._safetensors", too_large)
    with pytest.raises(MemoryError):
        read_tensors(tmp_path / "large.safetensors")


def test_every_format_of_the_reference_models(shared):
    folder = shared / "reference" / "clip"
    for kind in ("vit", "resnet"):
        expected = read_state_dict(folder / f"tiny_{kind}.safetensors")
        check_state_dict(expected)
        archive = read_state_dict(folder / f"tiny_{kind}_torchscript.pt")
        assert archive.keys() == expected.keys()
        for name, array in archive.items():
            assert array.dtype == np.float16 and np.array_equal(array, expected[name].astype(np.float16))
    saved = read_state_dict(folder / "tiny_vit_state_dict.pt")
    expected = read_state_dict(folder / "tiny_vit.safetensors")
    assert all(np.array_equal(saved[name], expected[name])
               for name in expected) and saved.keys() == expected.keys()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("stamp", [True, False])
def test_jittor_pickle(tmp_path, tiny, protocol, stamp):
    content = pickle.dumps(tiny, protocol)
    if stamp:
        content += hashlib.sha1(content).digest() + b"HCAJSLHD"
    (tmp_path / "model.pkl").write_bytes(content)
    tensors = read_state_dict(tmp_path / "model.pkl")
    assert tensors.keys() == tiny.keys()
    assert all(np.array_equal(tensors[name], tiny[name]) for name in tiny)


def test_numpy_types_and_order(tmp_path):
    arrays = {"f": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)), "h": np.float16(2.5),
              "e": np.zeros((0, 3))}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, 4))
    tensors = read_state_dict(tmp_path / "a.pkl")
    assert tensors["f"].tolist() == [[0, 1, 2], [3, 4, 5]
                               ] and tensors["h"] == 2.5 and tensors["e"].shape == (0, 3)


def test_safetensors_in_every_precision(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"x": np.float16([1, 2]), "y": np.array(3, np.float32)})
    tensors = read_state_dict(tmp_path / "a.safetensors")
    assert tensors["x"].dtype == np.float16 and tensors["y"].shape == () and tensors["y"] == 3
    header = json.dumps({"z": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    bits = np.array([1.5, -2], np.float32).view(np.uint32) >> 16
    content = struct.pack("<Q", len(header)) + header + bits.astype("<u2").tobytes()
    (tmp_path / "b.safetensors").write_bytes(content)
    assert read_state_dict(tmp_path / "b.safetensors")["z"].tolist() == [1.5, -2]


def test_hugging_face_names(tmp_path, tiny):
    theirs = hugging_face(tiny)
    (tmp_path / \
     "model.safetensors").write_bytes(save({k: np.ascontiguousarray(v) for k, v in theirs.items()}))
    tensors = read_state_dict(tmp_path / "model.safetensors")
    assert tensors.keys() == tiny.keys()
    assert all(np.array_equal(tensors[name], tiny[name]) for name in tiny)


def test_hugging_face_without_a_key_lists_it(tiny):
    theirs = hugging_face(tiny)
    del theirs["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(UserError, match=r"missing: visual.transformer.resblocks.1.attn.in_proj_bias$"):
        check_state_dict(openai_names(theirs))


# Files that are not what they should be


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("content", [
    Evil(os.system, "touch RAN"), Evil(eval, "1"), {"a": Evil(exec, "open('RAN', 'w')")}, {"x": Path("a")},
    {"x": np.array([1, "a"], dtype=object)}, Evil(getattr, {}, "__class__")])
def test_a_pickle_that_wants_more_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        Path("evil.pkl").write_bytes(pickle.dumps(content, protocol))
        with zipfile.ZipFile("evil.pt", "w") as archive:
            archive.writestr("evil/data.pkl", pickle.dumps(content, protocol))
        for name in ("evil.pkl", "evil.pt"):
            with pytest.raises(UserError, match="refused|only numbers|plain bytes"):
                read_state_dict(name)
    assert not Path("RAN").exists()


def test_the_refusal_names_the_name(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(os.system, "true")))
    with pytest.raises(UserError, match=r"evil.pkl: it wants to use (posix|nt|os)\.system"):
        read_state_dict(tmp_path / "evil.pkl")


def test_damaged_files(tmp_path, tiny):
    good = pickle.dumps(tiny, 4)
    good += hashlib.sha1(good).digest() + b"HCAJSLHD"
    archive = (DATA / "training_torch.pt").read_bytes()
    bad = {
        "changed.pkl": good[:500] + b"\x00" + good[501:], "cut.pkl": good[:2000], "cut.pt": archive[:1500],
        "changed.pt": archive.replace(struct.pack("<6f", *range(6)), struct.pack("<6f", *[9] * 6)),
        "cut.safetensors": save({"x": np.zeros(100, np.float32)})[:100], "text.pt": b"<html>not found</html>",
        "empty.pt": b"", "short_legacy.pt": (DATA / "legacy_torch.pt").read_bytes()[:-20],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_state_dict(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="no torch archive"):
        read_state_dict(tmp_path / "other.zip")
    with pytest.raises(UserError, match="cannot be read"):
        read_state_dict(tmp_path / "absent.pt")


def test_a_tensor_past_its_storage_is_refused(tmp_path):
    content = (DATA / "training_torch.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    assert b"K\x03K\x02\x86" in entries[pickled]
    entries[pickled] = entries[pickled].replace(b"K\x03K\x02\x86", b"K\xffK\x02\x86")  # 3 rows become 255
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="past its numbers"):
        read_state_dict(tmp_path / "a.pt")


# Sizes and names


def test_layout_is_openais(shared):
    listed = json.loads((shared / "reference" / "clip" / "openai_vit_b_32_layout.json").read_text())
    state = openai_names({name: np.zeros(entry["shape"], entry["dtype"]) for name, entry in listed.items()})
    sizes = check_state_dict(state)
    assert sizes == Architecture(512, 224, 12, 768, 32, 77, 49408, 512, 12)
    assert {name: array.shape for name, array in state.items()} == layout(sizes)


@pytest.mark.parametrize("kind", list(SIZES))
def test_layout_names_are_those_of_the_torch_model(kind):
    sizes = Architecture(**SIZES[kind])
    assert sorted(layout(sizes)) == np.load(EXPECTED)[kind + "_names"].tolist()
    assert architecture({name: np.zeros(shape) for name, shape in layout(sizes).items()}) == sizes


@pytest.mark.parametrize("sizes, parameters", [
    (Architecture(512, 224, 12, 768, 32, 77, 49408, 512, 12), 151_277_313),
    (Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 12), 102_007_137)])
def test_parameter_counts_are_the_published_ones(sizes, parameters):
    count = sum(int(np.prod(shape)) for name, shape in layout(sizes).items() if "running_" not in name)
    assert count == parameters


def test_everything_wrong_is_listed(tiny):
    state = dict(tiny)
    del state["ln_final.bias"], state["visual.transformer.resblocks.0.mlp.c_fc.bias"]
    state["extra"] = np.zeros(3)
    state["text_projection"] = np.zeros((63, 16))
    with pytest.raises(UserError) as caught:
        check_state_dict(state)
    message = str(caught.value)
    assert "missing: " in message and "ln_final.bias" in message and "resblocks.0.mlp.c_fc.bias" in message
    assert "unexpected: extra" in message
    assert "misshapen: text_projection (63, 16) instead of (64, 16)" in message


def test_what_is_no_clip():
    with pytest.raises(UserError, match="no CLIP checkpoint"):
        check_state_dict({"conv.weight": np.zeros((3, 3))})


def test_buffers_are_dropped(tiny):
    extra = {"input_resolution": np.array(32), "context_length": np.array(20), "vocab_size": np.array(100),
             "transformer.resblocks.0.attn_mask": np.zeros((20, 20)),
             "visual.bn1.num_batches_tracked": np.array(1)}
    assert openai_names({**tiny, **extra}).keys() == tiny.keys()


def test_convert(tmp_path, tiny):
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(tiny, 4))
    with pytest.raises(UserError, match="in.pkl: nothing says whether its activation is QuickGELU or GELU"):
        convert(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    said = {"activation": "gelu", "head_width": 64}
    convert(tmp_path / "in.pkl", tmp_path / "out.safetensors", **said)
    found = read_clip(tmp_path / "out.safetensors", outline=True)
    assert found.sizes.conventions == Conventions(Tower("gelu"), Tower("gelu"))
    tensors = read_state_dict(tmp_path / "out.safetensors")
    assert all(np.array_equal(tensors[name], tiny[name])
               and tensors[name].shape == tiny[name].shape for name in tiny)
    convert(tmp_path / "in.pkl", tmp_path / "half.safetensors", half=True, **said)
    assert {str(array.dtype) for array in read_state_dict(
        tmp_path / "half.safetensors").values()} == {"float16"}
    with pytest.raises(UserError, match="does not end in .safetensors"):
        convert(tmp_path / "in.pkl", tmp_path / "out.pt")
    (tmp_path / "part.pkl").write_bytes(pickle.dumps({k: v for k,
     v in tiny.items() if k != "ln_final.bias"}, 4))
    with pytest.raises(UserError, match="ln_final.bias"):
        convert(tmp_path / "part.pkl", tmp_path / "part.safetensors", **said)
    assert not (tmp_path / "part.safetensors").exists()
