"""Records of a run: what is sound is read as it stands, everything else is one line."""

import json

import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.records import is_file_name, load_record, load_test_record, load_validation

from .samples import RECORD, TEST, VALIDATION, changed

KINDS = [(load_record, RECORD), (load_test_record, TEST), (load_validation, VALIDATION)]


def written(folder, content):
    path = folder / "record.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("load, record", KINDS)
def test_sound_records_and_strangers_among_the_keys(tmp_path, load, record):
    assert load(written(tmp_path, {**record, "new": {"x": [1]}})) == {**record, "new": {"x": [1]}}


def places(value, way=()):
    """Every place inside a record, and what stands there."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key), item
        if isinstance(item, (dict, list)):
            yield from places(item, (*way, key))


@pytest.mark.parametrize("load, record", KINDS)
def test_any_missing_key_or_odd_value_is_read_or_one_line(tmp_path, load, record):
    """What is read must have the keys that are required, whatever stands in the others."""
    refused = 0
    for place, _ in places(record):
        for odd in (..., None, 7, -1, 1e301, True, "../x", [], {}, [[]], {"x": {}}, "\udc00", "a\0b", "9" * 5000):
            try:
                load(written(tmp_path, changed(record, *place, odd)))
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and "record.json" in str(error)
    assert refused > 200


@pytest.mark.parametrize("place, value, said", [
    (("classes",), ..., "classes must be there"),
    (("config", "board"), "../../outside", "config.board must be A or B"),
    (("config", "board"), "A/B", "config.board must be A or B"),
    (("config", "demo"), 1, "config.demo must be true or false, not 1"),
    (("config", "data"), "x" * 5000, "config.data must be a path"),
    (("domains",), ["Cat"], "domains must be a list of 2"),
    (("shots", "labels", 1), 2, r"shots.labels\[1\] must be a class id below 2, not 2"),
    (("shots", "labels"), [0], "shots.labels must be a list of 2"),
    (("config", "shots"), ..., "config.shots must be there"),
    (("config", "shots"), "four", "config.shots must be a whole number"),
    (("config", "board"), "x", "config.board must be A or B"),
    (("config", "seed"), None, "config.seed must be a whole number"),
    (("config", "features"), True, "config.features must be a list"),
    (("config", "weights"), 3, "config.weights must be text"),
    (("config", "descriptions"), [], "config.descriptions must be text"),
    (("shots", "files", 0), "/etc/passwd", r"shots.files\[0\] must be a path below the data folder"),
    (("shots", "files", 0), "a/../../b", r"shots.files\[0\] must be a path below the data folder"),
    (("encoder",), {"width": 3}, "encoder must be a model and the folder of its weights, or a file of features"),
    (("encoder", "precision"), 16, "encoder.precision must be text, not 16"),
    (("seconds", "sentences"), float("nan"), "seconds.sentences must be a finite number"),
    (("settings", "tip_adapter", "beta"), [], "settings.tip_adapter.beta must be a finite number"),
    (("histories", "clip_adapter", 0), {}, r"histories.clip_adapter\[0\].epoch must be there")])
def test_the_line_says_what_and_where(tmp_path, place, value, said):
    with pytest.raises(UserError, match=said + ".*; train again"):
        load_record(written(tmp_path, changed(RECORD, *place, value)))


def test_a_curve_with_nothing_in_common_is_refused_and_one_with_a_hole_is_not(tmp_path):
    load_validation(written(tmp_path, changed(VALIDATION, "curve", "1", "ensemble", ...)))
    other = {"gda": VALIDATION["curve"]["2"]["ensemble"]}
    for record, said in [(changed(VALIDATION, "curve", "2", other), "curve must be of methods that every number"),
                         (changed(VALIDATION, "curve", {}), "curve must be an object of 1 or more"),
                         (changed(VALIDATION, "curve", "x", VALIDATION["curve"]["1"]), "a number of shots"),
                         (changed(VALIDATION, "curve", "1", "ensemble", "top5", [1.0]), "top5 must be a list of 2")]:
        with pytest.raises(UserError, match=said):
            load_validation(written(tmp_path, record))


@pytest.mark.parametrize("content", [
    "", "{", "[]", "7", "null", "[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": 1e999}',
    '{"a": "\\ud800"}', '{"a": "\\u0000"}', "[" * 30 + "]" * 30])
def test_what_is_no_record(tmp_path, content):
    for load, _ in KINDS:
        with pytest.raises(UserError, match="record.json"):
            load(written(tmp_path, content))


def test_what_is_no_file(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "bytes.json", "/dev/null"):
        with pytest.raises(UserError, match=str(path)):
            load_record(path)


def test_names_that_become_files():
    assert all(map(is_file_name, ["A", "B", "test", "val-2", "一"]))
    assert not any(map(is_file_name, ["", ".", "..", "a/b", "..\\x", "a\nb", "a:b", " a", "x" * 101, "a\0", "\udc80"]))


def test_a_key_with_a_line_break_does_not_break_the_line(tmp_path):
    path = tmp_path / "test_A.json"
    path.write_text(json.dumps({**TEST, "unreadable": {"a\nb": 1}}))
    with pytest.raises(UserError) as error:
        load_test_record(path)
    assert "\n" not in str(error.value) and r"a\nb" in str(error.value)


@pytest.mark.parametrize("name, value", [("data", None), ("data", 3), ("board_mix", "yes"), ("seed", [])])
def test_settings_of_a_validation_are_as_they_are_read(tmp_path, name, value):
    with pytest.raises(UserError, match=f"config.{name} must be"):
        load_validation(written(tmp_path, changed(VALIDATION, "config", name, value)))
