"""Several encoders as one source: their rows side by side (task.joined), each counting alike.

The first one has text. Of an encoder without text, the text columns are zero.

N images · K classes · D width of the joined rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.task import EncoderSlice, joined, joined_scale


def encoders_of(record: dict) -> list[dict]:
    """Return what a source's record says of each encoder: the first one's entries, then those of the others in it."""
    first = {key: value for key, value in record.items() if key != "others"}
    return [first, *record.get("others", [])]


class SeveralSources:
    """Answers `images` and `texts` like a single source; `parts` says whose columns are whose."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = list(sources)
        self.parts = _named([source.part for source in sources])
        self.scale = joined_scale(self.parts)
        self.clip = sources[0].clip
        encoders = [source for source in sources if getattr(source, "barrier", None) is not None]
        for encoder in encoders[1:]:
            encoder.barrier = encoders[0].barrier  # under mpirun: one count of the points that all have come to

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0, stage: str = "images",
               test_views: int = 1) -> tuple[np.ndarray, dict[int, str]]:
        """(N, D) unit rows of files below `root`, and why some could not be read by any of the encoders."""
        rows, bad = [], dict[int, str]()
        for part, source in zip(self.parts, self._sources):
            found, unreadable = source.images(root, paths, views, seed, f"{stage} by {part.name}", test_views)
            rows.append(found)
            bad = {**unreadable, **bad}
        together = joined(rows)
        together[sorted(bad)] = 0
        return together, bad

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """(K, D) rows of the classes."""
        return joined([source.texts(class_names, sentences) if part.has_text
                       else np.zeros((len(class_names), part.width), np.float32)
                       for part, source in zip(self.parts, self._sources)])

    def record(self) -> dict:
        """What test.py needs to open the same source again: the first one's record, and the others in it."""
        first, *others = [{**source.record(), "name": part.name} for part, source in zip(self.parts, self._sources)]
        return {**first, "others": others}


def _named(parts: Sequence[EncoderSlice]) -> tuple[EncoderSlice, ...]:
    """Names that differ: a second "model" becomes model-2."""
    seen, named = Counter[str](), []
    for part in parts:
        seen[part.name] += 1
        named.append(part if seen[part.name] == 1 else part._replace(name=f"{part.name}-{seen[part.name]}"))
    return tuple(named)
