"""What decides a refinement's strength and its class weights, by property."""

import numpy as np
import pytest

from jclip_fewshot.backend.numerics import softmax
from jclip_fewshot.combine.strength import (
    MOST,
    ClassWeights,
    HeldOutFold,
    balanced_shares,
    balancing_weights,
    by_images,
    by_shots,
    choose_concentration,
    class_weights,
    classes_present,
    one_less,
)

CLASSES, FOLDS = 120, 4
ALL = np.ones(CLASSES, bool)


def held_out(probs, labels, class_bias=0.0):
    """A fold of which only the answers to its held-out shots are asked."""
    return HeldOutFold(None, np.empty((len(labels), 0)), labels, lambda rows: probs, class_bias)


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
            found.append(held_out(probs / probs.sum(1, keepdims=True), np.arange(CLASSES), bias))
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
    folds = [held_out(classifier(np.arange(12))[:, :12], np.arange(12)) for _ in range(FOLDS)]
    probs = classifier(np.repeat(np.arange(12), 5))[:, :12]
    assert balanced_shares(probs / probs.sum(1, keepdims=True), folds, ALL[:12])[0] is None


def test_fewer_images_than_classes_cannot_be_balanced():
    classifier = Classifier(0)
    assert balanced_shares(classifier(np.arange(CLASSES // 2)), classifier.folds(), ALL)[0] is None


def test_one_fold_cannot_say():
    classifier = Classifier(0)
    assert balanced_shares(classifier(np.arange(CLASSES)), classifier.folds()[:1], ALL)[0] is None


def expected_spread(folds, images, classifier, seen=ALL):
    """The standard deviation of relative class masses that a balanced set would show, or None."""
    probs = classifier(np.repeat(np.arange(CLASSES), images))
    return balanced_shares(probs, folds, seen)[1].get("spread_if_balanced")


def test_the_class_bias_of_the_answers_is_taken_back():
    bias = np.random.default_rng(1).standard_normal(CLASSES)
    with_bias, without = (expected_spread(Classifier(2).folds(one), 4, Classifier(5)) for one in (bias, 0.0))
    assert with_bias == pytest.approx(without, rel=1e-4)


def test_expected_spread_is_that_of_balanced_sets():
    """V_0 against many balanced sets of the same classifier."""
    for images in (1, 4):
        expected, seen = [], []
        for seed in range(12):
            classifier = Classifier(seed)
            mass = classifier(np.repeat(np.arange(CLASSES), images)).sum(0)
            expected.append(expected_spread(classifier.folds(), images, classifier) ** 2)
            seen.append((mass / mass.mean()).var())
        assert np.mean(expected) == pytest.approx(np.mean(seen), rel=0.15)


def fold_of(classifier, labels):
    return held_out(classifier(labels), labels)


def test_shots_that_are_not_equally_many_are_no_imbalance():
    """In a plain tree some classes have fewer shots: folds that lack them do not say how classes spread."""
    labels, classifier = [np.arange(CLASSES)] * 3 + [np.arange(CLASSES // 2)] * 2, Classifier(0)
    folds = [fold_of(classifier, one) for one in labels]
    spreads = [expected_spread(some, 5, Classifier(1)) for some in (folds, folds[:3], folds[2:])]
    assert spreads[0] == pytest.approx(spreads[1]) and spreads[2] is None  # one whole fold


def test_several_shots_of_a_class_in_a_fold():
    """The variance between single images does not depend on how many a fold leaves out."""
    found = []
    for shots in (1, 4):
        labels = np.repeat(np.arange(CLASSES), shots)
        found.append(np.mean([expected_spread([fold_of(one, labels) for _ in range(FOLDS)], 1, one)
                              for one in map(Classifier, range(8))]))
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_a_few_classes_with_held_out_shots_do_not_speak_for_all():
    classifier = Classifier(0)
    folds = [fold_of(classifier, np.arange(30)) for _ in range(FOLDS)]
    assert balanced_shares(classifier(np.repeat(np.arange(CLASSES), 5)), folds, ALL)[0] is None


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


def test_weights_silence_absent_classes_only():
    base = softmax(3 * np.random.default_rng(0).standard_normal((40, 6)))
    np.testing.assert_array_equal(ClassWeights(6).apply(base.copy()), base)
    base[:, 5] *= 1e-3
    base /= base.sum(1, keepdims=True)
    kept = base.copy()
    settled = ClassWeights(5, True, 0.1, 8.0).apply(base)
    assert (settled[:, 5] < 0.1 * base[:, 5]).all() and settled[:, :5].sum() > base[:, :5].sum()
    np.testing.assert_array_equal(base, kept)


def test_an_unsure_classifier_that_favours_classes_is_no_sign_of_absent_ones():
    """All classes are present; a quarter of them wins most answers, on the held-out shots as on the images."""
    rng, few = np.random.default_rng(3), 24
    favour = np.where(np.arange(few) < few // 4, 4.0, 0.0)

    def drawn(labels):
        return softmax(1.5 * np.eye(few)[labels] + favour + rng.standard_normal((len(labels), few)))

    images, shots = drawn(np.repeat(np.arange(few), 20)), drawn(np.repeat(np.arange(few), 4))
    assert choose_concentration(images) < 1  # by the images alone most classes are absent
    folds = [held_out(shots[n::4], np.arange(few)) for n in range(4)]
    assert not class_weights(images, folds, ALL[:few])[0].sparse
    sure = softmax(9 * np.eye(few)[np.repeat(np.arange(few), 4)] + rng.standard_normal((4 * few, few)))
    folds = [held_out(sure[n::4], np.arange(few)) for n in range(4)]
    present = softmax(9 * np.eye(few)[np.repeat(np.arange(2), 40)])
    assert class_weights(present, folds, ALL[:few])[0].sparse


def test_classes_present_without_shots():
    rng = np.random.default_rng(1)

    def answers(labels):
        return softmax(6 * np.eye(40)[labels] + rng.standard_normal((len(labels), 40)))

    assert classes_present(answers(np.repeat(np.arange(40), 8))) > 35
    assert classes_present(answers(np.repeat(np.arange(4), 20))) < 15


def test_concentration_tells_sparse_from_dense():
    rng = np.random.default_rng(2)

    def drawn(labels):
        return softmax(2 * rng.standard_normal((len(labels), 50)) + 5 * np.eye(50)[labels])

    assert choose_concentration(drawn(rng.integers(0, 4, 75))) < 1
    assert choose_concentration(drawn(np.repeat(np.arange(50), 10))) >= 1


def test_one_image_of_every_class_is_taken_out_for_the_check():
    kept = one_less(np.array([0, 0, 0, 2, 5, 5]))
    assert np.bincount(np.array([0, 0, 0, 2, 5, 5])[kept], minlength=6).tolist() == [2, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("c", [0.7, 5.0, 11.0])
def test_the_strength_without_shots_is_the_temperature_of_the_answers(c):
    e = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    found = by_images(softmax(np.float32(c) * e), e, 300, 8, False)
    assert found["weight"] == pytest.approx(c, rel=0.05) and found["apart"] < 1e-3
    assert by_images(softmax(99 * e), e, 300, 8, True)["weight"] == pytest.approx(MOST, rel=0.05)


def fold_with_evidence(seed, scale):
    """A fold whose answers are right in most cases and too unsure, and the images (N, K) that they stand for."""
    rng, few = np.random.default_rng(seed), 8
    labels = np.tile(np.arange(few), 20)
    logits = (scale * (2 * np.eye(few)[labels] + rng.standard_normal((len(labels), few)))).astype(np.float32)
    probs = softmax(logits)
    return HeldOutFold(None, np.empty((len(labels), 0)), labels, lambda rows: probs[:len(rows)]), probs, logits


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_evidence_that_only_makes_answers_surer_is_no_gain(scale):
    """It repeats the start: only the temperature differs, however unsure or too sure the start was."""
    fold, probs, logits = fold_with_evidence(0, scale)
    found = by_shots(probs, np.empty((len(probs), 0)), [fold], ClassWeights(8), False,
                     lambda rows, settled, fold: logits)
    assert found["weight"] == 0, found


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_evidence_with_news_gains_and_its_temperature_follows(scale):
    fold, probs, _ = fold_with_evidence(0, scale)
    news = 0.3 * np.random.default_rng(1).standard_normal((len(probs), 8)) + 0.3 * np.eye(8)[fold.labels]
    found = by_shots(probs, np.empty((len(probs), 0)), [fold], ClassWeights(8), False,
                     lambda rows, settled, fold: news.astype(np.float32))
    assert found["weight"] > 0 and found["gain"] > found["error"]
