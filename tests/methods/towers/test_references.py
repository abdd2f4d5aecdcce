"""Every method that trains CLIP against its authors' code, step by step (tests/data/tuning: parts of their runs)."""

import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.methods.towers import coop

from .replay import KINDS, MEASURES, replay

NAMES = [method.name for method in KINDS]


@pytest.fixture(scope="module")
def data(request):
    return request.path.parents[2] / "data" / "tuning"


def assert_holds(method, found):
    assert not found.wrong
    for measure, limit in zip(MEASURES, method.limits):
        assert getattr(found, measure) <= limit, f"{method.name}: {measure} {getattr(found, measure):.1e} > {limit}"


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_authors_code(data, name):
    method, found = replay(data / f"{name}.npz", data / "tiny_vit.safetensors")
    assert method.name == name
    assert_holds(method, found)


def test_a_small_mistake_is_seen(data, monkeypatch):
    """CoOp without weight decay: its loss is right to 1e-5, its update is not."""
    monkeypatch.setattr(coop, "WEIGHT_DECAY", 0.0)
    method, found = replay(data / "coop.npz", data / "tiny_vit.safetensors")
    assert found.update > method.limits[2]


def test_what_is_no_reference_run_is_refused(tmp_path, data):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    with np.load(data / "prolip.npz") as whole:
        np.savez(tmp_path / "part.npz", **{key: whole[key] for key in whole.files if not key.endswith("loss")})
    for name in ("other", "damaged", "part"):
        with pytest.raises(UserError, match=name):
            replay(tmp_path / f"{name}.npz", data / "tiny_vit.safetensors")
