"""Features that somebody has computed already, as a file: --features FILE.npz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.arrays import Field, load_arrays

_SCHEMA = {"path": Field("text", "N"), "feature": Field("float", "N D", rows=True),
           "classes": Field("text", "K", needed=False), "text": Field("float", "K D", rows=True, needed=False)}


@dataclass(frozen=True)
class FeatureTable:
    """Features that somebody has computed already: a .npz of `path`, `feature`, and `classes`, `text`.

    path (N,) image files, relative to the data folder; feature (N, D); text (K, D), in the order of classes
    (K,) or, without that, of the contest's ids. Rows need not be normalised, nor float32.
    """

    file: Path
    index: dict[str, int]
    feature: np.ndarray             # (N, D) float32 unit rows
    text: np.ndarray | None      # (K, D) float32 unit rows
    classes: list[str] | None
    with_text: bool = True

    @classmethod
    def read(cls, file: str | Path, with_text: bool = True) -> FeatureTable:
        """Reads and checks a file. with_text: False for --features-extra, whose encoder has no text.

        Raises:
            UserError: absent, not an .npz, arrays missing, of other types or of shapes that do not fit; text where
                none should be.
        """
        file, flag = Path(file), _flag(with_text)
        content = load_arrays(file, _SCHEMA, others=None, said=f"{flag} {file}")
        if "text" in content and not with_text:
            raise UserError(f"{flag} {file}: holds text rows, so its encoder has a text tower; give it with "
                            "--features")
        paths = [path.replace("\\", "/") for path in content["path"].tolist()]
        feature, text, classes = unit_rows(content["feature"]), content.get("text"), content.get("classes")
        if classes is not None:
            classes = classes.tolist()
        if text is not None:
            text = unit_rows(text)
        index = {path[2:] if path.startswith("./") else path: i for i, path in enumerate(paths)}
        if len(index) < len(paths):
            raise UserError(f"{flag} {file}: {len(paths) - len(index)} paths are listed twice")
        return cls(file, index, feature, text, classes, with_text)

    @property
    def width(self) -> int:
        return self.feature.shape[1]

    def lookup(self, paths: Sequence) -> np.ndarray:
        """(N, D) rows of image paths relative to the data folder.

        Raises:
            UserError: names the images that the file does not hold.
        """
        names = [Path(path).as_posix() for path in paths]
        missing = [name for name in names if name not in self.index]
        if missing:
            raise UserError(f"{_flag(self.with_text)} {self.file}: no feature for {_some(missing)} "
                            f"({len(missing)} of {len(names)} images; it holds {len(self.index)})")
        return self.feature[[self.index[name] for name in names]]

    def text_rows(self, class_names: Sequence[str]) -> np.ndarray:
        """(K, D) text rows of classes: by name, or in order where the file has no names.

        Raises:
            UserError: names the classes without a row, or with several of them.
        """
        if self.text is None:
            raise UserError(f"--features {self.file}: has no array 'text' (K, D): the classes' text rows")
        if self.classes is None:
            if len(self.text) != len(class_names):
                raise UserError(f"--features {self.file}: {len(self.text)} text rows without names for "
                                f"{len(class_names)} classes; add an array 'classes' (K,)")
            return self.text.copy()
        if list(class_names) == self.classes:  # names may be there twice then, as ImageNet has two cranes
            return self.text.copy()
        number = {name: k for k, name in enumerate(self.classes)}
        counts = Counter(self.classes)
        twice = [name for name in dict.fromkeys(class_names) if counts[name] > 1]
        if twice:
            raise UserError(f"--features {self.file}: several text rows for {_some(twice)}; list each class once in "
                            "'classes', or all of them in the data set's order")
        missing = [name for name in class_names if name not in number]
        if missing:
            raise UserError(f"--features {self.file}: no text row for {_some(missing)} "
                            f"({len(missing)} of {len(class_names)} classes)")
        return self.text[[number[name] for name in class_names]]


def _flag(with_text: bool) -> str:
    return "--features" if with_text else "--features-extra"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
