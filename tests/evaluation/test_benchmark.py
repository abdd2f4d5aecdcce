"""The papers' protocol: cells, what is not repeated, CoOp's draws, published numbers only where they compare."""

import json

import numpy as np
import pytest

from jclip_fewshot import problem
from jclip_fewshot.config import BenchmarkConfig
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation import benchmark as field
from jclip_fewshot.evaluation.evaluate import evaluate
from jclip_fewshot.evaluation.suites import load_suite, with_shots
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.storage.json_files import read_json
from tests.evaluation.suites import small_suite

# drawn by Dassl's generate_fewshot_dataset, which CoOp's data sets call, after random.seed: (seed, shots) -> indices
LABELS = [2] * 6 + [0] * 5 + [1] * 3 + [2] * 2 + [0] * 2
DRAWN = {(1, 2): [2, 4, 6, 11, 12, 17], (2, 4): [0, 2, 7, 8, 10, 11, 12, 14, 15, 17], (3, 1): [3, 10, 13]}


@pytest.fixture
def settings(tmp_path):
    files = [str(small_suite(tmp_path / "a.npz")), str(small_suite(tmp_path / "b.npz", task=2, seed=1))]
    return BenchmarkConfig(data=tuple(files), methods="tip_adapter,gda", shots="1,2,4", seeds=2,
                           out=str(tmp_path / "out"))


def changed(settings, **changes):
    return BenchmarkConfig(**{**vars(settings), **changes})


@pytest.mark.parametrize("seed, shots", DRAWN)
def test_shots_are_drawn_as_coop_draws_them(seed, shots):
    assert field.coop_draw(LABELS, shots, seed) == DRAWN[seed, shots]


def test_cells_are_what_evaluate_says(settings, tmp_path, capsys):
    results = field.benchmark(settings)
    assert "b has 2 shots a class, fewer than 4: it is run with 1, 2" in capsys.readouterr().err
    assert [(cell.data, cell.shots, cell.seed) for cell in results.cells] == [
        ("a", count, seed) for count in (1, 2, 3) for seed in (0, 1)] + [
        ("b", count, seed) for count in (1, 2) for seed in (0, 1)]
    alone = evaluate(with_shots(load_suite(tmp_path / "a.npz"), 2, 1), Pipeline("tip_adapter,gda", 1))
    cell = next(cell for cell in results.cells if (cell.data, cell.shots, cell.seed) == ("a", 2, 1))
    assert {name: row["top1"] for name, row in cell.methods.items()} == {
        name: row["top1"] for name, row in alone["methods"].items()}
    curves = field.curves(results)
    both = [curves[name][2]["gda"]["top1"] for name in ("a", "b")]
    assert curves["mean of 2 data sets"][2]["gda"]["top1"] == pytest.approx(np.mean(both, axis=0))
    table = field.tables(results)
    assert "a: 6 classes, 48 test images" in table and "mean of 2 data sets\n" in table and " ± " in table
    assert json.loads((tmp_path / "out" / field.RESULTS).read_text())["coop_seeds"] is False


def test_a_later_call_goes_on(settings, tmp_path, monkeypatch):
    few = changed(settings, shots="1", seeds=1)
    first = field.benchmark(few)
    asked = []
    monkeypatch.setattr(field, "evaluate",
                        lambda suite, pipeline: asked.append(suite.name) or evaluate(suite, pipeline))
    again = field.benchmark(few)
    assert asked == [] and [cell.methods for cell in again.cells] == [cell.methods for cell in first.cells]
    field.benchmark(changed(few, shots="1,2"))
    assert asked == ["a", "b"]
    field.benchmark(changed(few, methods="gda"))  # other methods, other numbers
    assert asked == ["a", "b"] * 2
    small_suite(tmp_path / "b.npz", task=2, seed=5)
    field.benchmark(changed(few, methods="gda"))
    assert asked == ["a", "b"] * 2 + ["b"]
    kept = read_json(tmp_path / "out" / field.RESULTS, field.Results).cells
    assert {(cell.data, cell.shots) for cell in kept} == {("a", 1), ("b", 1), ("a", 2), ("b", 2)}


class Source:
    """Rows by the image's folder."""

    scale, parts, model = 100.0, (), None

    def __init__(self, names):
        self.names, self.asked = names, []

    def texts(self, *_):
        return np.eye(len(self.names), 16, dtype=np.float32)

    def images(self, _, paths, seed=0, **__):
        self.asked += [(path, seed) for path in paths]
        rows = [np.eye(len(self.names), 16)[self.names.index(path.split("/")[-2])] for path in paths]
        return np.float32(rows) + 0.3 * np.random.default_rng(len(paths)).random((len(paths), 16), np.float32), {}


