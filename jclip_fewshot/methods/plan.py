"""Which methods are fitted: `--methods auto|fast|all|LIST`, as far as the data and the time allow.

Of the methods that tune a tower, auto takes as many as stay within so many floating-point operations a core on a CPU:
a fixed budget, so that a run repeats. The measured speed only serves the estimate that is printed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.runtime import cores
from jclip_fewshot.console import duration, tell
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.methods import METHODS
from jclip_fewshot.methods.base import ALWAYS, NEVER, SHOTS, TEXT, TOWER, UNLABELLED, Given, Method
from jclip_fewshot.task import EncoderSlice, Task

OF = "@"  # between a method and its encoder, where there are several: gda@RN50
CORE_FLOPS = 2.5e13  # auto's a core of a CPU, at most: ten minutes at the 42 GFLOP/s of docs/notes/tuning.md
SHARE = 0.6  # of the rate of Jittor's 1024³ product that training reaches (docs/notes/tuning.md)
GROUPS = ("auto", "fast", "all")
WANTING = {  # what to say of a named method whose need is not met
    SHOTS: "learns from labelled images, and there is none",
    TOWER: "works inside a CLIP's image tower that is a transformer, and there is none "
           "(features from a file, a ResNet, or another encoder)",
    UNLABELLED: "learns from images without labels: name a folder with --unlabelled, or take the test images with "
                "--transductive"}


@dataclass(frozen=True)
class Choice:
    """What a user asked for."""

    names: tuple[str, ...]  # in the table's order
    named: frozenset[str]  # those that were named one by one
    auto: bool
    every: bool = False  # `all`


def choose(listed: str | Sequence[str]) -> Choice:
    """Return the methods of a list with commas, and zero_shot. Raise UserError if a name is no method's or group's."""
    words = listed.split(",") if isinstance(listed, str) else list(listed)
    words = [str(word).strip() for word in words if str(word).strip()] or ["auto"]
    for word in words:
        if word not in METHODS and word not in GROUPS:
            known = [*GROUPS, *METHODS]
            raise UserError(f"methods: unknown method {word!r}{nearest(word, known)}; there are {', '.join(known)}")
    groups = {"auto": [name for name, one in METHODS.items() if one.default != NEVER],
              "fast": [name for name, one in METHODS.items() if one.default == ALWAYS and not one.trains
                       and not one.asks_images],
              "all": list(METHODS)}
    wanted = {"zero_shot", *(name for word in words for name in groups.get(word, [word]))}
    return Choice(tuple(name for name in METHODS if name in wanted), frozenset(set(words) & set(METHODS)),
                  "auto" in words, "all" in words)


def wanting(method: type[Method], has: set[str]) -> str:
    """Return why a method cannot be fitted on what there is (`base.TEXT`, ...); "" if it can."""
    return next((why for need, why in WANTING.items() if need in method.needs - has), "")


def require_possible(choice: Choice, has: set[str]) -> None:
    """Raise UserError if a method that was named needs what there is not, `has` being all that there may be."""
    for name in choice.names:
        if name in choice.named and wanting(METHODS[name], has):
            raise UserError(f"{name} {wanting(METHODS[name], has)}")


def plan(choice: Choice, task: Task, given: Given, cuda: bool = False) -> list[str]:
    """Return the methods to fit, as `names_on`; say what is left out, and what tuning costs.

    Raise UserError if a method that was named cannot be fitted, or no method can.
    """
    there = {SHOTS: len(task) > 0, TOWER: given.tower is not None, UNLABELLED: given.unlabelled is not None}
    has = {TEXT, *(need for need in there if there[need])}
    require_possible(choice, has)
    names = [name for name in choice.names if not wanting(METHODS[name], has)]
    left = [name for name in choice.names if name not in names]
    if left and choice.every:
        tell(f"left out, since they need what is not here: {', '.join(left)}")
    towers = _affordable(choice, [name for name in names if METHODS[name].asks_images], task, given, cuda)
    return [*names_on([name for name in names if not METHODS[name].asks_images], task.parts), *towers]


def names_on(names: Sequence[str], parts: Sequence[EncoderSlice]) -> list[str]:
    """Return the methods on rows of each encoder, `gda@RN50`; the bare names for one encoder.

    Raise UserError if an encoder has no text and no method can do without.
    """
    if not parts:
        return list(names)
    found: list[str] = []
    for part in parts:
        mine = [f"{name}{OF}{part.name}" for name in names
                if UNLABELLED not in METHODS[name].needs and (part.has_text or TEXT not in METHODS[name].needs)]
        if not mine:
            able = ", ".join(name for name, method in METHODS.items() if method.needs == {SHOTS})
            raise UserError(f"methods: none of them can learn from {part.name}, which has no text; add one of {able}")
        found += mine
    return found


def _affordable(choice: Choice, names: list[str], task: Task, given: Given, cuda: bool) -> list[str]:
    """Those of the methods that ask for images which have something to learn, and time for it."""
    if task.seen.sum() < 2:  # nothing to tell apart by shots
        names = [name for name in names if SHOTS not in METHODS[name].needs]
    if not names:
        return []
    if len(task) and not task.can_be_left_out.any() and not choice.named & set(names):
        tell("tuning left out: no class has two shots, so none can be held out to weigh tuned methods by")
        return []
    limited = choice.auto and not cuda
    if limited:
        names = [name for name in names if METHODS[name].default == ALWAYS or name in choice.named or choice.every]
    if given.tower.class_tokens is None:
        names = [name for name in names if not getattr(METHODS[name], "reads_sentences", False)]
    costs = {name: METHODS[name]().flops(task, given) for name in names}
    kept: list[str] = []
    for name in names:
        affordable = sum(costs[one] for one in [*kept, name]) <= CORE_FLOPS * cores()
        if affordable or not limited or name in choice.named:
            kept.append(name)
    dropped, rate = [name for name in names if name not in kept], SHARE * matrix_rate()
    needed, saved = (duration(sum(costs[name] for name in some) / rate) for some in (kept, dropped))
    if dropped:
        tell(f"tuning: {', '.join(dropped)} left out: about {saved} on this CPU; auto,{','.join(dropped)} as methods "
             "tunes all the same")
    if kept:
        tell(f"tuning {', '.join(kept)}: about {needed} on this {'GPU' if cuda else 'CPU'}; finished trainings are not "
             "repeated; fast as methods leaves it out")
    return kept


def matrix_rate() -> float:
    """Return operations a second of Jittor's 1024³ product, the better of three."""
    a, b = jt.array(np.ones((1024, 1024), np.float32)), jt.array(np.ones((1024, 1024), np.float32))
    best = 0.0
    for _ in range(4):  # the first compiles
        begun = time.perf_counter()
        jt.matmul(a, b).sync()
        jt.sync_all(True)
        best = max(best, 2 * 1024 ** 3 / (time.perf_counter() - begun))
    return best

