"""The numbers of a report, on answers small enough to count by hand."""

import numpy as np
import pytest

from jclip_fewshot.report import analysis
from jclip_fewshot.task import Task


def test_confused_pairs_count_both_ways():
    truth = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    guess = np.array([0, 1, 1, 0, 1, 0, 2, 2])
    pairs = analysis.confused_pairs(truth, guess)
    assert [(pair.first, pair.second, pair.total) for pair in pairs] == [(0, 1, 3), (2, 0, 1)]
    assert list(pairs[0].as_second) == [1, 2] and list(pairs[0].as_first) == [3]
    assert analysis.confused_pairs(truth, truth) == [] and len(analysis.confused_pairs(truth, guess, most=1)) == 1


def test_calibration_of_perfect_and_overconfident_answers():
    sure = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 5]
    assert analysis.calibration(sure, np.array([0, 1, 2, 3] * 5)).ece == 0
    assert analysis.calibration(sure, np.array([1, 2, 3, 0] * 5)).ece == pytest.approx(1)


def test_changed_rows_come_by_the_size_of_the_change():
    before = np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])
    after = np.array([[0.4, 0.6], [0.8, 0.2], [0.1, 0.9]])
    assert list(analysis.changed_rows(before, after)) == [2, 0]


def test_rejection_counts_what_is_lost():
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.45, 0.55], [0.2, 0.8]])
    truth = np.array([0, 0, 0, 0])
    none, half, all_of_them = analysis.rejection(probs, truth, (0.0, 0.7, 0.95))
    assert none[1:] == (0, 50, 0) and half[1:] == (50, 50, 25)
    assert all_of_them.rejected == 100 and np.isnan(all_of_them.accuracy) and all_of_them.lost == 50
    assert analysis.rejection(probs, None, (0.7,))[0][1:] == (50, None, None)


def test_domains_that_are_taken_for_each_other():
    found = analysis.domain_confusion(np.array([0, 1, 2, 2]), np.array([1, 2, 2, 0]), ["a", "a", "b"])
    assert found == {"a": {"a": 1, "b": 1}, "b": {"a": 1, "b": 1}}


def test_the_estimate_weighs_domains_as_the_answers_do():
    labels, domains = np.array([0, 0, 1, 1, 2]), ["a", "b", "b"]
    probs = np.eye(3)[[0, 0, 1, 0, 0]]  # class 2 has no other shot: it does not count
    guess = np.array([0, 0, 0, 1])
    found = analysis.held_out_estimate(probs, labels, domains, guess)
    assert found.top1 == pytest.approx(75 * 1.0 + 25 * 0.5) and found.shots == 4
    assert found.error == pytest.approx(100 * np.sqrt(0.75 ** 2 * 0.75 * 0.25 / 2 + 0.25 ** 2 * 0.25 / 2))
    assert analysis.held_out_estimate(probs[[0, 2]], labels[[0, 2]], domains, guess) is None
    assert analysis.held_out_estimate(probs, labels, domains, guess[:0]) is None


def test_nearest_shots_are_of_the_class_that_is_asked_for():
    eye = np.eye(3, dtype=np.float32)
    task = Task(np.array([[0.6, 0.8, 0], [0.8, 0.6, 0], [1, 0, 0]], np.float32), [0, 0, 1], eye)
    found = analysis.nearest_shots(eye[[0, 0, 1]], eye[[1, 1, 1]], np.array([0, 2, 0]), task)
    assert list(found["nearest_truth"]) == [1, -1, 0]
    assert found["nearest_truth_cosine"] == pytest.approx([0.8, 0, 0.8])
    assert list(found["nearest_guess"]) == [2, 2, 2]
    assert set(analysis.nearest_shots(eye, eye, None, task)) == {"nearest_guess", "nearest_guess_cosine"}
