"""Scores by counting, and the lines of images that nobody can read."""

import numpy as np
import pytest

from jclip_fewshot.data.data_set import UNKNOWN
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import (
    best_classes,
    refining_gain,
    score,
    score_methods,
    score_table,
    settings_table,
    truth_of,
    with_unreadable,
)

DOMAINS = ["Cat", "Cat", "Dog", "Dog", "Dog", "Dog"]


def test_score_by_hand():
    best = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [3, 2, 1, 0, 4], [5, 4, 3, 2, 1]])
    labels = np.array([0, 0, 2, 0])
    scores = score(best, labels, DOMAINS)
    assert scores["top1"] == 25 and scores["top5"] == 75
    assert scores["class_mean"] == pytest.approx((100 / 3 + 0) / 2)  # class 0: one of three, class 2: none
    assert scores["domains"]["Cat"] == {"n": 3, "top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}
    assert scores["domains"]["Dog"] == {"n": 1, "top1": 0, "top5": 100}


def test_classes_without_a_domain_are_in_no_domain():
    assert score(np.array([[0]]), np.array([0]), ["", ""])["domains"] == {}


def test_best_classes_breaks_ties_by_id_and_takes_all_of_few():
    assert best_classes(np.array([[1.0, 2, 2, 0, 5, 2, 1]])).tolist() == [[4, 1, 2, 5, 0]]
    assert best_classes(np.array([[0.1, 0.9]])).tolist() == [[1, 0]]


def test_unreadable_images_get_the_prior():
    probs = np.eye(6)[[2, 2, 4]] + 0.01 * np.arange(6)[::-1]
    lines = with_unreadable(best_classes(probs), probs, [0, 2, 3], 4)
    assert lines.shape == (4, 5)
    assert lines[0, 0] == 2 and lines[3, 0] == 4
    assert lines[1, :2].tolist() == [2, 4]


def test_all_images_unreadable():
    lines = with_unreadable(np.zeros((0, 5), int), np.zeros((0, 9)), [], 3)
    assert lines.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_truth_needs_every_answer():
    assert truth_of({"a.jpg": 1, "b.jpg": 0}, ["b.jpg", "a.jpg"]).tolist() == [0, 1]
    with pytest.raises(UserError, match="2 test images .b.jpg is the first"):
        truth_of({"a.jpg": 1}, ["a.jpg", "b.jpg", "c.jpg"])


def test_table_has_domains_only_where_they_differ():
    one = {"top1": 50.0, "top5": 90.0, "class_mean": 49.0, "domains": {"Dog": {"n": 2, "top1": 50.0, "top5": 90.0}}}
    assert "Dog" not in score_table({"zero_shot": one})
    two = {**one, "domains": {**one["domains"], "Cat": {"n": 1, "top1": 0.0, "top5": 0.0}}, "seconds": 1.0}
    text = score_table({"zero_shot": one, "ensemble": two})
    assert "Dog" in text and "Cat" in text and "seconds" in text
    header, dashes, *body = text.splitlines()
    assert len(dashes) == max(map(len, text.splitlines())) and len(header) <= len(dashes) and len(body) == 2
    assert all(row[header.index("top-1") + 4] in "0123456789" for row in body)  # columns end below their titles


def test_the_gain_of_refining_counts_from_what_it_started_with():
    scores = {"ensemble": {"top1": 70.0}, "ensemble_refined": {"top1": 75.0}}
    assert refining_gain(scores) == (70.0, 75.0)
    assert refining_gain({**scores, "ensemble_tuned": {"top1": 74.0}}) == (74.0, 75.0)
    assert refining_gain({"ensemble": {"top1": 70.0}}) is None


def test_the_table_of_settings_has_no_word_of_the_record_and_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = settings_table({"gda": {"text_shots": 1, "chosen_by": "log-loss", "converged": True, "alpha": [0.333] * 12,
                                   "held_out_top1": 81.25, "held_out_loss": 0.7},
                           "ensemble": {"bias_spread": 0.1, "unseen_offset": 1.25, "weights": {"gda": 1.0}}})
    lines = said.split("\n")
    assert lines[0].split() == ["method", "held", "out", "chosen", "on", "the", "shots"]
    assert "81.2  text shots 1, alpha [0.333" in lines[1] and max(map(len, lines)) <= 80
    assert not any(word in said for word in ("converged", "bias", "offset", "chosen_by", "held_out"))


def test_images_of_no_known_class_are_left_out_of_the_scores():
    probs = np.eye(6)[[0, 2, 5, 1]]
    scores = score_methods({"zero_shot": probs}, [0, 1, 2, 3], np.array([0, UNKNOWN, 5, 3]), DOMAINS)["zero_shot"]
    assert scores["top1"] == pytest.approx(200 / 3) and scores["domains"]["Dog"]["n"] == 2
