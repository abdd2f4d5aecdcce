"""Several encoders: joined rows, methods of each, what is saved, and what is refused."""

import numpy as np
import pytest

from jclip_fewshot.classifier import FewShotClassifier
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods.plan import names_on
from jclip_fewshot.methods.rows.gda import GDA
from jclip_fewshot.methods.rows.linear_probe import LinearProbe
from jclip_fewshot.methods.rows.proker import ProKeR
from jclip_fewshot.methods.rows.tip_adapter import TipAdapter
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from jclip_fewshot.task import EncoderSlice, Task, joined
from tests.cases import BOTH, FIRST, LABELS, NO_TEXT, QUICK, SECOND, TRUTH, K, one_encoder, two_encoders


def top1(logits):
    return 100 * (logits.argmax(axis=1) == TRUTH).mean()


def test_an_encoder_sees_its_own_columns():
    task = two_encoders()
    np.testing.assert_allclose(task.of("a").features, FIRST[1], atol=1e-6)
    np.testing.assert_allclose(task.of("b").text, SECOND[0], atol=1e-6)
    assert task.of("") is task and task.of("b").scale == 100
    for fold in task.folds():
        np.testing.assert_allclose(fold.task.of("b").features, SECOND[1][fold.kept], atol=1e-6)


def test_joined_zero_shot_is_the_mean_of_the_encoders_with_text():
    rows = joined([FIRST[2], SECOND[2]])
    each = [100 * one[2] @ one[0].T for one in (FIRST, SECOND)]
    np.testing.assert_allclose(two_encoders().zero_shot(rows), np.mean(each, axis=0), atol=1e-3)
    np.testing.assert_allclose(two_encoders(NO_TEXT).zero_shot(rows), each[0], atol=1e-3)


@pytest.mark.parametrize("make", [GDA, ProKeR, TipAdapter])
def test_without_text_the_first_encoders_logits_are_corrected(make):
    task = two_encoders(NO_TEXT).of("b")
    rows = joined([FIRST[2], SECOND[2]])
    nothing = make(alpha=0.0).fit(task)
    np.testing.assert_allclose(nothing.logits(rows), 100 * FIRST[2] @ FIRST[0].T, atol=1e-3)
    fitted = make().fit(task)
    assert top1(fitted.logits(rows)) > top1(nothing.logits(rows)) + 5
    # evidence comes from the second encoder alone
    other = joined([np.roll(FIRST[2], 1, axis=0), SECOND[2]])
    np.testing.assert_allclose(fitted.logits(rows) - nothing.logits(rows),
                               fitted.logits(other) - nothing.logits(other), atol=2e-2)
    again = make.from_state(fitted.state())
    np.testing.assert_array_equal(again.logits(rows), fitted.logits(rows))


def test_the_probe_of_an_encoder_without_text_reads_its_rows_alone():
    rows, other = joined([FIRST[2], SECOND[2]]), joined([FIRST[2][::-1], SECOND[2]])
    probe = LinearProbe().fit(two_encoders(NO_TEXT).of("b"))
    np.testing.assert_allclose(probe.logits(rows), probe.logits(other), atol=1e-4)
    assert probe.weight_.shape == (K, 12)


def test_names_of_the_methods_of_each_encoder():
    assert names_on(["gda", "clap"], ()) == ["gda", "clap"]
    assert names_on(["gda", "clap"], BOTH) == ["gda@a", "clap@a", "gda@b", "clap@b"]
    assert names_on(["gda", "clap"], NO_TEXT) == ["gda@a", "clap@a", "gda@b"]
    with pytest.raises(UserError, match="none of them can learn from b, which has no text; add one of linear_probe"):
        names_on(["zero_shot", "clap"], NO_TEXT)


@pytest.mark.parametrize("parts", [BOTH, NO_TEXT])
def test_two_encoders_beat_one_and_a_saved_pipeline_answers_the_same(parts, tmp_path):
    alone = Pipeline(QUICK).fit(one_encoder()).answer(FIRST[2])
    rows = joined([FIRST[2], SECOND[2]])
    pipeline = Pipeline(QUICK).fit(two_encoders(parts))
    answers = pipeline.answer(rows)
    assert top1(answers.probs) > top1(alone.probs) + 3
    assert "gda@b" in answers.by_method() and ("zero_shot@b" in answers.by_method()) == parts[1].has_text
    save_arrays(tmp_path / "model.npz", pipeline.state())
    again = Pipeline.from_state(load_arrays(tmp_path / "model.npz", STATE_SCHEMA))
    assert again.task_.parts == parts and list(again.methods_) == list(pipeline.methods_)
    np.testing.assert_allclose(again.answer(rows).final, answers.final, atol=1e-5)


def test_one_encoder_keeps_its_names_and_its_state():
    state = Pipeline(QUICK).fit(one_encoder()).state()
    assert state["methods"].tolist() == QUICK and not any(name.startswith("parts/") for name in state)
    assert not any(name.endswith("evidence_from_") for name in state)


def test_parts_that_do_not_fit_the_rows():
    with pytest.raises(ValueError, match="widths .8, 13. do not fit rows of width 20"):
        Task(joined([FIRST[1], SECOND[1]]), LABELS, joined([FIRST[0], SECOND[0]]),
             parts=(BOTH[0], EncoderSlice("b", 13)))


def test_the_classifier_takes_features_of_several_encoders(tmp_path):
    names = [f"thing {k}" for k in range(K)]
    for text in ([FIRST[0], SECOND[0]], [FIRST[0], None]):
        classifier = FewShotClassifier(methods=QUICK, cache=None)
        classifier.fit([FIRST[1], SECOND[1]], LABELS, names, text)
        assert classifier.n_features_in_ == 20
        probs = classifier.predict_proba([FIRST[2], SECOND[2]])
        classifier.save(tmp_path / "several.npz")
        again = FewShotClassifier.load(tmp_path / "several.npz", cache=None)
        np.testing.assert_allclose(again.predict_proba([FIRST[2], SECOND[2]]), probs, atol=1e-5)
    with pytest.raises(ValueError, match="as many rows of each"):
        classifier.predict([FIRST[2], SECOND[2][:3]])
    with pytest.raises(ValueError, match="need text rows of as many"):
        FewShotClassifier(cache=None).fit([FIRST[1], SECOND[1]], LABELS, names, FIRST[0])
    with pytest.raises(ValueError, match="encoder 2: text rows .6, 8. do not fit"):
        FewShotClassifier(cache=None).fit([FIRST[1], SECOND[1]], LABELS, names, [FIRST[0], FIRST[0]])
    with pytest.raises(UserError, match="only what one encoder has learned can be exported"):
        classifier.export(tmp_path / "out.npz")
