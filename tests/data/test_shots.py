"""Shots that stand for their class: covering, typical, deterministic."""

import itertools

import numpy as np
import pytest

from jclip_fewshot.data.shots import caution, choose_representative, medoids, representative

rng = np.random.default_rng(0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("m, k", [(6, 2), (8, 3), (7, 1)])
def test_medoids_are_near_the_best_of_all_choices(m, k):
    for seed in range(20):
        points = np.random.default_rng(seed).standard_normal((m, 2))
        distance = np.linalg.norm(points[:, None] - points[None], axis=2)
        cost = lambda chosen: distance[:, list(chosen)].min(axis=1).sum()  # noqa: E731
        best = min(cost(chosen) for chosen in itertools.combinations(range(m), k))
        found = medoids(distance, k)
        assert len(set(found)) == k and cost(found) <= 1.15 * best


def test_each_look_of_a_class_is_covered():
    looks = unit(rng.standard_normal((4, 64)))
    rows = unit(np.repeat(looks, 6, axis=0) + 0.02 * rng.standard_normal((24, 64)))
    text = unit(np.stack([looks.sum(axis=0), rng.standard_normal(64)]))
    chosen = representative(rows, 4, text, 0)
    assert sorted(index // 6 for index in chosen) == [0, 1, 2, 3]


def test_a_wrong_label_is_not_chosen():
    text = unit(rng.standard_normal((3, 64)))
    rows = unit(text[[0] * 19] + 0.05 * rng.standard_normal((19, 64)))
    rows = np.vstack([rows[:7], unit(text[1] + 0.01 * rng.standard_normal(64)), rows[7:]])  # row 7 is another class
    for k in (1, 4, 8):
        assert 7 not in representative(rows, k, text, 0)


def test_small_pools_and_single_classes():
    rows = unit(rng.standard_normal((3, 8)))
    assert representative(rows, 4, rows, 0) == [0, 1, 2]
    assert len(representative(unit(rng.standard_normal((9, 8))), 4, rows[:1], 0)) == 4
    same = np.repeat(rows[:1], 9, axis=0)
    assert len(set(representative(same, 4, rows, 0))) == 4


def test_classes_are_chosen_apart_and_order_does_not_matter():
    text = unit(rng.standard_normal((2, 16)))
    rows = unit(np.repeat(text, 10, axis=0) + 0.3 * rng.standard_normal((20, 16)))
    labelled = [(f"{i}.jpg", i // 10) for i in range(20)]
    chosen = choose_representative(labelled, rows, text, 4)
    assert [label for _, label in chosen] == [0] * 4 + [1] * 4
    order = rng.permutation(20)
    again = choose_representative([labelled[i] for i in order], rows[order], text, 4)
    assert sorted(again) == sorted(chosen)


def test_a_caution_where_shots_lie_far_apart():
    assert "pessimistic" in caution("representative")
    assert caution("random") == caution("representative", "list.txt") == ""
