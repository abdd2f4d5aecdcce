"""The reference CLIPs of open_clip and transformers, as `python tests/check_encoders.py` compares them.

Those as ONNX files have tests of their own (test_onnx.py). Without the references, tests/clip/test_families.py holds
the same towers to NumPy.
"""

import json

import pytest

from .. import check_encoders

CASES = ["open_clip/vit_gelu", "open_clip/vit_quickgelu", "open_clip/vit_head40_mlp49", "open_clip/clipa",
         "open_clip/worldwide_eos", "open_clip/custom_text_bias", "open_clip/full_vocab_fp16", "hf_clip/clip_gelu",
         "hf_clip/clip_quickgelu"]


@pytest.mark.parametrize("name", CASES)
def test_a_clip_is_its_authors(shared, name):
    root = shared / "reference" / "encoders"
    limits = json.loads((root / "index.json").read_text())["limits"]
    found = list(check_encoders.native_checks(root / name, check_encoders.photos(root), limits))
    assert len(found) >= 9
    assert not [check for check in found if not check.off <= check.limit]


def test_every_native_case_is_listed(shared):
    root = shared / "reference" / "encoders"
    assert {name for name, _, checks in check_encoders.cases(root) if checks is check_encoders.native_checks} \
        == set(CASES)


@pytest.mark.parametrize("file", ["epoch_32.pt", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_every_file_of_a_folder_is_the_same_encoder(shared, file):
    from jclip_fewshot.clip.checkpoint import read_clip
    folder = shared / "reference" / "encoders" / "open_clip" / "vit_quickgelu"
    whole, one = read_clip(folder), read_clip(folder / file)
    assert one.sizes == whole.sizes and one.preprocessing == whole.preprocessing
    for name, array in whole.weights.items():
        assert abs(one.weights[name].astype("f4") - array).max() < 1e-2  # epoch_32.pt is in float16
