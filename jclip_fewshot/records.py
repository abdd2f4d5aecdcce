"""What a run's JSON files hold, as types: reading one checks it, and keys that are not named here are ignored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

from msgspec import Meta, Struct

from jclip_fewshot.config import TestConfig, TrainConfig, ValidateConfig, checked
from jclip_fewshot.console import filled
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.sources import encoders_of
from jclip_fewshot.storage.json_files import read_json

VALIDATE = "validate.json"  # what `python -m jclip_fewshot validate` leaves in a folder

Percent = Annotated[float, Meta(ge=0, le=100.0001)]  # a weighted mean may be rounded up
Percents = Annotated[list[Percent], Meta(min_length=1)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
# a path below the data folder: relative, without a part ".."
PathInside = Annotated[str, Meta(min_length=1, max_length=4000,
                                 pattern=r"\A(?!/)(?!(.*[/\\])?\.\.([/\\]|\Z))[^\0]*\Z")]


class Made(Struct, kw_only=True):
    """How a result came about: provenance.made_by() and the settings."""

    command: str
    date: str
    folder: str = ""
    versions: dict[str, str] = {}
    config: Any

    def __post_init__(self) -> None:
        try:
            self.config = checked(type(self.config), vars(self.config))  # msgspec knows no choices and ranges
        except UserError as error:
            raise ValueError(f"config: {error}") from None


class Shots(Struct, kw_only=True):
    """The S training images of a run."""

    rule: str
    files: list[PathInside]
    labels: list[Count]
    unreadable: dict[str, str] = {}
    support: Count = 0  # how many of them, the last ones, are found or generated images


class Record(Made, kw_only=True):
    """How a run was trained, from what, and what its methods chose."""

    device: str
    config: TrainConfig
    encoder: dict[str, Any]  # what the source's `record` said
    classes: Annotated[list[str], Meta(min_length=1)]
    domains: list[str]
    shots: Shots
    without_labels: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]]  # {method: what it chose on the shots}
    histories: dict[str, list[dict[str, int | float | None]]]  # {method: an object an epoch}
    seconds: dict[str, Seconds]  # of each stage, and of each method under "method NAME"

    def __post_init__(self) -> None:
        super().__post_init__()
        classes, files, labels = len(self.classes), len(self.shots.files), self.shots.labels
        if len(self.domains) != classes or len(labels) != files or any(label >= classes for label in labels):
            raise ValueError("classes, domains and shots do not fit each other")
        if not all(isinstance(one, dict) and isinstance(name := one.get("model", one.get("features")), str) and name
                   and isinstance(one.get("weights", ""), str) for one in encoders_of(self.encoder)):
            raise ValueError("the encoder has neither a model nor a file of features")

    def held_out(self) -> HeldOut | None:
        """Return the ensemble's top-1 on held-out shots; None where no shot could be left out."""
        top1 = self.settings.get("ensemble", {}).get("held_out_top1")
        count = sum(shots for shots in Counter(self.shots.labels).values() if shots > 1)
        if not isinstance(top1, (int, float)) or not 0 <= top1 <= 100 or not count:
            return None
        share = (top1 / 100 * count + 1) / (count + 2)  # Laplace's, so that 100 % is not without error
        return HeldOut(float(top1), 100 * (share * (1 - share) / (count + 2)) ** 0.5, count)

    def estimate(self) -> str:
        """Return a sentence that says what the ensemble should score."""
        found = self.held_out()
        return filled("No shot could be held out, so nothing says what to expect on new images." if found is None else
                      f"Top-1 on {found.shots} held-out shots: {found} % (± one standard error). Expect about this on "
                      "new images if they are like the shots.")

    def summary(self) -> str:
        """Return what was learned, and what it should score."""
        methods, images = len(set(self.settings) - {"ensemble"}), len(self.shots.labels)
        learned = f"Fitted {methods} methods and their ensemble" if methods > 1 else "Fitted one method"
        seen, known = len(set(self.shots.labels)), len(self.classes)
        classes = f"{known} classes" if seen in (0, known) else f"{seen} of {known} classes"
        source = f"{images} images of" if images else "the names of"
        return f"{filled(f'{learned} on {source} {classes}.')}\n{self.estimate()}"


class HeldOut(NamedTuple):
    """Top-1 of the ensemble on so many shots, each answered without itself, in percent, and one standard error."""

    top1: float
    error: float
    shots: int

    def __str__(self) -> str:
        return f"{self.top1:.1f} ± {self.error:.1f}"


class Score(TypedDict):
    """What evaluation/scores.py says of a method on a test set, in percent."""

    top1: Percent
    top5: Percent
    class_mean: Percent
    domains: dict[str, dict[str, float]]


class TestRecord(Made, kw_only=True):
    """How a run answered a test set; scores {method: Score}, the last one what was submitted, where truth is known."""

    __test__ = False  # pytest: no test class

    device: str
    config: TestConfig
    images: Positive
    unreadable: dict[str, str]
    refinement: dict[str, Any] | None
    scores: dict[str, Score]
    seconds: dict[str, Seconds]


class Row(TypedDict):
    """A method's held-out scores, one a seed; error: the sampling error of each top1."""

    top1: Percents
    top5: Percents
    error: list[Percent]
    domains: dict[str, Percents]


class Validation(Made, kw_only=True):
    """What `validate` found on n held-out images of k classes: {shots a class: {method: Row}}."""

    config: ValidateConfig
    n: Positive
    k: Positive
    curve: Annotated[dict[Positive, Annotated[dict[str, Row], Meta(min_length=1)]], Meta(min_length=1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set.intersection(*map(set, self.curve.values())):
            raise ValueError("the numbers of shots of the curve have no method in common")
        if any(len(row["top1"]) != len(row["top5"]) for methods in self.curve.values() for row in methods.values()):
            raise ValueError("the curve has other numbers of seeds for top-1 and top-5")


def read_validation(folder: Path) -> Validation:
    """Return what `validate` left in a folder. Raise UserError if it is absent or damaged."""
    return read_json(folder / VALIDATE, Validation, "validate again")
