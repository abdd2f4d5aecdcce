import numpy as np
import pytest

from jclip_fewshot.task import Task, domain_indices, fold_of_shots, zero_shot_logits


def task_of(labels, num_classes=None) -> Task:
    rng = np.random.default_rng(0)
    num_classes = num_classes or max(labels, default=0) + 1
    return Task(rng.standard_normal((len(labels), 6)), labels, rng.standard_normal((num_classes, 6)))


def test_folds_leave_each_shot_out_once():
    labels = np.array([2, 0, 2, 1, 2, 0])
    assert fold_of_shots(labels).tolist() == [0, 0, 1, 0, 2, 1]
    folds = task_of(labels).folds()
    assert [fold.left_out.tolist() for fold in folds] == [[0, 1], [2, 5], [4]]
    for fold in folds:
        assert np.intersect1d(fold.kept, fold.left_out).size == 0
        assert sorted([*fold.kept, *fold.left_out]) == list(range(6))
        assert fold.task.seen.all()  # shot 3, the only one of its class, is kept
        assert (fold.task.labels == labels[fold.kept]).all()


def test_no_fold_where_nothing_can_be_left_out():
    assert task_of(np.arange(4)).folds() == [] and task_of(np.zeros(0, int), 3).folds() == []


def test_many_shots_share_four_folds():
    assert fold_of_shots(np.zeros(5, int), max_folds=2).tolist() == [0, 1, 0, 1, 0]
    assert [fold.left_out.tolist() for fold in task_of([0] * 6).folds()] == [[0, 4], [1, 5], [2], [3]]


def test_zero_shot_logits_follow_the_scale():
    task = task_of([0, 1, 2])
    half = Task(task.features, task.labels, task.text, scale=50.0)
    assert np.allclose(half.zero_shot(task.features), task.zero_shot(task.features) / 2, atol=1e-4)
    assert np.allclose(zero_shot_logits(task.features, task.text), 100 * task.features @ task.text.T, atol=1e-4)
    with pytest.raises(ValueError, match="scale"):
        Task(task.features, task.labels, task.text, scale=0.0)


def test_domains_are_numbered_by_first_appearance():
    assert domain_indices(["b", "a", "b"]).tolist() == [0, 1, 0]
