"""The JSON files of a run: what is sound is read as it stands, everything else is one line."""

import json

import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.records import Record, TestRecord, Validation
from jclip_fewshot.storage.json_files import read_json, write_json

from .records import RECORD, TEST, VALIDATION, as_record, changed

KINDS = [(Record, RECORD), (TestRecord, TEST), (Validation, VALIDATION)]


def written(folder, content):
    path = folder / "record.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind, record", KINDS)
def test_what_is_written_is_read_back_and_strangers_among_the_keys_are_no_matter(tmp_path, kind, record):
    read = read_json(written(tmp_path, {**record, "new": {"x": [1]}}), kind)
    write_json(tmp_path / "again.json", read)
    assert read_json(tmp_path / "again.json", kind) == read
    assert read.config.data == record["config"]["data"]


def places(value, way=()):
    """Every place inside a record, and what stands there."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key), item
        if isinstance(item, (dict, list)):
            yield from places(item, (*way, key))


@pytest.mark.parametrize("kind, record", KINDS)
def test_any_missing_key_or_odd_value_is_read_or_one_line(tmp_path, kind, record):
    refused = 0
    for place, _ in places(record):
        for odd in (..., None, 7, -1, 1e301, True, "../x", [], {}, [[]], {"x": {}}, "\udc00", "a\0b", "9" * 5000):
            try:
                read_json(written(tmp_path, changed(record, *place, odd)), kind)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and "record.json" in str(error)
    assert refused > 100


@pytest.mark.parametrize("place, value, said", [
    (("classes",), ..., "object missing required field `classes`"),
    (("classes",), [], r"expected `array` of length >= 1 - at `\$.classes`"),
    (("config", "demo"), 1, r"expected `bool`, got `int` - at `\$.config.demo`"),
    (("config", "shots"), "four", r"expected `int`, got `str` - at `\$.config.shots`"),
    (("config", "features"), True, r"expected `array.* - at `\$.config.features`"),
    (("domains",), ["Cat"], "classes, domains and shots do not fit"),
    (("shots", "labels", 1), 2, "classes, domains and shots do not fit"),
    (("shots", "files", 0), "/etc/passwd", r"expected `str` matching .* - at `\$.shots.files\[0\]`"),
    (("shots", "files", 0), "a/../../b", r"expected `str` matching .* - at `\$.shots.files\[0\]`"),
    (("encoder",), {"width": 3}, "encoder has neither a model nor a file of features"),
    (("encoder",), {"model": ""}, "encoder has neither a model nor a file of features"),
    (("histories", "clip_adapter", 0, "loss"), "x", "expected `int | float | null`")])
def test_the_line_says_what_and_where(tmp_path, place, value, said):
    with pytest.raises(UserError, match=f"(?i)record.json: damaged or of another version: .*{said}.*; train again"):
        read_json(written(tmp_path, changed(RECORD, *place, value)), Record, "train again")


def test_names_with_two_dots_are_no_way_out(tmp_path):
    for name in ("a..b/c.jpg", "..a/b.jpg", "a/b..", "..."):
        assert as_record(Record, changed(RECORD, "shots", "files", 0, name), tmp_path).shots.files[0] == name


def test_a_curve_with_nothing_in_common_is_refused_and_one_with_a_hole_is_not(tmp_path):
    as_record(Validation, changed(VALIDATION, "curve", "1", "ensemble", ...), tmp_path)
    other = {"gda": VALIDATION["curve"]["2"]["ensemble"]}
    for record in (changed(VALIDATION, "curve", "2", other), changed(VALIDATION, "curve", {}),
                   changed(VALIDATION, "curve", "x", VALIDATION["curve"]["1"]),
                   changed(VALIDATION, "curve", "1", "ensemble", "top5", [1.0])):
        with pytest.raises(UserError, match="curve|Expected"):
            as_record(Validation, record, tmp_path)


@pytest.mark.parametrize("content", [
    "", "{", "[]", "7", "null", "[" * 100_000, '{"a":' * 100_000, '{"a": 1e999}', '{"a": NaN}', '{"a": "\\ud800"}'])
def test_what_is_no_record(tmp_path, content):
    with pytest.raises(UserError, match="record.json"):
        read_json(written(tmp_path, content))


def test_what_is_no_file(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "bytes.json", "/dev/null"):
        with pytest.raises(UserError, match=str(path)):
            read_json(path)


def test_numpy_values_are_plain_numbers_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float32(0.5), "ids": np.arange(2), "flag": np.bool_(True), "f": np.pi})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.5, "ids": [0, 1], "flag": True, "f": np.pi}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text())["x"] == 0.5  # as it was


def test_the_held_out_estimate_counts_shots_that_can_be_left_out(tmp_path):
    record = changed(RECORD, "settings", "ensemble", {"held_out_top1": 80.0})
    assert as_record(Record, record, tmp_path).held_out() is None  # a shot a class
    record["shots"] = {**record["shots"], "files": list("abcde"), "labels": [0, 0, 0, 0, 1]}
    found = as_record(Record, record, tmp_path).held_out()
    assert (found.top1, found.shots, str(found)) == (80.0, 4, "80.0 ± 18.7")


def test_the_end_of_a_training_says_what_was_learned_and_what_to_expect(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    learned = {**RECORD, "settings": {**RECORD["settings"], "ensemble": {"held_out_top1": 75.0}},
               "shots": {**RECORD["shots"], "files": ["a/1.jpg"] * 8, "labels": [0, 1] * 4}}
    said = as_record(Record, learned, tmp_path).summary()
    assert "Fitted 2 methods and their ensemble on 8 images of 2 classes." in said
    assert "Top-1 on 8 held-out shots: 75.0 ± 14.5 %" in said and max(map(len, said.split("\n"))) <= 80
    names = {**RECORD, "shots": {**RECORD["shots"], "files": [], "labels": []}}
    said = as_record(Record, names, tmp_path).summary()
    assert "on the names of 2 classes." in said and "nothing says what to expect" in said
