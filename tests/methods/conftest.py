"""What the tests of methods share: a case with everything at hand that a method may need, on a small CLIP."""

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.features.activations import Activations
from jclip_fewshot.features.encode import encode_images
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import Given, Queries, Unlabelled
from jclip_fewshot.task import Task
from tests.cases import small_clip

NAMES = ["fox", "panda", "dog", "pie"]
K, SHOTS_A_CLASS, TESTS, FREE = 4, 3, 6, 8
QUICK = {  # whatever trains, as short as it can be
    "jclip_adapter": {"epochs": 1}, "clip_adapter": {"epochs": 1}, "tip_adapter_f": {"epochs": 1},
    "cross_modal": {"epochs": 1}, "clap": {"epochs": 1}, "sus_x_f": {"epochs": 1},
    "last_block": {"epochs": 1}, "prolip": {"steps": 2}, "coop": {"steps": 2}, "clip_lora": {"steps_a_shot": 1},
    "two_stage": {"steps_a_shot": 1}, "vpt": {"epochs": 1, "prompts": 2}, "cocoop": {"batch": 3},
    "upl": {"per_class": 1, "starts": 2, "epochs": 1}, "lafter_text": {"text_steps": 3},
    "lafter": {"text_steps": 3, "epochs": 1, "batch": 4, "prompts": 2}, "clip_pr": {"epochs": (1, 1), "batch": 4},
    "clip_pr_tower": {"epochs": (1, 1), "tower_epochs": 1, "batch": 4},
    "fixmatch": {"epochs": 1, "batch_x": 4, "batch_u": 4}}


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """(task, what fits are given, test images as queries): pictures of a class are alike, and class 3 has no shot."""
    encoder, folder, rng = small_clip(), tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    kinds = rng.integers(0, 255, (K, 8, 8, 3))

    def paths(labels, what):
        found = []
        for number, label in enumerate(labels):
            noisy = np.clip(kinds[label] + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
            found.append(str(folder / f"{what}{number}.png"))
            Image.fromarray(noisy).resize((70, 64)).save(found[-1])
        return found
    shots, tests, free = (paths(np.arange(count) % (K - (what == "shot")), what) for what, count in
                          (("shot", SHOTS_A_CLASS * (K - 1)), ("test", TESTS), ("free", FREE)))
    sentences = encoder.tokens([f"a photo of a {name} ." for name in NAMES])
    text = encoder.texts(sentences)
    activations = Activations(encoder, shots, views=2, workers=0, class_tokens=sentences)
    task = Task(encode_images(encoder, shots, workers=0)[0], np.arange(len(shots)) % (K - 1), text)
    unlabelled = Unlabelled(encode_images(encoder, free, workers=0)[0], [row[None] for row in task.text], NAMES,
                            encoder, Activations(encoder, free).pixels)
    queries = Queries(encode_images(encoder, tests, workers=0)[0],
                      lambda make: encode_images(make(encoder), tests, workers=0)[0])
    return task, Given(activations, unlabelled), queries


@pytest.fixture
def quick(monkeypatch):
    """Short trainings, for one test."""
    for name, changes in QUICK.items():
        for key, value in changes.items():
            monkeypatch.setattr(METHODS[name], key, value)
