"""A small data set and a run on it, for all tests of the scripts."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.scripts import TRAIN, call

DOMAINS = ("Cat", "Dog")


@pytest.fixture(scope="session")
def contest(tmp_path_factory):
    """Six classes of two domains, tiny images, and a file of features that stands for CLIP."""
    root = tmp_path_factory.mktemp("contest")
    rng = np.random.default_rng(0)
    names = [f"{domain}_{name}" for domain in DOMAINS for name in ("a", "b", "c")]
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    text = unit(rng.standard_normal((6, 32)) + 2)
    (root / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(names)))
    paths, features, lists, answers = [], [], [], []

    def add(path, label):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(root / path)
        paths.append(path)
        features.append(unit(text[label] + 0.5 * rng.standard_normal(32) / np.sqrt(32)))

    for label, name in enumerate(names):
        for n in range(6):
            add(f"TrainSet/{name.replace('_', '/')}/{n}.jpg", label)
            lists.append(f"{paths[-1]} {label}\n")
    for n in range(1, 31):
        add(f"TestSetA/image_{n}.{'jpeg' if n % 7 == 0 else 'jpg'}", n % 6)
        answers.append(f"{paths[-1].split('/')[1]} {n % 6}\n")
    (root / "train.txt").write_text("".join(lists))
    (root / "labels_TestSetA.txt").write_text("".join(answers))
    np.savez(root / "features.npz", path=np.array(paths), feature=np.array(features, np.float16), text=text,
             classes=np.array(names))
    return root


@pytest.fixture(scope="session")
def trained(contest):
    done = call(contest, *TRAIN, "--name", "base")
    assert done.returncode == 0, done.stderr
    return contest / "runs/base"
