"""The local leaderboard: errors, draws, what a rank does."""

from collections import Counter

import numpy as np
import pytest

from jclip_fewshot import problem
from jclip_fewshot.backend import ranks
from jclip_fewshot.config import ValidateConfig
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation import validate as validation
from jclip_fewshot.evaluation.scores import gain_text, table


class Source:
    """Rows by class, a little off for every seed of the views; counts what it is asked."""

    scale, parts, clip = 100.0, (), None

    def __init__(self, names):
        self.names, self.asked = names, []
        self.text = np.eye(len(names), 16, dtype=np.float32)

    def texts(self, class_names, sentences):
        return self.text

    def images(self, root, paths, views=0, seed=0, stage="images", test_views=1):
        self.asked.append((len(paths), views, seed, stage))
        rng = np.random.default_rng([seed if views else 0, len(paths)])
        return np.stack([self.text[self.names.index(path.split("/")[-2])] for path in paths]
                        ) + 0.3 * rng.standard_normal((len(paths), 16)).astype(np.float32), {}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    names = ["ant", "bee", "cat"]
    for name in names:
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(6):
            (folder / f"{number}.png").write_bytes(b"")
    source = Source(names)
    monkeypatch.setattr(problem, "open_source", lambda *_, **__: source)
    return tmp_path, source


def settings(root, **changes):
    return ValidateConfig(data=str(root), methods="tip_adapter", augment=2, per_class=2, shots="2", seeds=2,
                          **changes)


def test_every_seed_draws_other_views_too(tree):
    root, source = tree
    results = validation.validate(settings(root))
    assert {(views, seed) for _, views, seed, _ in source.asked} == {(0, 0), (2, 0), (2, 1)}
    assert 3 <= results["n"] <= 6
    row = results["curve"][2]["ensemble"]
    assert len(row["top1"]) == len(row["error"]) == 2


def test_held_out_images_are_no_shots_are_drawn_anew_and_are_not_equally_many(tree):
    root, _ = tree
    data = problem.read_problem(settings(root), 2).data
    draws = [validation.hold_out(data, 4, 2, seed) for seed in range(20)]
    for held, rest in draws:
        assert not set(held) & set(rest.train) and sorted([*held, *rest.train]) == sorted(data.train)
        assert min(Counter(label for _, label in rest.train).values()) >= 2
    counts = [tuple(Counter(label for _, label in held).values()) for held, _ in draws]
    assert len({tuple(held) for held, _ in draws}) > 10 and {n for one in counts for n in one} == {1, 2, 3, 4}
    with pytest.raises(UserError, match="no class has more than 6"):
        validation.hold_out(data, 4, 6)


def test_representative_shots(tree):
    root, source = tree
    validation.validate(settings(root, select="representative"))
    assert [stage for *_, stage in source.asked].count("pool") == 2


def test_only_the_first_rank_fits(tree, monkeypatch):
    root, source = tree
    monkeypatch.setattr(ranks, "first", lambda: False)
    monkeypatch.setattr(validation, "Pipeline", None)  # would raise
    assert validation.validate(settings(root)) is None
    assert [stage for *_, stage in source.asked] == ["held out, seed 0", "2 shots, seed 0", "held out, seed 1",
                                                     "2 shots, seed 1"]


def test_sampling_error_is_that_of_a_binomial_and_of_strata():
    rng = np.random.default_rng(0)
    hits = rng.random(400) < 0.8
    share = hits.mean()
    assert validation.sampling_error(hits, [""] * 400) == pytest.approx(100 * np.sqrt(share * (1 - share) / 400))
    domains = np.repeat(["x", "y"], 200)
    mix = {"x": 0.9, "y": 0.1}
    draws = [sum(w * rng.choice(hits[domains == d], 200).mean() for d, w in mix.items()) for _ in range(4000)]
    assert validation.sampling_error(hits, domains, mix) == pytest.approx(100 * np.std(draws), rel=0.06)


@pytest.mark.parametrize("text", ["", "six", "0", "1,,2", "-1", "9" * 5000, "1\n2"])
def test_shots_that_are_no_numbers(text):
    with pytest.raises(UserError, match="--shots takes numbers"):
        validation.parse_shots(text)


def test_tables_fit_their_terminal(monkeypatch):
    header = ["method", "top-1", "top-5", "class mean", "Animal", "Caltech-101", "Food-101", "Thu-dog", "seconds"]
    rows = [["ensemble_refined", "81.11", "93.33", "80.11", "88.1", "99.1", "88.1", "77.1", "12.1"]]

    def shown(width):
        monkeypatch.setenv("COLUMNS", str(width))
        return table(header, rows, keep=4)

    for width in (60, 70, 80, 91, 200):
        text = shown(width)
        assert max(map(len, text.splitlines())) <= width and "81.11" in text and "80.11" in text
        assert ("12.1" in text) == (width >= 80)
    assert "Thu-dog" in shown(60)  # said to be left out
    assert shown(91).splitlines()[0].startswith("method            top-1")


def test_what_refining_did_is_said(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    scores = {"ensemble": {"top1": 80.0}, "ensemble_refined": {"top1": 81.5}}
    assert "gained 1.50 points" in gain_text(scores) and "--refine off" in gain_text(scores)
    assert "lost 0.50 points" in gain_text({**scores, "ensemble_refined": {"top1": 79.5}})
    assert gain_text({"ensemble": {"top1": 80.0}}) == ""


def test_a_method_that_few_shots_cannot_have_leaves_its_cell_empty():
    row = {"top1": [70.0, 72.0]}
    curve = {1: {"gda": row, "ensemble": row}, 4: {"gda": row, "token_gda": row, "ensemble": row}}
    lines = validation.shot_curve(curve).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["gda", "token_gda", "ensemble"]
    assert lines[3].split() == ["token_gda", "71.00", "±", "1.41"]
