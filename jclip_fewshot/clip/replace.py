"""A CLIP with other tensors in the place of some of its own, for as long as a block runs.

Names are OpenAI's: `visual.transformer.resblocks.11.ln_1.weight`. Layouts are the model's, which keeps matrices
(inputs, outputs); vectors and projections are as OpenAI has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jclip_fewshot.backend import jt

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP


def part(model: CLIP, path: str):
    """The module or tensor under OpenAI's name; the model itself under none."""
    for name in filter(None, path.split(".")):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


@contextmanager
def replaced(model: CLIP, values: dict[str, jt.Var]) -> Iterator[CLIP]:
    """The model with `values` in the place of its tensors of those names, while the block runs."""
    places = [(part(model, owner), name) for owner, _, name in (path.rpartition(".") for path in values)]
    before = [getattr(*place) for place in places]
    try:
        for place, value in zip(places, values.values()):
            setattr(*place, value)
        yield model
    finally:
        for place, value in zip(places, before):
            setattr(*place, value)