@pytest.fixture
def split(tmp_path, monkeypatch):
    """A folder with CoOp's split file, whose order is nobody else's."""
    names, rng = ["ant", "bee", "cat"], np.random.default_rng(0)
    entries = [[f"{name}/{number}.png", label, name] for label, name in enumerate(names) for number in range(8)]
    for path, _, _ in entries:
        (tmp_path / "data/images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/images" / path).write_bytes(b"")
    entries = [entries[i] for i in rng.permutation(len(entries))]
    (tmp_path / "data/split_zhou_Caltech101.json").write_text(json.dumps(
        {"train": entries[:16], "val": [], "test": entries[16:]}))
    source = Source(names)
    monkeypatch.setattr(problem, "open_source", lambda *_, **__: source)
    return tmp_path / "data", entries[:16], source


def test_a_folder_is_encoded_once_and_drawn_in_the_files_order(settings, split):
    root, entries, source = split
    assert [path for path, _ in read_data_set(root).train] == [f"images/{path}" for path, _, _ in entries]
    results = field.benchmark(changed(settings, data=(str(root),), shots="1,2", coop_seeds=True))
    assert [(cell.shots, cell.seed, cell.n) for cell in results.cells] == [
        (1, 1, 8), (1, 2, 8), (2, 1, 8), (2, 2, 8)]
    assert len(source.asked) == len(set(source.asked))
    wanted = {f"images/{entries[index][0]}" for count in (1, 2)
              for index in field.coop_draw([label for _, label, _ in entries], count, 1)}
    assert {path for path, seed in source.asked if seed == 1} == wanted
    assert [row["method"] for row in results.quoted["data"]] == ["Zero-shot"]
    assert "Zero-shot (quoted)" in field.tables(results) and "Wang et al. 2024" in field.tables(results)


def test_published_numbers_stand_where_the_protocol_is_the_same():
    entry = field.Entry("x", [4, 16], lambda *_: None, "Caltech101", ("ViT-B/32",))
    assert [(row["method"], row["shots"]) for row in field.quoted(entry, True)] == [("GDA", 16), ("Zero-shot", 0)]
    assert [row["method"] for row in field.quoted(entry, False)] == ["Zero-shot"]
    assert field.quoted(field.Entry("x", [16], lambda *_: None, "Caltech101", ("mine.pt",)), True) == []
    assert field.quoted(field.Entry("x", [16], lambda *_: None, "", ("ViT-B/32",)), True) == []


@pytest.mark.parametrize("changes, message", [
    ({"methods": "gad"}, "unknown method 'gad'"), ({"methods": "coop"}, "coop works inside a CLIP's image tower"),
    ({"shots": "1,x"}, "--shots takes numbers"), ({"out": "/dev/full"}, "--out /dev/full"),
    ({"data": ("x/a.npz", "y/a.npz")}, "two of the data sets are called a.npz")])
def test_what_cannot_be_done_is_said_before_the_work(settings, changes, message):
    with pytest.raises(UserError, match=message):
        field.require_sound(changed(settings, **changes))


def test_coops_draws_need_its_split_file(settings, split):
    root, _, _ = split
    (root / "split_zhou_Caltech101.json").unlink()
    (root / "images").rename(root / "train")
    with pytest.raises(UserError, match="--coop-seeds: .* is read as tree"):
        field.benchmark(changed(settings, data=(str(root),), coop_seeds=True))


def test_a_test_set_without_labels(settings, split):
    root, _, _ = split
    (root / "split_zhou_Caltech101.json").unlink()
    (root / "images").rename(root / "train")
    (root / "test").mkdir()
    (root / "test/1.png").write_bytes(b"")
    with pytest.raises(UserError, match="nothing can be scored"):
        field.benchmark(changed(settings, data=(str(root),)))


def test_a_picture_has_a_panel_a_data_set(settings):
    pytest.importorskip("matplotlib")
    from jclip_fewshot.report.figures import shot_curves
    curves = field.curves(field.benchmark(changed(settings, shots="1,2")))
    picture = shot_curves(curves)
    assert all(name in picture.wide.light for name in curves) and picture.png.startswith(b"\x89PNG")
