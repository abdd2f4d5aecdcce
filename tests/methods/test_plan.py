"""Which methods are fitted: names and groups, needs that are not met, and what `auto` has time for."""

from types import SimpleNamespace

import numpy as np
import pytest

from jclip_fewshot.errors import UserError
from jclip_fewshot.methods import METHODS, plan
from jclip_fewshot.methods.base import ALWAYS, NEVER, SHOTS, TEXT, TOWER, UNLABELLED, Given, Unlabelled
from jclip_fewshot.task import Task
from tests.cases import FIRST, no_shots, one_encoder

TOWERS = [name for name, method in METHODS.items() if method.asks_images]


def test_names_and_groups():
    assert plan.choose("gda").names == ("zero_shot", "gda") and plan.choose("gda").named == {"gda"}
    assert plan.choose(" proker, gda").names == ("zero_shot", "gda", "proker")  # the table's order
    assert plan.choose("all").names == tuple(METHODS) and plan.choose("all").every
    assert plan.choose("") == plan.choose("auto") and plan.choose("auto").auto
    assert set(plan.choose("auto").names) == {name for name, one in METHODS.items() if one.default != NEVER}
    fast = [METHODS[name] for name in plan.choose("fast").names]
    assert fast and not any(one.trains or one.asks_images for one in fast)
    assert set(plan.choose(["fast", "clap"]).names) == {*plan.choose("fast").names, "clap"}
    with pytest.raises(UserError, match="unknown method 'tip_adaptor'.*tip_adapter"):
        plan.choose("tip_adaptor")


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if SHOTS in one.needs])
def test_a_named_method_without_shots_is_refused_by_name(name):
    given = Given(SimpleNamespace(encoder=None), Unlabelled(FIRST[2]))
    with pytest.raises(UserError, match=f"^{name} learns from labelled images, and there is none$"):
        plan.plan(plan.choose(name), no_shots(), given)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if {TOWER, UNLABELLED} & one.needs])
def test_a_named_method_that_needs_more_than_rows_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"^{name} .*(there is none|--unlabelled)"):
        plan.plan(plan.choose(name), one_encoder(), Given())


@pytest.mark.parametrize("group", ["auto", "fast", "all"])
@pytest.mark.parametrize("task", [one_encoder(), no_shots()], ids=["shots", "no shots"])
def test_a_group_leaves_out_what_needs_more_than_there_is(group, task, capsys):
    names = plan.plan(plan.choose(group), task, Given())
    able = {TEXT, SHOTS} if len(task) else {TEXT}
    assert names == [name for name in plan.choose(group).names if METHODS[name].needs <= able]
    left = [name for name in METHODS if name not in names]
    assert (f"left out, since they need what is not here: {', '.join(left)}" in capsys.readouterr().err) == \
        (group == "all")


def towers_chosen(listed, task, flops, monkeypatch, cuda=False, tokens=True):
    """The methods that ask for images which are fitted, each of which costs `flops`."""
    for name in TOWERS:
        monkeypatch.setattr(METHODS[name], "flops", lambda self, task, given: flops)
    monkeypatch.setattr(plan, "cores", lambda: 2)
    activations = SimpleNamespace(encoder=None, class_tokens=tokens or None)
    names = plan.plan(plan.choose(listed), task, Given(activations, Unlabelled(FIRST[2])), cuda)
    return [name for name in names if name in TOWERS]


@pytest.mark.parametrize("rate", [1.0, 1e12])  # operations a second: a busy machine, an idle one
def test_auto_takes_what_fits_by_operations_and_not_by_the_clock(rate, monkeypatch, capsys):
    monkeypatch.setattr(plan, "matrix_rate", lambda: rate)
    on_cpu = [name for name in TOWERS if METHODS[name].default == ALWAYS]
    assert towers_chosen("auto", one_encoder(), 1.0, monkeypatch) == on_cpu
    assert towers_chosen("auto", one_encoder(), 1.5 * plan.CORE_FLOPS, monkeypatch) == on_cpu[:1]
    assert f"{', '.join(on_cpu[1:])} left out: about" in capsys.readouterr().err
    assert towers_chosen("auto", one_encoder(), 1e20, monkeypatch) == []
    assert towers_chosen("auto,prolip", one_encoder(), 1e20, monkeypatch) == ["prolip"]
    assert towers_chosen(["prolip", "coop"], one_encoder(), 1e20, monkeypatch) == ["prolip", "coop"]
    on_gpu = [name for name in TOWERS if METHODS[name].default != NEVER]
    assert towers_chosen("auto", one_encoder(), 1e20, monkeypatch, cuda=True) == on_gpu


def test_towers_are_left_out_where_nothing_can_be_held_out(monkeypatch, capsys):
    monkeypatch.setattr(plan, "matrix_rate", lambda: 1e9)
    one_each = one_encoder().take(np.arange(0, len(one_encoder()), 4))
    assert towers_chosen("auto", one_each, 1.0, monkeypatch) == []
    assert "tuning left out: no class has two shots" in capsys.readouterr().err
    assert towers_chosen("prolip", one_each, 1.0, monkeypatch) == ["prolip"]  # named: fitted, without weight
    assert "coop" not in towers_chosen("all", one_encoder(), 1.0, monkeypatch, tokens=False)  # asks about sentences


def test_at_contest_size_auto_tunes_the_last_block_on_two_cores():
    """ViT-B/32, 374 classes of four shots, five trainings."""
    width, length = 768, 50
    tower = SimpleNamespace(visual=SimpleNamespace(shape_at=lambda depth: (length, width)))
    given = Given(SimpleNamespace(model=tower))
    rng = np.random.default_rng(0)
    task = Task(rng.standard_normal((4 * 374, 4)), np.repeat(np.arange(374), 4), rng.standard_normal((374, 4)))
    asked = sum(METHODS[name]().flops(task, given) for name in ("token_gda", "last_block"))
    assert plan.CORE_FLOPS < asked < 2 * plan.CORE_FLOPS
