"""What doctor says about checkpoints, and about a NumPy that Jittor misreads."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jclip_fewshot import console
from jclip_fewshot.backend import runtime
from jclip_fewshot.cli import doctor
from jclip_fewshot.clip.checkpoint import Architecture, layout, write_safetensors
from jclip_fewshot.config import DoctorConfig
from jclip_fewshot.errors import UserError

_checkpoint = partial(doctor.finding, "checkpoint", doctor._checkpoint)
DEMO = Path(__file__).parents[2] / "weights" / "demo_clip.safetensors"
SIZES = Architecture(16, 32, 1, 64, 16, 20, 100, 64, 1, 1)


def tiny(path, **changes):
    tensors = {name: np.ones(shape, np.float32) for name, shape in layout(SIZES).items()}
    write_safetensors(path, {**tensors, **changes})
    return path


def test_a_sound_file():
    assert _checkpoint(str(DEMO), "weights").ok
    assert "undamaged" in _checkpoint(str(DEMO), "weights", deep=True).said


@pytest.mark.parametrize("kept", [0, 7, 100, 5000, -1, -4])
def test_a_file_cut_short(tmp_path, kept):
    path = tiny(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    found = _checkpoint(str(path), "weights")
    assert not found.ok and found.needed and "cut.safetensors" in found.said


def test_torch_files_cut_short(tmp_path):
    for name in ("legacy_torch.pt", "training_torch.pt"):
        content = (Path(__file__).parents[1] / "data" / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-30])
        found = _checkpoint(str(tmp_path / name), "weights")
        assert not found.ok and "missing:" not in found.said


def test_numbers_are_looked_at_with_deep_alone(tmp_path):
    path = tiny(tmp_path / "nan.safetensors", ln_final_bias=np.ones(1, np.float32))
    assert "unexpected: ln_final_bias" in _checkpoint(str(path), "weights").said
    path = tiny(tmp_path / "nan.safetensors", **{"ln_final.bias": np.full(64, np.nan, np.float32)})
    assert _checkpoint(str(path), "weights").ok
    assert "ln_final.bias holds NaN" in _checkpoint(str(path), "weights", deep=True).said


def test_a_released_name_has_a_released_digest(tmp_path):
    path = tiny(tmp_path / "ViT-B-32.safetensors")
    path.rename(tmp_path / "ViT-B-32.pt")  # not OpenAI's file
    found = _checkpoint("ViT-B/32", str(tmp_path), deep=True)
    assert not found.ok and "SHA-256" in found.said


def test_random_weights_are_not_called_undamaged(tmp_path):
    path = tiny(tmp_path / "random.safetensors")
    found = _checkpoint(str(path), "weights", deep=True)
    assert found.ok and "undamaged" not in found.said and "not one that this program knows" in found.said


def test_what_nothing_says_is_not_ready(tmp_path):
    bare = tmp_path / "bare.pkl"
    bare.write_bytes(pickle.dumps({name: np.ones(shape, np.float32) for name, shape in layout(SIZES).items()}, 4))
    found = _checkpoint(str(bare), "weights")
    assert not found.ok and "bare.pkl: nothing says whether its activation" in found.said
    assert _checkpoint(str(bare), "weights", said=("gelu", 64)).ok


def test_a_numpy_that_jittor_misreads_is_not_ready(monkeypatch, tmp_path, capsys):
    runtime.start()  # so that it is built

    def misread(device):
        raise UserError("Jittor misreads the arrays of NumPy 9.0")
    monkeypatch.setattr(runtime, "start", misread)
    monkeypatch.setattr(console, "quiet", False)  # doctor sets it
    assert doctor.report(DoctorConfig(data=str(tmp_path), model=())) == 2
    said = capsys.readouterr().out
    assert "✗ arrays" in said and "misreads the arrays of NumPy 9.0" in said and "not ready: arrays" in said
