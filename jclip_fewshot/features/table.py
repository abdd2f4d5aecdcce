"""Features that somebody has computed already, as a file: --features FILE.npz."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.errors import UserError


@dataclass(frozen=True)
class FeatureTable:
    """Features that somebody has computed already: a .npz of `path`, `feature`, and `classes`, `text`.

    path (N,) image files, relative to the data folder; feature (N, D); text (K, D), in the order of classes
    (K,) or, without that, of the contest's ids. Rows need not be normalised, nor float32.
    """

    file: Path
    index: Dict[str, int]
    feature: np.ndarray             # (N, D) float32 unit rows
    text: Optional[np.ndarray]      # (K, D) float32 unit rows
    classes: Optional[List[str]]

    @classmethod
    def read(cls, file: Union[str, Path]) -> "FeatureTable":
        """Reads and checks a file.

        Raises:
            UserError: absent, not an .npz, arrays missing or of shapes that do not fit.
        """
        file = Path(file)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                names = [name for name in ("path", "feature", "text", "classes") if name in arrays]
                content = {name: arrays[name] for name in names}
        except FileNotFoundError:
            raise UserError(f"--features {file}: no such file")
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"--features {file}: cannot be read as .npz ({error})")
        for name in ("path", "feature"):
            if name not in content:
                raise UserError(f"--features {file}: has no array {name!r}; path and feature are needed")
        paths = [str(path).replace("\\", "/") for path in content["path"].reshape(-1)]
        feature = _checked_rows(file, "feature", content["feature"], len(paths))
        text, classes = content.get("text"), content.get("classes")
        if classes is not None:
            classes = [str(name) for name in classes.reshape(-1)]
        if text is not None:
            text = _checked_rows(file, "text", text, len(text) if classes is None else len(classes))
            if text.shape[1] != feature.shape[1]:
                raise UserError(f"--features {file}: text rows have width {text.shape[1]}, "
                                f"features {feature.shape[1]}")
        index = {path[2:] if path.startswith("./") else path: i for i, path in enumerate(paths)}
        if len(index) < len(paths):
            raise UserError(f"--features {file}: {len(paths) - len(index)} paths stand there twice")
        return cls(file, index, feature, text, classes)

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
            raise UserError(f"--features {self.file}: no feature for {_some(missing)} "
                            f"({len(missing)} of {len(names)} images; it holds {len(self.index)})")
        return self.feature[[self.index[name] for name in names]]

    def text_rows(self, class_names: Sequence[str]) -> np.ndarray:
        """(K, D) text rows of classes: by name, or in order where the file has no names.

        Raises:
            UserError: names the classes without a row.
        """
        if self.text is None:
            raise UserError(f"--features {self.file}: has no array 'text' (K, D): the classes' text rows")
        if self.classes is None:
            if len(self.text) != len(class_names):
                raise UserError(f"--features {self.file}: {len(self.text)} text rows without names for "
                                f"{len(class_names)} classes; add an array 'classes' (K,)")
            return self.text.copy()
        number = {name: k for k, name in enumerate(self.classes)}
        missing = [name for name in class_names if name not in number]
        if missing:
            raise UserError(f"--features {self.file}: no text row for {_some(missing)} "
                            f"({len(missing)} of {len(class_names)} classes)")
        return self.text[[number[name] for name in class_names]]


def _checked_rows(file: Path, name: str, rows: np.ndarray, count: int) -> np.ndarray:
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu":
        raise UserError(f"--features {file}: {name} is {rows.dtype} of shape {rows.shape}, "
                        f"numbers of shape ({count}, D) are needed")
    rows = rows.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1))
    if len(broken):
        raise UserError(f"--features {file}: row {broken[0]} of {name} is zero or not finite "
                        f"({len(broken)} such rows)")
    return unit_rows(rows)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
