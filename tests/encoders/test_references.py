"""Every reference of the encoders' authors, as `python tests/check_encoders.py` compares them.

Without the references, tests/clip/test_families.py holds the same towers to NumPy.
"""

import json

import pytest

from tests import check_encoders
from tests.conftest import ROOT

ENCODERS = ROOT.parent / "shared" / "reference" / "encoders"
CASES = list(check_encoders.cases(ENCODERS)) if ENCODERS.is_dir() else []


@pytest.mark.parametrize("name, folder, checks", CASES, ids=[name for name, *_ in CASES])
def test_an_encoder_is_its_authors(name, folder, checks):
    if checks is check_encoders.onnx_checks and check_encoders.missing_libraries():
        pytest.skip(f"no {check_encoders.missing_libraries()}")
    limits = json.loads((ENCODERS / "index.json").read_text())["limits"]
    found = list(checks(folder, check_encoders.photos(ENCODERS), limits))
    assert len(found) >= (9 if checks is check_encoders.native_checks else 1), name
    assert not [check for check in found if not check.off <= check.limit]


def test_there_are_references(shared):
    assert len(CASES) >= 33 and shared == ENCODERS.parents[1]


@pytest.mark.parametrize("file", ["epoch_32.pt", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_every_file_of_a_folder_is_the_same_encoder(shared, file):
    from jclip_fewshot.clip.checkpoint import read_clip
    folder = shared / "reference" / "encoders" / "open_clip" / "vit_quickgelu"
    whole, one = read_clip(folder), read_clip(folder / file)
    assert one.sizes == whole.sizes and one.preprocessing == whole.preprocessing
    for name, array in whole.weights.items():
        assert abs(one.weights[name].astype("f4") - array).max() < 1e-2  # epoch_32.pt is in float16
