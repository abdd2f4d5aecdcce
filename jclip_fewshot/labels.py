"""S labels and K class names as people and scikit-learn hand them over, checked: for the classifier."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def sklearns(name: str, otherwise: Any) -> Any:
    """Return one of scikit-learn's exceptions; whoever catches it has imported it."""
    return getattr(sys.modules.get("sklearn.exceptions"), name, otherwise)


def checked_names(names: Any) -> list[str]:
    """Return class names as a list of different texts. Raise ValueError if one is none that a file can keep."""
    if isinstance(names, (str, bytes, dict, set, frozenset)):
        raise ValueError(f"class_names must be a list, one name a class, not {type(names).__name__} {names!r:.80}")
    found = [str(name) if isinstance(name, np.str_) else name for name in names]
    for place, name in enumerate(found):
        if not isinstance(name, str):
            raise ValueError(f"class_names must be texts, not {type(name).__name__} {name!r:.80}")
        if not name.strip():
            raise ValueError("class_names: a name is empty")
        if "\0" in name or any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            raise ValueError(f"class_names: {name!r:.80} holds a NUL or half a character, which no file can keep")
        if found.index(name) < place:
            raise ValueError(f"class_names: {name!r} stands at {found.index(name)} and at {place}")
    return found


def plain_labels(labels: Any) -> np.ndarray:
    """Return labels, of pandas too, as an array (S,) to sort and save. Raise ValueError if of several kinds."""
    if labels is None:
        raise ValueError("This classifier requires y to be passed, but the target y is None: give labels")
    given = np.asarray(labels).tolist() if hasattr(labels, "__array__") else list(labels)
    found = np.array(given)
    if found.dtype == object or found.dtype.kind == "S" or (
            found.dtype.kind == "U" and not all(isinstance(label, str) for label in given)):
        raise ValueError("labels must all be of one kind: texts, or numbers")
    if found.ndim == 2 and found.shape[1] == 1:
        warnings.warn("A column-vector y was passed when a 1d array was expected; it is taken as one",
                      sklearns("DataConversionWarning", UserWarning), stacklevel=3)
        found = found[:, 0]
    if found.ndim != 1:
        raise ValueError(f"labels must be one axis, not of shape {found.shape}")
    return found


def named(labels: np.ndarray, class_names: Sequence[str] | None, certain: bool, prompted: bool
          ) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Return classes (K,), sorted as scikit-learn has them, their names, each label's place among them (S,), and where
    in `class_names` each class stands (K,).

    certain: the names came with these very labels, so that numbers are places in them; names that were given beforehand
    must be sorted for that, since VotingClassifier and other tools number names in sorted order.
    prompted: CLIP reads the names. Raise ValueError if a label is no class, no name, or it is not certain which.
    """
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("Input y contains NaN or infinity: labels are names or whole numbers")
    if labels.dtype.kind == "f" and (labels != np.floor(labels)).any():
        raise ValueError("Unknown label type: continuous. Labels are names or whole numbers")
    if class_names is None:
        classes, numbers = np.unique(labels, return_inverse=True)
        if prompted and classes.dtype.kind != "U":
            raise ValueError(f"labels are numbers ({', '.join(map(str, classes[:3].tolist()))}, …) and say nothing to "
                             "CLIP: give class_names, one a class; or labels that are names; or text=\"none\"")
        names = checked_names(list(map(str, classes.tolist())))
        return classes, names, numbers.reshape(-1), np.arange(len(names))
    names = checked_names(class_names)
    if labels.dtype.kind == "U":
        order = np.argsort(np.array(names), kind="stable")
        place = {names[index]: number for number, index in enumerate(order)}
        foreign = [label for label in labels.tolist() if label not in place]
        if foreign:
            raise ValueError(f"the label {foreign[0]!r} is none of the class_names")
        ordered = [names[index] for index in order]
        return np.array(ordered), ordered, np.array([place[label] for label in labels.tolist()], np.int64), order
    if labels.dtype.kind not in "iufb":
        raise ValueError("with class_names, labels are whole numbers, the classes' places in it, or names of it")
    if not certain and names != sorted(names):
        raise ValueError("labels are numbers, and class_names of the constructor are not in sorted order: a tool may "
                         "have numbered them otherwise. Sort class_names, give them to fit, or use names as labels")
    return np.arange(len(names)), names, labels.astype(np.int64), np.arange(len(names))
