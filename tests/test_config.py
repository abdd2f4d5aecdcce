"""Settings: one place for defaults, flags and TOML made from it, mistakes named."""

import dataclasses
from typing import get_type_hints

import pytest

from jclip_fewshot import console
from jclip_fewshot.cli import commands, flags
from jclip_fewshot.cli.flags import read_toml, to_toml
from jclip_fewshot.config import (
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    RunsConfig,
    TestConfig,
    TrainConfig,
    ValidateConfig,
    checked,
)
from jclip_fewshot.errors import UserError, flag_of
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.plan import choose


def parse(config, description, arguments):
    return flags.parse(config, description, arguments)[0]


@pytest.mark.parametrize("config", [TrainConfig, TestConfig])
def test_help_fits_a_screen_and_shows_defaults(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as leave:
        parse(config, "what it does", ["--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 66
    assert all(len(line) <= 110 for line in text.splitlines())
    for f in dataclasses.fields(config):
        assert "--" + f.name.replace("_", "-") in text
    assert "[auto]" in text


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('shots = 8\nseed = 3\ndata = "somewhere"\n')
    settings = parse(TrainConfig, "", ["--config", str(file), "--seed", "5"])
    assert (settings.shots, settings.seed, settings.data, settings.augment) == (8, 5, "somewhere", 10)


def test_toml_round_trip(tmp_path, capsys):
    settings = parse(TrainConfig, "", ["--data", 'a "quoted" \\ path', "--demo", "--shots", "2"])
    file = tmp_path / "run.toml"
    file.write_text(to_toml(settings), encoding="utf-8")
    assert checked(TrainConfig, read_toml(str(file))) == settings
    with pytest.raises(SystemExit) as leave:
        parse(TrainConfig, "", ["--config", str(file), "--print-config"])
    assert leave.value.code == 0 and capsys.readouterr().out == to_toml(settings)


@pytest.mark.parametrize("text, message", [
    ("shot = 4", "unknown setting 'shot'; did you mean 'shots'?"),
    ("shots = 'four'", "--shots takes a whole number, not 'four'"),
    ("shots = -1", "--shots takes a number from 0 up, not -1"),
    ("demo = 1", "--demo takes true or false, not 1"),
    ("device = 'tpu'", "--device takes auto, cpu, cuda, not 'tpu'"),
    ("shots = ", "not TOML"),
])
def test_mistakes_in_the_file(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse(TrainConfig, "", ["--config", str(file)])
    assert message in str(error.value)


@pytest.mark.parametrize("old, methods", [
    (["--heads", "gda,clap"], "gda,clap"), (["--heads", "fast", "--tune", "off"], "fast"), (["--heads", "all"], "all"),
    (["--tune", "auto"], "auto"), (["--heads", "gda", "--tune", "last_block"], "gda,last_block"),
    (["--label-free", "upl"], "auto,upl"), (["--heads", "default,clap"], "auto,clap")])
def test_old_flags_say_what_to_type(old, methods, capsys):
    assert parse(TrainConfig, "", old) == parse(TrainConfig, "", ["--methods", methods])
    said = capsys.readouterr().err
    assert said == f"warning: {' '.join(old)} is now --methods: type --methods {methods}\n"


def test_old_keys_in_a_file_and_beside_the_new_flag(tmp_path):
    (tmp_path / "run.toml").write_text('tune = "off"\n')
    found = parse(TrainConfig, "", ["--config", str(tmp_path / "run.toml")]).methods.split(",")
    assert set(found) == {name for name in choose("auto").names if not METHODS[name].asks_images}
    with pytest.raises(UserError, match="--methods alone says which"):
        parse(TrainConfig, "", ["--heads", "gda", "--methods", "gda"])
    with pytest.raises(UserError, match="unknown setting 'heads'"):
        (tmp_path / "run.toml").write_text('heads = "gda"\n')
        parse(TestConfig, "", ["--config", str(tmp_path / "run.toml")])


def commands_settings():
    return {name: get_type_hints(function)["settings"] for name, function in commands.COMMANDS.items()}


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_setting_of_a_command_is_in_its_help(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as leave:
        commands.call(name, ["--help"])
    text = capsys.readouterr().out
    assert leave.value.code == 0 and max(map(len, text.splitlines())) <= 80
    for f in dataclasses.fields(commands_settings()[name]):
        called = f.metadata["metavar"] if f.metadata["group"] == "arguments" else flag_of(f.name)
        assert called in text, called
    assert "[auto]" in text or "device" not in text
    assert " ".join(commands.COMMANDS[name].__doc__.split()[:4]) in text


def test_arguments_without_flags(capsys):
    found = parse(PredictConfig, "", ["--json", "runs/one", "a.jpg", "b.jpg", "--top", "3"])
    assert (found.run, found.images, found.top, found.json) == ("runs/one", ("a.jpg", "b.jpg"), 3, True)
    assert parse(RunsConfig, "", ["--compare", "a", "b"]).compare == ("a", "b")
    assert parse(ReportConfig, "", []).run == "" and parse(ReportConfig, "", ["--out", "x", "one"]).run == "one"
    for config, line, said in ((PredictConfig, ["runs/one"], "IMAGE"), (EvaluateConfig, [], "--suite FILE.npz"),
                               (PredictConfig, ["one", "x", "--top", "many"], "--top")):
        with pytest.raises(SystemExit) as leave:
            parse(config, "", line)
        assert leave.value.code == 2 and said in capsys.readouterr().err
    for line, said in ((["--top", "0"], "--top takes a number from 1 up"), (["--reject", "-1"], "--reject takes")):
        with pytest.raises(UserError, match=said):
            parse(PredictConfig, "", ["one", "x", *line])


def test_absent_file_and_unknown_flag(capsys):
    with pytest.raises(UserError, match="No such file"):
        parse(TrainConfig, "", ["--config", "absent.toml"])
    with pytest.raises(SystemExit) as leave:
        parse(TrainConfig, "", ["--shotz", "4"])
    assert leave.value.code == 2


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().shots = 5


@pytest.mark.parametrize("config", [TrainConfig, TestConfig, ValidateConfig])
@pytest.mark.parametrize("columns", [60, 80])
def test_help_obeys_columns(config, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse(config, "What it does, in a line that is longer than any of the terminals here, and even longer.\n\n"
              "    python x.py          an example that is longer than one of the terminals here is\n", ["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_what_was_given_by_flag_or_file_is_known(tmp_path):
    (tmp_path / "run.toml").write_text("shots = 8\n")
    _, given = flags.parse(TrainConfig, "", ["--config", str(tmp_path / "run.toml"), "--methods", "gda"])
    assert given == {"shots": 8, "methods": "gda"}


def test_a_demo_seed_turns_the_demo_on():
    for config in (TrainConfig, TestConfig, ValidateConfig):
        settings = parse(config, "", ["--demo-seed", "7"])
        assert settings.demo and settings.demo_seed == 7
        assert not parse(config, "", []).demo


def test_printed_settings_read_back_are_the_same(tmp_path, capsys):
    for config in (TrainConfig, TestConfig, ValidateConfig):
        for line in (["--data", "mine"], ["--demo-seed", "7"]):
            with pytest.raises(SystemExit):
                parse(config, "", [*line, "--print-config"])
            (tmp_path / "my.toml").write_text(capsys.readouterr().out)
            again = parse(config, "", ["--config", str(tmp_path / "my.toml")])
            assert again == parse(config, "", line)
        assert parse(config, "", ["--config", str(tmp_path / "my.toml"), "--demo-seed", "3"]).demo


def test_verbose_in_a_file_counts_as_the_flag(tmp_path):
    (tmp_path / "run.toml").write_text("verbose = true\nshots = -1\n")
    with pytest.raises(UserError):
        parse(TrainConfig, "", ["--config", str(tmp_path / "run.toml")])
    assert console.verbose
    parse(TrainConfig, "", [])
    assert not console.verbose


@pytest.mark.parametrize("text, said", [
    ('data = "a\\u0000b"', "--data holds a NUL byte"), ("seed = " + "9" * 5000, "run.toml"),
    ("seed = 99999999999", "so large"), ("data = 0x" + "1" * 5000, "--data takes text, not one so large"),
    ("model = [0x" + "1" * 5000 + "]", "--model takes text, or a list of texts, not one so large"),
])
def test_names_and_numbers_that_no_machine_takes(tmp_path, text, said):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        parse(TrainConfig, "", ["--config", str(tmp_path / "run.toml")])


def test_a_setting_that_may_be_given_several_times(tmp_path):
    assert parse(TrainConfig, "", []).model == ("ViT-B/32",) and parse(TrainConfig, "", []).features == ()
    assert parse(TrainConfig, "", ["--model", "a", "--model", "b"]).model == ("a", "b")
    file = tmp_path / "run.toml"
    for text, expected in (('model = "a"', ("a",)), ('model = ["a", "b"]', ("a", "b"))):
        file.write_text(text)
        assert parse(TrainConfig, "", ["--config", str(file)]).model == expected
    for wrong in ("model = [1]", "model = 3", 'model = [""]'):
        file.write_text(wrong)
        with pytest.raises(UserError, match="--model takes text, or a list of texts"):
            parse(TrainConfig, "", ["--config", str(file)])
