"""Which images a problem hands to whom."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from jclip_fewshot.config import TrainConfig
from jclip_fewshot.data.shots import choose_shots
from jclip_fewshot.problem import read_problem


def test_transductive_images_are_never_the_shots(tmp_path):
    """Without a test set the held-out images are the test, and the shots are not among them."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"")
    problem = read_problem(TrainConfig(data=str(tmp_path), transductive=True, methods="zero_shot"), 1)
    asked = []
    source = SimpleNamespace(images=lambda _, paths, **__: asked.extend(paths) or (np.zeros((len(paths), 3)), {}))
    shots = choose_shots(problem.data, 1)
    found = replace(problem, source=source, text=np.eye(2, 3)).unlabelled(shots)
    assert len(found.rows) == 6 and not set(asked) & {path for path, _ in shots}
