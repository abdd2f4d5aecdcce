"""The heads of a run and their ensemble, wired together: what train.py fits, test.py applies, evaluate measures.

Letters: N images, S shots, K classes, D feature width.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, List, Optional, Sequence

import numpy as np

from .config import nearest
from .ensemble import Ensemble
from .errors import UserError
from .heads import HEADS, Head, Shots

# told of each method as it is done: its name and the seconds of its fit
OnFit = Callable[[str, float], None]


def head_names(listed: str) -> List[str]:
    """`--heads` as names; every head where it is empty.

    Raises:
        UserError: a name that is no head's.
    """
    names = [name.strip() for name in listed.split(",") if name.strip()] or list(HEADS)
    for name in names:
        if name not in HEADS:
            raise UserError(f"--heads: unknown method {name!r}{nearest(name, HEADS)}; there are {', '.join(HEADS)}")
    return list(dict.fromkeys(["zero_shot"] + names))  # the ensemble leans on zero-shot


def make_head(name: str, seed: int) -> Head:
    """A head with its default settings; trained heads take the seed."""
    head = HEADS[name]
    return head(seed=seed) if head.seeded else head()


class Stack:
    """Heads fitted on the same shots, and the ensemble that combines them.

    After `fit`: `heads_` {name: Head}, `ensemble_`, `held_out_probs_` (S, K), the ensemble's answers to the shots
    held out, `seconds_` {name: seconds of the fit and its folds}.
    """

    def __init__(self, names: Optional[Sequence[str]] = None, seed: int = 0) -> None:
        self.names = list(names or HEADS)
        self.seed = seed

    def fit(self, shots: Shots, on_fit: OnFit = lambda name, seconds: None) -> "Stack":
        """Fits every head on the shots, and the ensemble on their held-out logits. Returns self."""
        self.shots_ = shots
        self.heads_: Dict[str, Head] = {}
        self.seconds_: Dict[str, float] = {}
        self.held_out_: Dict[str, np.ndarray] = {}
        for name in self.names:
            begun = time.perf_counter()
            self.heads_[name] = make_head(name, self.seed).fit(shots)
            self.held_out_[name] = self.heads_[name].held_out_logits()
            self.seconds_[name] = time.perf_counter() - begun
            on_fit(name, self.seconds_[name])
        begun = time.perf_counter()
        self.ensemble_ = Ensemble().fit(self.held_out_, shots)
        self.held_out_probs_ = self.ensemble_.held_out_probs_
        self.seconds_["ensemble"] = time.perf_counter() - begun
        on_fit("ensemble", self.seconds_["ensemble"])
        return self

    def logits(self, features: np.ndarray) -> Dict[str, np.ndarray]:
        """(N, D) → each head's (N, K) logits."""
        return {name: head.logits(features) for name, head in self.heads_.items()}

    def probs(self, logits: Dict[str, np.ndarray]) -> np.ndarray:
        """The ensemble's (N, K) probabilities from the heads' logits."""
        return self.ensemble_.probs(logits)

    def state(self) -> Dict[str, np.ndarray]:
        """Everything that a test run needs, as arrays with names like `heads/gda/weight`."""
        arrays = {f"heads/{name}/{key}": value for name, head in self.heads_.items()
                  for key, value in head.state().items()}
        arrays.update({f"ensemble/{key}": value for key, value in self.ensemble_.state().items()})
        arrays.update({f"shots/{key}": getattr(self.shots_, key) for key in ("features", "labels", "text", "domains")})
        arrays["names"] = np.array(self.names)
        arrays["held_out_probs"] = self.held_out_probs_
        return arrays

    @classmethod
    def from_state(cls, arrays: Dict[str, np.ndarray]) -> "Stack":
        """The inverse of `state`.

        Raises:
            UserError: arrays of another version of this program.
        """
        try:
            stack = cls([str(name) for name in arrays["names"]])
            stack.shots_ = Shots(**{key: arrays[f"shots/{key}"] for key in ("features", "labels", "text", "domains")})
            stack.heads_ = {name: HEADS[name].from_state(_under(arrays, f"heads/{name}/")) for name in stack.names}
            stack.ensemble_ = Ensemble.from_state(_under(arrays, "ensemble/"))
            stack.held_out_probs_ = arrays["held_out_probs"]
        except (KeyError, ValueError) as error:
            raise UserError(f"the run was made by another version of this program ({error}): train again")
        return stack

    def settings(self) -> Dict[str, dict]:
        """What each method chose on the shots, with its cross-validated score."""
        chosen = {name: head.settings_ for name, head in self.heads_.items()}
        chosen["ensemble"] = self.ensemble_.settings_
        return chosen

    def histories(self) -> Dict[str, list]:
        """The training curves of the trained heads."""
        return {name: head.history_ for name, head in self.heads_.items() if head.history_}


def _under(arrays: Dict[str, np.ndarray], prefix: str) -> Dict[str, np.ndarray]:
    return {name[len(prefix):]: value for name, value in arrays.items() if name.startswith(prefix)}


def domain_indices(domains: Sequence[str]) -> np.ndarray:
    """Each class's domain as a number, in order of first appearance: (K,) int64."""
    order = {domain: index for index, domain in enumerate(dict.fromkeys(domains))}
    return np.array([order[domain] for domain in domains], np.int64)


def settings_table(settings: Dict[str, dict]) -> str:
    """A row a method: its cross-validated top-1 and what it chose on the shots."""
    rows = []
    for name, chosen in settings.items():
        score = chosen.get("held_out_top1")
        said = ", ".join(f"{key} {_short(value)}" for key, value in chosen.items()
                         if not key.startswith("held_out_"))
        rows.append([name, "" if score is None else f"{score:.1f}", said])
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    header = f"{'method':{widths[0]}}  {'cv':>{widths[1]}}  chosen on the shots"
    return "\n".join([header] + [f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}".rstrip() for row in rows])


def _short(value: object) -> str:
    """A setting as a person reads it: 0.333 rather than 0.3333333."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)
