"""Features that somebody has computed already, as a file: --features FILE.npz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.data.listing import some
from jclip_fewshot.encoders.clip_encoder import file_digest
from jclip_fewshot.errors import UserError, parameter
from jclip_fewshot.storage.arrays import Field, load_arrays
from jclip_fewshot.task import CLIP_SCALE, EncoderSlice

_SCHEMA = {"path": Field("text", "N"), "feature": Field("float", "N D", rows=True),
           "classes": Field("text", "K", needed=False), "text": Field("float", "K D", rows=True, needed=False)}


class TableSource:
    """Looks rows up in a .npz; sentences went into it when it was made.

    It holds path (N,): image files, relative to the data folder; feature (N, D); text (K, D), in the order of classes
    (K,) or, without that, of the contest's ids. Rows need not be normalised, nor float32; here they are.

    with_text: False for --features-extra. Raise UserError if the file is absent, damaged, or its arrays are not these.
    """

    scale = CLIP_SCALE  # a feature file does not say
    parts = ()  # one encoder
    clip = None  # nothing that could be tuned

    def __init__(self, file: str | Path, with_text: bool = True) -> None:
        self._given, self._with_text = str(file), with_text
        self._said = f"{parameter('features' if with_text else 'features_extra')} {file}"
        content = load_arrays(Path(file), _SCHEMA, others=None, said=self._said)
        if "text" in content and not with_text:
            raise UserError(f"{self._said}: holds text rows, so its encoder has a text tower; give it with "
                            f"{parameter('features')}")
        paths = [path.replace("\\", "/").removeprefix("./") for path in content["path"].tolist()]
        self.index = {path: number for number, path in enumerate(paths)}
        if len(self.index) < len(paths):
            raise UserError(f"{self._said}: {len(paths) - len(self.index)} paths are listed twice")
        self.feature = unit_rows(content["feature"])
        self.text = unit_rows(content["text"]) if "text" in content else None
        self.classes = content["classes"].tolist() if "classes" in content else None
        self._digest = file_digest(Path(file))

    def images(self, _root: Path | None, paths: Sequence, *_: Any, **__: Any) -> tuple[np.ndarray, dict[int, str]]:
        """Return (N, D) unit rows of paths below the data folder; raise UserError, which names those it lacks."""
        names = [Path(path).as_posix() for path in paths]
        missing = [name for name in names if name not in self.index]
        if missing:
            raise UserError(f"{self._said}: no feature for {some(missing, 3)} "
                            f"({len(missing)} of {len(names)} images; it holds {len(self.index)})")
        return self.feature[[self.index[name] for name in names]], {}

    def texts(self, class_names: Sequence[str], *_: Any) -> np.ndarray:
        """Return (K, D) unit rows of classes: by name, or in order where the file has no names.

        Raise UserError, which names classes without a row, or with several.
        """
        if self.text is None:
            raise UserError(f"{self._said}: has no array 'text' (K, D): the classes' text rows")
        if self.classes is None and len(self.text) != len(class_names):
            raise UserError(f"{self._said}: {len(self.text)} text rows without names for {len(class_names)} classes; "
                            "add an array 'classes' (K,)")
        if self.classes is None or list(class_names) == self.classes:  # ImageNet has two cranes
            return self.text.copy()
        counts = Counter(self.classes)
        twice = [name for name in dict.fromkeys(class_names) if counts[name] > 1]
        if twice:
            raise UserError(f"{self._said}: several text rows for {some(twice, 3)}; list each class once in 'classes', "
                            "or all of them in the data set's order")
        missing = [name for name in class_names if not counts[name]]
        if missing:
            raise UserError(f"{self._said}: no text row for {some(missing, 3)} "
                            f"({len(missing)} of {len(class_names)} classes)")
        return self.text[[self.classes.index(name) for name in class_names]]

    @property
    def part(self) -> EncoderSlice:
        """The encoder among several."""
        return EncoderSlice(Path(self._given).stem, self.feature.shape[1], self._with_text)

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return {"features": self._given, "features_digest": self._digest,
                **({} if self._with_text else {"has_text": False})}
