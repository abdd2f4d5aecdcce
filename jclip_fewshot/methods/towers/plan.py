"""Which members are tuned, and what that costs here: `--tune auto|off|LIST`.

auto takes CPU_MEMBERS as long as their trainings stay within so many operations a core, and all members on a GPU. It
counts multiplications of the towers' blocks. What that takes is said before: training runs at a share of the rate of
Jittor's 1024³ product (docs/tuning.md), encoding at that rate. The rate decides nothing: a busy machine has another one
each time, and a run must choose alike when it is repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.runtime import cores
from jclip_fewshot.console import tell
from jclip_fewshot.encoders.base import Depth
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.features.bank import Bank
from jclip_fewshot.features.sources import Source
from jclip_fewshot.methods.towers.coop import CoOp
from jclip_fewshot.methods.towers.full_towers import ClipLora, TwoStage
from jclip_fewshot.methods.towers.last_blocks import LastBlocks
from jclip_fewshot.methods.towers.members import Member, block_operations
from jclip_fewshot.methods.towers.prolip import ProLIP
from jclip_fewshot.methods.towers.token_gda import TokenGDA
from jclip_fewshot.methods.towers.towers import blocks_of
from jclip_fewshot.storage.fit_cache import FitCache
from jclip_fewshot.task import Task

MEMBERS: dict[str, type[Member]] = {
    member.name: member for member in (TokenGDA, LastBlocks, ProLIP, CoOp, ClipLora, TwoStage)}
CPU_MEMBERS = (TokenGDA.name, LastBlocks.name)  # auto's on a CPU
CORE_OPERATIONS = 2.5e13  # auto's a core of a CPU, at most: ten minutes at the 42 GFLOP/s of docs/tuning.md
SHARE = 0.6  # of the matrix rate that training reaches: 0.69 to 1.1 on AVX2, 0.45 and more on AVX-512 (docs/tuning.md)


@dataclass(frozen=True)
class Tuning:
    """What a pipeline tunes: the members, the shots at every depth, and where finished trainings are kept."""

    members: list[Member]
    bank: Bank | None = None
    fits: FitCache | None = None


def plan(tune: str, task: Task, source: Source, root: Path, shots: Sequence[str], views: int, seed: int,
         sentences: Sequence[str]) -> Tuning:
    """The tuning of a task whose shots are the images `shots` below `root`, as the source encoded them.

    sentences (K,): one a class, for what trains the text tower.
    Raises:
        UserError: see `tune_names`; members are named and there is no tower to tune.
    """
    names = tune_names(tune)
    if not names:
        return Tuning([])
    if not len(task) and names != ["auto"]:
        raise UserError(f"--tune {tune} learns from shots, and there is none; --tune off goes without")
    if names == ["auto"] and not task.can_be_left_out.any():
        if len(task):
            tell("tuning left out: no class has two shots, so none can be held out to weigh tuned members by")
        return Tuning([])
    model = source.model
    if model is None or not hasattr(model.visual, "transformer"):
        name = source.parts[0].name if source.parts else source.part.name
        if names != ["auto"]:
            raise UserError(f"--tune: {name} has no tower to tune, which a CLIP with a transformer for images has; "
                            "--tune off goes without")
        tell(f"tuning left out: {name} has no tower to tune")
        return Tuning([])
    bank = source.bank(root, shots, views, seed, sentences)
    return Tuning(chosen_members(names, task, bank, seed), bank, source.fits)


def tuned_rows(source: Source, root: Path, paths: Sequence[str],
               test_views: int = 1) -> Callable[[Member], np.ndarray] | None:
    """What `Pipeline.answer` asks for the images `paths` below `root`: their rows by a member's tuned tower, (N, D).

    Encoded once a member, and found again in the cache. None where the source has no tower.
    """
    if source.model is None:
        return None

    def rows_under(member: Member) -> np.ndarray:
        return source.under(member.encoder).images(root, paths, stage=f"images by {member.name}",
                                                 test_views=test_views)[0]
    return rows_under


def tune_names(tune: str) -> list[str]:
    """`--tune` as names: none for off, ["auto"], or the members of a list.

    Raises:
        UserError: a name that is no member's.
    """
    names = list(dict.fromkeys(name.strip() for name in tune.split(",") if name.strip()))
    if names in (["off"], ["auto"]):
        return [] if names == ["off"] else names
    for name in names:
        if name in ("auto", "off"):
            raise UserError(f"--tune {tune}: {name} stands alone, or name methods: {', '.join(MEMBERS)}")
        if name not in MEMBERS:
            known = ["auto", "off", *MEMBERS]
            raise UserError(f"--tune: unknown method {name!r}{nearest(name, known)}; there are auto, off, or a list of "
                            f"{', '.join(MEMBERS)}")
    if not names:
        raise UserError(f"--tune takes auto, off, or a list of {', '.join(MEMBERS)}")
    return names


def chosen_members(names: list[str], task: Task, bank: Bank, seed: int) -> list[Member]:
    """The members to fit; says what they cost."""
    if task.seen.sum() < 2:
        return []
    rate = matrix_rate()
    auto, cuda = names == ["auto"], bank.encoder.device == "cuda"
    if auto:
        names = list(MEMBERS if cuda else CPU_MEMBERS)
    members = [MEMBERS[name](seed) for name in names]
    members = [member for member in members if bank.class_tokens is not None or not member.needs_tokens]
    costs = {member.name: member.operations(task, bank) for member in members}

    def seconds_of(some: Sequence[Member]) -> float:
        return sum(costs[member.name] for member in some) / (SHARE * rate)
    if auto and not cuda:
        kept: list[Member] = []
        for member in members:
            if sum(costs[one.name] for one in [*kept, member]) <= CORE_OPERATIONS * cores():
                kept.append(member)
        left = [member for member in members if member not in kept]
        if left:
            without, every = ([member.name for member in some] for some in (left, members))
            tell(f"tuning: {', '.join(without)} left out: about {said(seconds_of(left))} on this CPU; "
                 f"--tune {','.join(every)} tunes all the same")
        members = kept
    if members:
        seconds, encoding = seconds_of(members), encoding_operations(members, bank) / rate
        before = f", and before it {said(encoding)} to encode the shots once more" if encoding >= 1 else ""
        tell(f"tuning {', '.join(member.name for member in members)}: about {said(seconds)} on this "
             f"{'GPU' if cuda else 'CPU'}{before}; finished trainings are not repeated; --tune off leaves it out")
    return members


def encoding_operations(members: Sequence[Member], bank: Bank) -> float:
    """Floating-point operations until the bank has all depths that the members need, about."""
    model = bank.encoder.model
    length, width = model.visual.shape_at(0)
    blocks = len(blocks_of(model, "visual."))

    def of(depth: Depth) -> float:
        passed = depth if isinstance(depth, int) else blocks
        return bank.waiting(depth) * passed * block_operations(length, width)
    return sum(of(depth) for depth in {member.depth(model) for member in members})


def matrix_rate() -> float:
    """Operations a second of Jittor's 1024³ product, the better of three."""
    a, b = jt.array(np.ones((1024, 1024), np.float32)), jt.array(np.ones((1024, 1024), np.float32))
    best = 0.0
    for _ in range(4):  # the first compiles
        begun = time.perf_counter()
        jt.matmul(a, b).sync()
        jt.sync_all(True)
        best = max(best, 2 * 1024 ** 3 / (time.perf_counter() - begun))
    return best


def said(seconds: float) -> str:
    """A duration as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
