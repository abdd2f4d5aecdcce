"""The benchmark's data sets: a folder's shots and test rows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from jclip_fewshot.config import BenchmarkConfig
from jclip_fewshot.evaluation import benchmark
from jclip_fewshot.problem import Problem


def test_a_folder_gives_shots_by_the_seed_and_scores_what_has_a_known_class(tmp_path, monkeypatch):
    for part, names in (("train", "ab"), ("test", "abc")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                (tmp_path / part / name / f"{number}.jpg").write_bytes(b"")
    asked = []

    def images(_, paths, **how):
        asked.append((len(paths), how.get("views"), how.get("seed")))
        return np.stack([np.eye(2, 4)["ab".find(path.split("/")[1]) % 2] for path in paths]), {}

    source = SimpleNamespace(images=images, scale=100.0, parts=())
    text = np.eye(2, 4, dtype=np.float32)
    monkeypatch.setattr(Problem, "encode", lambda self: replace(self, source=source, text=text))
    settings = replace(BenchmarkConfig(data=(str(tmp_path),)), shots="1,2", seeds=2, augment=7)
    entry = benchmark._of_folder(str(tmp_path), settings, range(2))
    assert entry.counts == [1, 2] and asked[1:] == [(4, 7, 0), (4, 7, 1)]  # each seed's shots once, with its views
    suite = entry.suite(2, 1)
    assert len(suite.task) == 4 and suite.labels.tolist() == [0] * 3 + [1] * 3


def test_a_test_image_without_a_label_is_no_row(tmp_path, monkeypatch):
    """As an unreadable file that the list of labels does not name."""
    rows = np.eye(2, 4, dtype=np.float32)[[0, 1, 0]]
    tests = SimpleNamespace(names=["0.jpg", "1.jpg", "broken.jpg"], labels={"0.jpg": 0, "1.jpg": 1})
    data = SimpleNamespace(root=tmp_path, format="contest", train=[("a.jpg", 0), ("b.jpg", 1)], domains=["", ""],
                           class_names=["a", "b"], split=lambda used: tests)
    encoded = SimpleNamespace(source=None, task=lambda rows, labels: labels)
    monkeypatch.setattr(benchmark, "read_problem",
                        lambda *_, **__: SimpleNamespace(data=data, encode=lambda: encoded))
    monkeypatch.setattr(benchmark, "test_rows", lambda *_: (rows, {2: "no picture"}))
    monkeypatch.setattr(benchmark, "labelled_rows", lambda *_, **__: (rows[:2], data.train, {}))
    monkeypatch.setattr(benchmark, "draw_pool", lambda data, count, seed: data.train)
    settings = replace(BenchmarkConfig(data=(str(tmp_path),)), shots="1", seeds=1)
    suite = benchmark._of_folder(str(tmp_path), settings, range(1)).suite(1, 0)
    assert suite.labels.tolist() == [0, 1] and len(suite.features) == 2
