"""A data set as every part of the program sees it, whatever format it lies in (formats/)."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jclip_fewshot.data.listing import Label, LabelledPath, brief, count_of, natural_key, same_text, some
from jclip_fewshot.data.prompts import NUMBERED, domains_of
from jclip_fewshot.errors import UserError, nearest, shown

HELD_OUT = "held-out"  # the split of the labelled images that are no shots
UNKNOWN = -1  # the class of a labelled test set's image that has none of the data set's
SHOWN_CLASSES = 8  # in a line about a data set
CODE = re.compile(r"[0-9]+(?:\.0)?|n[0-9]{8}|[a-z]?[0-9]{3,}")  # 7, n02084071, c0042: a class name that says nothing


@dataclass(frozen=True)
class TestSet:
    """Test images in natural order: image_2.jpg before image_10.jpg."""

    __test__ = False  # pytest: no test class

    folder: Path
    names: list[str]  # what the answers call them: their paths below `folder`
    files: list[str]  # their paths below the data folder, in the order of names
    labels: dict[str, int] | None = None  # name to class id, or UNKNOWN; None where no answer is known
    notes: list[str] = field(default_factory=list)  # what a person should hear about, a sentence each


@dataclass(frozen=True)
class DataSet:
    """Classes, training images and the test sets beside them. Classes without any image are normal."""

    root: Path  # the data folder; all paths are below it
    format: str  # a name in formats.FORMATS
    class_names: list[str]  # raw names ("Animal_Bear"), by id
    domains: list[str]  # each class's domain ("Animal"; "" where it has none), by id
    train: list[LabelledPath]  # sorted by class and natural order of the path; of a CoOp split in its order
    splits: tuple[str, ...]  # names of the test sets, the one that is meant where none is named first
    notes: list[str]  # what a person should hear about, a sentence each
    read_split: Callable[[str], TestSet] = field(compare=False, repr=False)  # or reads another folder of images

    @property
    def plain(self) -> bool:
        """Without the contest's rules: as many shots of every class, result.txt with ids."""
        return self.format != "contest"

    @property
    def default_split(self) -> str:
        """The test set that is meant where none is named: without any, the labelled images that are no shots."""
        return self.splits[0] if self.splits else HELD_OUT

    def split(self, name: str = "", used: Collection[str] = ()) -> TestSet:
        """Return a test set by its name, or the default one. Raise UserError if there is none, or no image in it.

        used: paths of images that a model has learned from; the held-out split goes without them, others say so.
        """
        used, name = set(used), name or self.default_split
        if name != HELD_OUT:
            tests = self.read_split(name)
            seen = used.intersection(tests.files)
            if seen:
                tests.notes.append(f"{len(seen)} of the {count_of(len(tests.files), 'test image')} are shots of this "
                                   f"model ({min(seen)} for one), so its scores are too good")
            return tests
        rest = {path: label for path, label in self.train if path not in used}
        if not rest:
            raise UserError(f"{self.root} has no test set, and every labelled image is a shot; take fewer --shots, or "
                            "put test images into the folder test")
        files = sorted(rest, key=natural_key)
        return TestSet(self.root, files, files, rest, [f"no test set in {self.root}: the {len(rest)} labelled images "
                                                       "that are no shots are the test"] if not self.splits else [])

    def summary(self) -> str:
        """"tree of 30 classes: barrel (6), binocular (6), …; test sets: test": what a person checks before the work."""
        images = Counter(label for _, label in self.train)
        counts = [images[label] for label in range(len(self.class_names))]
        named = [f"{shown(name)} ({count})" for name, count in zip(self.class_names, counts)]
        if len(named) > SHOWN_CLASSES + 2:
            each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
            named[SHOWN_CLASSES:] = [f"… ({each} images each)"]
        tests = f"test sets: {', '.join(self.splits)}" if self.splits else \
            "no test set, so that the labelled images that are no shots are held out"
        return f"{self.format} of {count_of(len(counts), 'class', 'classes')}: {', '.join(named)}; {tests}"


def named_by_files(root: Path, format: str, class_names: list[str], train: list[LabelledPath],
                   splits: Iterable[str], notes: list[str], read_split: Callable[[str], TestSet]) -> DataSet:
    """Return the data set of a format without the contest's lists, with notes on class names that say nothing."""
    numbered = [name for name in class_names if NUMBERED.match(name)]
    codes = [name for name in class_names if CODE.fullmatch(name)]
    more = {f"the number in front of {count_of(len(numbered), 'class name')} ({some(numbered, 1)}) is left out of the "
            "prompts": numbered,
            f"{count_of(len(codes), 'class is', 'classes are')} called by a number or code ({some(codes, 3)}), which "
            "CLIP's text tower knows nothing about: say with --names what they show": codes}
    return DataSet(root, format, class_names, domains_of(class_names), train, tuple(splits),
                   [*notes, *(note for note, there in more.items() if there)], read_split)


def by_class(rows: Iterable[LabelledPath]) -> list[LabelledPath]:
    """Sorted by class id, then by natural order of the path."""
    return sorted(rows, key=lambda row: (row[1], natural_key(row[0])))


def one_label_each(rows: Iterable[tuple[int, str, Label]], source: Path) -> tuple[list[tuple[str, Label]], list[str]]:
    """Return listed images (line number, path, class) once each, and notes. Raise UserError if one has two classes."""
    first: dict[str, tuple[int, Label]] = {}
    again = 0
    for number, path, label in rows:
        line, known = first.setdefault(path, (number, label))
        if known != label:
            here, there = (shown(brief(str(one))) for one in (label, known))
            raise UserError(f"{source}, line {number}: {shown(brief(path))} has class {here} here and {there} on line "
                            f"{line}; keep the right one")
        again += line != number
    return ([(path, label) for path, (_, label) in first.items()],
            [f"{source.name} lists {count_of(again, 'image')} more than once"] if again else [])


def known_answers(named: Mapping[str, str], class_names: Sequence[str], what: str
                  ) -> tuple[dict[str, int] | None, list[str]]:
    """Return class ids of a test set (`what`) whose images have class names ("" for none), and notes about them.

    Names that differ in capitals alone are one class. Images of no known class are UNKNOWN, and noted; None if all are.
    """
    ids = {name: label for label, name in enumerate(class_names)}
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(name.casefold(), []).append(name)
    named = {image: same_text(text) for image, text in named.items()}
    meant: dict[str, str] = {}
    for name in named.values():
        near = [name] if name in ids else alike.get(name.casefold(), [])
        if len(near) == 1:
            meant[name] = near[0]
    labels = {image: ids[meant[name]] if name in meant else UNKNOWN for image, name in named.items()}
    notes = [f"{what}: {shown(name)} is taken for the class {shown(known)}" for name, known in meant.items()
             if name != known]
    unknown = [image for image, label in labels.items() if label == UNKNOWN]
    if unknown and (meant or any(named.values())):
        name = named[unknown[0]]
        why = f"{shown(name)} is no class{nearest(name, class_names)}" if name else f"{shown(unknown[0])} has no class"
        scored = f"{len(labels) - len(unknown)} alone are scored" if meant else "no scores"
        notes.append(f"{what}: {scored}, as the class of {len(unknown)} of {count_of(len(named), 'image')} is not "
                     f"known ({why}); rename or move them to be scored")
    return labels if meant else None, notes
