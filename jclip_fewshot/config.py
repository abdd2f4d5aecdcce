"""Every default stands here, once; the command-line flags and the TOML keys are made from it.

A field's name is its flag (`--shot-list`) and its key in a --config file (`shot_list`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jclip_fewshot.errors import UserError, nearest

Config = TypeVar("Config")
FORMATS = "contest", "coop", "imagefolder", "table", "tree"  # of data sets, see data/formats
DEMO_SEED = 1  # of the built-in contest that README's numbers are of


def option(default: Any, help: str, group: str, choices: Sequence[str] | None = None,
           metavar: str | None = None, low: int | None = None, implies: str = "") -> Any:
    """A field with what its flag needs: `low` is the least value that makes sense; `implies` a switch it turns on.

    A default that is a tuple of texts: the flag may be given several times.
    """
    return field(default=default, metadata=dict(help=help, group=group, choices=choices, metavar=metavar, low=low,
                                                implies=implies))


@dataclass(frozen=True)
class MachineConfig:
    """What every command takes."""

    device: str = option("auto", "where Jittor runs", "machine", ("auto", "cpu", "cuda"))
    precision: str = option("auto", "of the encoder's products; auto: float16 on CUDA, bfloat16 where safe",
                            "machine", ("auto", "float32", "float16", "bfloat16"))
    batch_size: int = option(0, "images a batch; 0 fits it to the device", "machine", metavar="N", low=0)
    workers: int = option(0, "decoding processes; 0 takes one a core", "machine", metavar="N", low=0)
    cache: str = option(".cache", "folder of the feature cache; empty for none", "machine", metavar="DIR")
    quiet: bool = option(False, "print results and warnings alone", "machine")
    verbose: bool = option(False, "show Jittor's own log and full error traces", "machine")

    @property
    def encoding(self) -> dict[str, Any]:
        """What open_source and reopen_source take of them."""
        return {"cache": self.cache, "batch_size": self.batch_size, "workers": self.workers,
                "precision": self.precision}


@dataclass(frozen=True)
class SourceConfig(MachineConfig):
    """Which images, which CLIP, which methods: train.py and validate."""

    data: str = option("Dataset", "the folder of the data set (docs/data.md: formats)", "data", metavar="DIR")
    format: str = option("", "how the data set lies there, where two fit (docs/data.md)", "data", ("", *FORMATS))
    labels: str = option("", "a table of images and their classes: .csv, .tsv, .jsonl", "data", metavar="FILE")
    board: str = option("A", "B adds the classes of classes_b.txt", "data", ("A", "B"))
    domains: bool = option(False, "a class name's part before the first _ is its domain", "data")
    demo: bool = option(False, "the built-in small contest and its small CLIP", "data")
    demo_seed: int = option(DEMO_SEED, "draw it from seed N; turns --demo on", "data", metavar="N", low=0,
                            implies="demo")
    skip_bad: bool = option(False, "leave out training images that cannot be read", "data")
    model: tuple[str, ...] = option(("ViT-B/32",), "a released CLIP, or a checkpoint file; repeat it for several",
                                    "features", metavar="NAME")
    weights: str = option("weights", "where checkpoints lie and are downloaded to", "features", metavar="DIR")
    features: tuple[str, ...] = option((), "take features from FILE.npz in place of a checkpoint; may be repeated",
                                       "features", metavar="FILE")
    features_extra: tuple[str, ...] = option((), "rows of an image encoder without text, with CLIP; may be repeated",
                                             "features", metavar="FILE")
    augment: int = option(10, "random views averaged a shot; 0 takes the plain image", "features", metavar="V", low=0)
    prompts: str = option("", "folder of templates and descriptions; empty for ours", "features", metavar="DIR")
    prompt_set: str = option("both", "sentences of a class: seeds, templates, openai80, descriptions, both",
                             "features", ("both", "seeds", "templates", "openai80", "descriptions"), "SET")
    descriptions: str = option("", "your own descriptions, {class name: [sentence, ...]}", "features",
                               metavar="FILE.json")
    names: str = option("", "what to call classes: raw name, tab, name", "features", metavar="FILE.tsv")
    templates: str = option("", "a template a line; of one class: raw name, tab, template", "features", metavar="FILE")
    select: str = option("random", "how shots are chosen", "shots", ("random", "representative"))
    pool: int = option(64, "images a class that representative choice looks at", "shots", metavar="N", low=1)
    heads: str = option("", "empty for the ten that gain from each other; all for every one (twice the time); fast for "
                        "those without training (a tenth of it, up to 0.2 points less); or names with commas", "method",
                        metavar="LIST")
    tune: str = option("auto", "methods that tune CLIP's towers: auto, off or a list", "method", metavar="LIST")
    runs: str = option("runs", "where run folders are made", "run", metavar="DIR")
    name: str = option("", "of the run's folder; empty for date and board", "run", metavar="NAME")


@dataclass(frozen=True)
class TrainConfig(SourceConfig):
    """train.py"""

    from_run: str = option("", "repeat a run: its settings and its shots", "run", metavar="DIR")
    shots: int = option(4, "training images a class, in a plain tree at most; 0: names alone", "shots", metavar="N",
                        low=0)
    seed: int = option(0, "of the draw, the random views and all training", "shots", metavar="N", low=0)
    support: str = option("", "a folder a class of found or generated images, some wrong", "shots", metavar="DIR")
    support_for: str = option("all", "which classes --support serves", "shots", ("all", "without-shots"))
    unlabelled: str = option("", "images of anything, without labels, to learn from", "shots", metavar="DIR")
    transductive: bool = option(False, "the test images too, without labels", "shots")
    label_free: str = option("", "who learns from them: upl,lafter_text,clip_pr", "method", metavar="LIST")
    shot_list: str = option("", "use exactly the images that FILE lists", "shots", metavar="FILE")


@dataclass(frozen=True)
class ValidateConfig(SourceConfig):
    """python -m jclip_fewshot validate"""

    shots: str = option("4", "training images a class; 1,2,4,8,16 draws the curve", "shots", metavar="LIST")
    seeds: int = option(3, "draws of the shots", "shots", metavar="N", low=1)
    per_class: int = option(10, "labelled images a class that are held out, at most", "shots", metavar="N", low=1)
    views: int = option(1, "views averaged a held-out image, as test.py --views", "features", metavar="V", low=1)
    board_mix: bool = option(False, "weigh the domains as board A's test set seems to", "shots")


@dataclass(frozen=True)
class TestConfig(MachineConfig):
    """test.py: settings of the method come from the run, not from flags."""

    __test__ = False  # pytest: no test class

    run: str = option("", "a run's folder; empty for the newest", "run", metavar="DIR")
    runs: str = option("runs", "where the newest run is looked for", "run", metavar="DIR")
    data: str = option("", "the contest's folder; empty for the run's own", "data", metavar="DIR")
    split: str = option("", "a test set, or a folder in the data folder; empty for the run's board", "data",
                        metavar="A|B|DIR")
    demo: bool = option(False, "the built-in small contest's newest run", "data")
    demo_seed: int = option(DEMO_SEED, "the one of seed N; turns --demo on", "data", metavar="N", low=0,
                            implies="demo")
    model: tuple[str, ...] = option((), "where the run's checkpoint lies now; one for each of its models, in order",
                                    "features", metavar="FILE")
    weights: str = option("", "where the run's released checkpoint lies now", "features", metavar="DIR")
    features: tuple[str, ...] = option((), "where the run's feature file lies now; one for each", "features",
                                       metavar="FILE")
    features_extra: tuple[str, ...] = option((), "the same for its extra feature files", "features", metavar="FILE")
    views: int = option(1, "views averaged a test image: centre, whole, mirrored, crops", "features", metavar="V",
                        low=1)
    refine: str = option("auto", "refine the test set as a whole", "method", ("auto", "on", "off"))
    result: str = option("", "the answers' file; of a .txt a .zip next to it [result.txt, result.csv; in the demo's "
                         "folder with --demo]", "output", metavar="FILE")
    out: str = option("auto", "txt: the contest's submission; csv: path, label, probability; auto: by the format",
                      "output", ("auto", "txt", "csv"))


def checked(config: type[Config], values: dict[str, Any]) -> Config:
    """Settings from `values`, each checked for type, choice and range.

    Raises:
        UserError: naming the key and what it takes.
    """
    known = {f.name: f for f in fields(config)}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"unknown setting {name!r}{nearest(name, known)}")
        f = known[name]
        flag = "--" + name.replace("_", "-")
        if isinstance(f.default, tuple):
            values = {**values, name: _several(flag, value)}
            continue
        if type(value) is not type(f.default):
            raise UserError(f"{flag} takes {_KINDS[type(f.default)]}, not {_brief(value)}")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{flag} holds a NUL byte, which no name may: {_brief(value)}")
        choices, low = f.metadata["choices"], f.metadata["low"]
        if choices and value not in choices:
            raise UserError(f"{flag} takes {', '.join(c for c in choices if c)}, not {_brief(value)}")
        if low is not None and not low <= value < 2**31:
            raise UserError(f"{flag} takes a number from {low} up, not {_brief(value)}")
    return config(**values)


def _several(flag: str, value: Any) -> tuple[str, ...]:
    """One text, or a list of different ones, as a tuple."""
    found = (value,) if isinstance(value, str) and value else value
    if not isinstance(found, (str, list, tuple)) or not all(isinstance(one, str) and one for one in found):
        raise UserError(f"{flag} takes text, or a list of texts, not {_brief(value)}")
    for one in found:
        if "\0" in one:
            raise UserError(f"{flag} holds a NUL byte, which no name may: {_brief(one)}")
        if found.count(one) > 1:
            raise UserError(f"{flag} {one} is given twice; each encoder counts once")
    return tuple(found)


def _brief(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**31:
        return "one so large"  # Python refuses to print thousands of digits
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
