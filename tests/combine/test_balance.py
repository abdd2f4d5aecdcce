"""Equally frequent classes: found where they are, not where they are not, and what it is worth, by property."""

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import softmax
from jclip_fewshot.combine.balance import balanced_set, balanced_shares, balancing_weights
from tests.combine.test_refinement import guests

CLASSES, FOLDS = 120, 4
ALL = np.ones(CLASSES, bool)


class Classifier:
    """Bayes' rule on noisy evidence, right in three of four answers, but for its liking of some classes."""

    def __init__(self, seed, noise=0.6, liking=0.3):
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.liking = liking / noise * self.rng.standard_normal(CLASSES)

    def __call__(self, labels):
        seen = np.eye(CLASSES)[labels] + self.noise / 2 * self.rng.standard_normal((len(labels), CLASSES))
        return softmax((seen / (self.noise / 2) ** 2 + self.liking).astype(np.float32))

    def folds(self, bias=0.0):
        found = []
        for _ in range(FOLDS):
            probs = self(np.arange(CLASSES)) * np.exp(bias)
            found.append(guests(probs / probs.sum(1, keepdims=True), np.arange(CLASSES), bias))
        return found


def top1(probs, labels):
    return 100 * np.mean(probs.argmax(1) == labels)


@pytest.mark.parametrize("images", [1, 2, 5, 20])
def test_a_balanced_set_is_found_and_gains(images):
    betas, gains = [], []
    for seed in range(8):
        classifier, labels = Classifier(seed), np.repeat(np.arange(CLASSES), images)
        probs = classifier(labels)
        shares, found = balanced_shares(probs, classifier.folds(), ALL)
        betas.append(found["beta"])
        if shares is not None:
            assert found["spread"] == pytest.approx(found["spread_if_balanced"], rel=0.25)
            gains.append(top1(softmax(np.log(probs) + balancing_weights(probs, shares)), labels) - top1(probs, labels))
    assert np.mean(betas) > 0.4 and min(gains) >= 0 and np.mean(gains) > 0.5, (betas, gains)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", ["tail", "half", "poisson 1", "few"])
def test_an_unbalanced_set_stays_as_it_is(seed, counts):
    rng = np.random.default_rng(seed)
    numbers = {"tail": np.round(30 * 0.96 ** np.arange(CLASSES)).astype(int), "half": 8 * (np.arange(CLASSES) % 2),
               "poisson 1": rng.poisson(1.3, CLASSES), "few": 20 * (np.arange(CLASSES) < 5)}[counts]
    classifier = Classifier(seed)
    shares, found = balanced_shares(classifier(np.repeat(np.arange(CLASSES), numbers)), classifier.folds(), ALL)
    assert shares is None and found["beta"] == 0


def test_few_classes_cannot_show_how_much_they_vary():
    classifier = Classifier(0)
    folds = [guests(classifier(np.arange(12))[:, :12], np.arange(12)) for _ in range(FOLDS)]
    probs = classifier(np.repeat(np.arange(12), 5))[:, :12]
    assert balanced_shares(probs / probs.sum(1, keepdims=True), folds, ALL[:12])[0] is None


def test_fewer_images_than_classes_cannot_be_balanced():
    classifier = Classifier(0)
    assert balanced_shares(classifier(np.arange(CLASSES // 2)), classifier.folds(), ALL)[0] is None


def test_one_fold_cannot_say():
    classifier = Classifier(0)
    assert balanced_shares(classifier(np.arange(CLASSES)), classifier.folds()[:1], ALL)[0] is None


def test_the_class_bias_of_the_answers_is_taken_back():
    bias = np.random.default_rng(1).standard_normal(CLASSES)
    with_bias, without = (balanced_set(Classifier(2).folds(one), CLASSES) for one in (bias, 0.0))
    assert with_bias == pytest.approx(without, rel=1e-4)


def test_expected_spread_is_that_of_balanced_sets():
    """V_0 against many balanced sets of the same classifier."""
    for images in (1, 4):
        expected, seen = [], []
        for seed in range(12):
            classifier = Classifier(seed)
            mass = classifier(np.repeat(np.arange(CLASSES), images)).sum(0)
            expected.append(balanced_set(classifier.folds(), CLASSES).spread(images))
            seen.append((mass / mass.mean()).var())
        assert np.mean(expected) == pytest.approx(np.mean(seen), rel=0.15)


def fold_of(classifier, labels):
    return guests(classifier(labels), labels)


def test_shots_that_are_not_equally_many_are_no_imbalance():
    """In a plain tree some classes have fewer shots: folds that lack them do not say how classes spread."""
    labels, classifier = [np.arange(CLASSES)] * 3 + [np.arange(CLASSES // 2)] * 2, Classifier(0)
    folds = [fold_of(classifier, one) for one in labels]
    assert balanced_set(folds, CLASSES) == balanced_set(folds[:3], CLASSES)
    assert balanced_set(folds[2:], CLASSES) is None  # one whole fold


def test_several_shots_of_a_class_in_a_fold():
    """nu is the variance of single images, however many a fold leaves out."""
    found = [np.mean([balanced_set([fold_of(classifier, np.repeat(np.arange(CLASSES), shots)) for _ in range(FOLDS)],
                                   CLASSES).single for classifier in map(Classifier, range(8))]) for shots in (1, 4)]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_a_few_classes_with_shots_to_leave_out_do_not_speak_for_all():
    classifier = Classifier(0)
    folds = [fold_of(classifier, np.arange(30)) for _ in range(FOLDS)]
    assert balanced_set(folds, CLASSES).classes == 30
    assert balanced_shares(classifier(np.repeat(np.arange(CLASSES), 5)), folds, ALL)[0] is None


def test_what_the_answers_show_of_a_surplus():
    """V - V_0 = a^2 (variance of the true shares): weak answers hide an imbalance, which must not pass for balance."""
    for noise in (0.5, 0.9, 1.3):
        ratios = []
        for seed in range(8):
            classifier = Classifier(seed, noise, liking=0.1)
            counts = np.random.default_rng(seed).poisson(2.0, CLASSES)
            mass = classifier(np.repeat(np.arange(CLASSES), counts)).sum(0)
            balanced = balanced_set(classifier.folds(), CLASSES)
            hidden = (mass / mass.mean()).var() - balanced.spread(mass.mean())
            ratios.append(hidden / balanced.shown ** 2 / (counts / counts.mean()).var())
        assert 0.6 < np.mean(ratios) < 1.4, (noise, ratios)


def test_weights_bring_the_shares_about():
    rng = np.random.default_rng(0)
    probs = softmax(2 * rng.standard_normal((900, CLASSES)).astype(np.float32))
    shares = rng.dirichlet(20 * np.ones(CLASSES))
    balanced = softmax(np.log(probs) + balancing_weights(probs, shares))
    np.testing.assert_allclose(balanced.mean(0), shares, atol=2e-4)


def test_classes_without_shots_keep_their_share():
    classifier, seen = Classifier(0, noise=0.5), np.arange(CLASSES) < 100
    probs = classifier(np.repeat(np.arange(CLASSES), 5))
    folds = [fold_of(classifier, np.arange(100)) for _ in range(FOLDS)]
    shares, found = balanced_shares(probs, folds, seen)
    assert found["beta"] > 0 and shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares[~seen], probs.mean(0)[~seen], rtol=1e-5)
    assert shares[seen].std() < 0.8 * probs.mean(0)[seen].std()
