"""The settings of each command, with their defaults; flags and TOML keys are made from them.

A field's name is its flag (`--shot-list`) and its key in a --config file (`shot_list`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jclip_fewshot.errors import UserError, nearest

Config = TypeVar("Config", bound="CommandConfig")
FORMATS = "contest", "coop", "imagefolder", "table", "tree"  # of data sets, see data/formats
DEMO_SEED = 1  # of the built-in contest that README's numbers are of


def option(default: Any, help: str, group: str, choices: Sequence[str] | None = None, metavar: str | None = None,
           low: int | None = None, **more: Any) -> Any:
    """Return a field with what its flag needs.

    A default that is a tuple of texts: the flag may be given several times; with `count`, it takes so many texts.
    low: the least value that makes sense. In the group "arguments" it is no flag but stands by itself, in the order of
    the fields. more: `implies`, a switch that it turns on; `needed`, it has no default; `count`.
    """
    about = {"implies": "", "needed": False, "count": 0, **more}
    return field(default=default, metadata={"help": help, "group": group, "choices": choices, "metavar": metavar,
                                            "low": low, **about})


@dataclass(frozen=True)
class CommandConfig:
    """What every command takes."""

    verbose: bool = option(False, "show Jittor's own log and full error traces", "machine")


@dataclass(frozen=True)
class DeviceConfig(CommandConfig):
    """What every command takes that starts Jittor."""

    device: str = option("auto", "where Jittor runs", "machine", ("auto", "cpu", "cuda"))
    quiet: bool = option(False, "print only results and warnings", "machine")


@dataclass(frozen=True)
class CheckpointConfig(CommandConfig):
    """What a checkpoint may leave open."""

    activation: str = option("", "activation function of the checkpoint, if its files do not say it", "features",
                             ("", "quick_gelu", "gelu", "gelu_tanh"))
    head_width: int = option(0, "width of an attention head, if they do not say it", "features", metavar="N", low=0)


@dataclass(frozen=True)
class MachineConfig(DeviceConfig):
    """What every command takes that encodes images."""

    precision: str = option("auto", "number format of the encoder; auto: float16 on CUDA, bfloat16 where it is safe",
                            "machine", ("auto", "float32", "float16", "bfloat16"))
    batch_size: int = option(0, "images in a batch; 0 chooses it for the device", "machine", metavar="N", low=0)
    workers: int = option(0, "processes that decode images; 0 takes one for each core", "machine", metavar="N", low=0)
    cache: str = option(".cache", "folder of the feature cache; empty for none", "machine", metavar="DIR")

    @property
    def encoding(self) -> dict[str, Any]:
        """Return what open_source and reopen_source take of the settings."""
        return {"cache": self.cache, "batch_size": self.batch_size, "workers": self.workers,
                "precision": self.precision}


@dataclass(frozen=True)
class SourceConfig(MachineConfig, CheckpointConfig):
    """Which images, which CLIP, which methods: train.py and validate."""

    data: str = option("Dataset", "folder of the data set (docs/data.md lists the layouts)", "data", metavar="DIR")
    format: str = option("", "layout of the data set, if two fit", "data", ("", *FORMATS))
    labels: str = option("", "table of images and their classes: .csv, .tsv or .jsonl", "data", metavar="FILE")
    board: str = option("A", "board of the contest; B adds the classes of classes_b.txt", "data", ("A", "B"))
    domains: bool = option(False, "take the part of a class name before the first _ as its domain", "data")
    demo: bool = option(False, "use the built-in small contest and its small CLIP", "data")
    demo_seed: int = option(DEMO_SEED, "draw the built-in contest from random seed N; turns --demo on", "data",
                            metavar="N", low=0, implies="demo")
    skip_bad: bool = option(False, "leave out training images that cannot be read", "data")
    model: tuple[str, ...] = option(("ViT-B/32",), "a released CLIP or a checkpoint file; may be repeated", "features",
                                    metavar="NAME")
    weights: str = option("weights", "folder where checkpoints lie and are downloaded to", "features", metavar="DIR")
    output: str = option("", "which output of an ONNX encoder holds the features; empty for the usual one", "features",
                         metavar="NAME")
    features: tuple[str, ...] = option((), "take features from FILE.npz instead of a checkpoint; may be repeated",
                                       "features", metavar="FILE")
    features_extra: tuple[str, ...] = option((), "features of an image encoder without text, used beside CLIP; may be "
                                             "repeated", "features", metavar="FILE")
    augment: int = option(10, "random training views averaged for each shot; 0 takes the plain image", "features",
                          metavar="V", low=0)
    prompts: str = option("", "folder of templates and descriptions; empty for ours", "features", metavar="DIR")
    prompt_set: str = option("both", "sentences for each class: seeds, templates, openai80, descriptions, or both",
                             "features", ("both", "seeds", "templates", "openai80", "descriptions"), "SET")
    descriptions: str = option("", "your own descriptions: {class name: [sentence, ...]}", "features",
                               metavar="FILE.json")
    names: str = option("", "what to call the classes; each line: raw name, tab, name", "features", metavar="FILE.tsv")
    templates: str = option("", "your own templates, one a line; for one class: raw name, tab, template", "features",
                            metavar="FILE")
    select: str = option("random", "how shots are chosen: random or representative", "shots",
                         ("random", "representative"), "HOW")
    pool: int = option(64, "images of each class that representative selection considers", "shots", metavar="N", low=1)
    methods: str = option("auto", "methods to fit: auto (those that data and time allow), fast (no training: a tenth "
                          "of the time, up to 0.2 points less), all, or names separated by commas", "method",
                          metavar="LIST")
    runs: str = option("runs", "folder in which runs are saved", "run", metavar="DIR")
    name: str = option("", "name of the run's folder; empty for date and board", "run", metavar="NAME")

    @property
    def encoding(self) -> dict[str, Any]:
        return {**super().encoding, "activation": self.activation, "head_width": self.head_width,
                "output": self.output}


@dataclass(frozen=True)
class TrainConfig(SourceConfig):
    """train.py"""

    from_run: str = option("", "repeat a saved run: its settings and its shots", "run", metavar="DIR")
    shots: int = option(4, "training images for each class, at most; 0: class names only", "shots", metavar="N", low=0)
    seed: int = option(0, "random seed for choosing shots, augmentation and training", "shots", metavar="N", low=0)
    support: str = option("", "found or generated images in class folders; some may be wrong", "shots", metavar="DIR")
    support_for: str = option("all", "classes that --support serves: all or without-shots", "shots",
                              ("all", "without-shots"), "WHICH")
    unlabelled: str = option("", "folder of images without labels to learn from", "shots", metavar="DIR")
    transductive: bool = option(False, "learn from the test images too, without their labels", "shots")
    shot_list: str = option("", "use exactly the images that FILE lists", "shots", metavar="FILE")


@dataclass(frozen=True)
class ValidateConfig(SourceConfig):
    """python -m jclip_fewshot validate"""

    run: str = option("", "use the settings of a saved run", "run", metavar="DIR")
    shots: str = option("4", "training images for each class; 1,2,4,8,16 draws the curve", "shots", metavar="LIST")
    seeds: int = option(3, "number of random seeds: each draws other shots", "shots", metavar="N", low=1)
    per_class: int = option(10, "held-out labelled images of each class, at most", "shots", metavar="N", low=1)
    views: int = option(1, "test views averaged for each held-out image, as test.py --views", "features", metavar="V",
                        low=1)
    board_mix: bool = option(False, "weight the domains as board A's test set seems to", "shots")


@dataclass(frozen=True)
class MovedConfig(MachineConfig):
    """Where what a run was trained with lies now: commands that open a run and encode."""

    model: tuple[str, ...] = option((), "where the run's checkpoint lies now; one for each of its models, in order",
                                    "features", metavar="FILE")
    weights: str = option("", "folder where the run's released checkpoint lies now", "features", metavar="DIR")
    features: tuple[str, ...] = option((), "where the run's feature file lies now; one for each, in order", "features",
                                       metavar="FILE")
    features_extra: tuple[str, ...] = option((), "the same for its extra feature files", "features", metavar="FILE")


@dataclass(frozen=True)
class TestConfig(MovedConfig):
    """test.py: settings of the method come from the run, not from flags."""

    __test__ = False  # pytest: no test class

    run: str = option("", "folder of a run; empty for the newest", "run", metavar="DIR")
    runs: str = option("runs", "folder in which the newest run is looked for", "run", metavar="DIR")
    data: str = option("", "folder of the data set; empty for the run's own", "data", metavar="DIR")
    split: str = option("", "test set: A, B, or a folder in the data folder; empty for the run's board", "data",
                        metavar="A|B|DIR")
    demo: bool = option(False, "use the newest run of the built-in contest", "data")
    demo_seed: int = option(DEMO_SEED, "the built-in contest of random seed N; turns --demo on", "data", metavar="N",
                            low=0, implies="demo")
    views: int = option(1, "test views averaged for each image: centre, whole, mirrored, crops", "features",
                        metavar="V", low=1)
    refine: str = option("auto", "refine the answers of the whole test set together", "method", ("auto", "on", "off"))
    result: str = option("", "file for the answers, a .zip beside a .txt [result.txt or result.csv; with --demo in the "
                         "demo's folder]", "output", metavar="FILE")
    out: str = option("auto", "format of the answers: txt, the contest's submission; csv: path, label, probability; "
                      "auto chooses by the data set", "output", ("auto", "txt", "csv"))


@dataclass(frozen=True)
class PredictConfig(MovedConfig):
    """python -m jclip_fewshot predict"""

    run: str = option("", "folder of a run, or a classifier saved from Python", "arguments", metavar="RUN", needed=True)
    images: tuple[str, ...] = option((), "files, folders, or patterns like 'a/*.jpg'; - reads names from standard "
                                     "input", "arguments", metavar="IMAGE", needed=True)
    top: int = option(5, "classes printed for each picture, best first", "output", metavar="N", low=1)
    json: bool = option(False, "print a JSON object on each line", "output")
    csv: bool = option(False, "print comma-separated values with a header", "output")
    refine: bool = option(False, "answer all pictures together, as test.py does", "method")
    views: int = option(1, "test views averaged for each picture, as test.py --views", "features", metavar="V", low=1)
    reject: float = option(0.0, "print (none of these) if no class has at least probability P", "output", metavar="P",
                           low=0)


@dataclass(frozen=True)
class EvaluateConfig(DeviceConfig):
    """python -m jclip_fewshot evaluate"""

    suite: str = option("", "feature suite with train_x, train_y, test_x, test_y, text and classes", "data",
                        metavar="FILE.npz", needed=True)
    methods: str = option("auto", "methods to score: auto (those of train.py), fast, all, or names separated by commas",
                          "method", metavar="LIST")
    shots: int = option(-1, "shots of each class, drawn by the random seed; 0: class names only; -1: all of the suite",
                        "shots", metavar="N", low=-1)
    seed: int = option(0, "random seed for choosing shots and tasks, and for training", "shots", metavar="N", low=0)
    seeds: int = option(1, "repeat with N random seeds from --seed on, and print mean and spread", "shots", metavar="N",
                        low=1)
    bootstrap: int = option(0, "print a 95 % interval of top-1 from N bootstrap samples of test rows or tasks",
                            "output", metavar="N", low=0)
    compare: str = option("", "compare with the result of another evaluation, row by row", "output",
                          metavar="OTHER.json")
    json: str = option("", "write the numbers to a file", "output", metavar="OUT")
    tasks: int = option(0, "score N tasks of few classes instead of all rows", "data", metavar="N", low=0)
    task_classes: int = option(5, "classes of each task", "data", metavar="N", low=1)
    task_queries: int = option(75, "test rows of each task, at most", "data", metavar="N", low=1)


@dataclass(frozen=True)
class BenchmarkConfig(MachineConfig):
    """python -m jclip_fewshot benchmark"""

    data: tuple[str, ...] = option((), "folders of data sets (docs/data.md), or feature suites .npz", "arguments",
                                   metavar="DATA", needed=True)
    methods: str = option("auto", "auto (train.py's, without those that need the images again), fast, all, or names "
                          "with commas", "method", metavar="LIST")
    shots: str = option("1,2,4,8,16", "numbers of shots a class, with commas", "shots", metavar="LIST")
    seeds: int = option(3, "random seeds, from 0 on, or from 1 on with --coop-seeds", "shots", metavar="N", low=1)
    coop_seeds: bool = option(False, "draw the shots that CoOp's code draws", "shots")
    model: tuple[str, ...] = option(("ViT-B/32",), "of folders: a released CLIP, or a checkpoint file; repeat it for "
                                    "several", "features", metavar="NAME")
    weights: str = option("weights", "where checkpoints lie and are downloaded to", "features", metavar="DIR")
    augment: int = option(10, "random views averaged a shot; 0 takes the plain image", "features", metavar="V", low=0)
    prompt_set: str = option("both", "sentences of a class: seeds, templates, openai80, descriptions, both",
                             "features", ("both", "seeds", "templates", "openai80", "descriptions"), "SET")
    out: str = option("benchmark", "folder of the numbers and the picture; what is finished there is not repeated",
                      "output", metavar="DIR")


@dataclass(frozen=True)
class ExportConfig(MovedConfig):
    """python -m jclip_fewshot export"""

    run: str = option("", "folder of a run", "arguments", metavar="RUN", needed=True)
    target: str = option("", "file to write: .npz, .safetensors or .onnx", "arguments", metavar="OUT", needed=True)
    uint8: bool = option(False, "make an .onnx that takes pixels from 0 to 255, as Pillow has them", "output")


@dataclass(frozen=True)
class ReportConfig(CommandConfig):
    """python -m jclip_fewshot report"""

    run: str = option("", "folder of a run; empty for the newest", "arguments", metavar="RUN")
    runs: str = option("runs", "folder in which the newest run is looked for", "run", metavar="DIR")
    split: str = option("", "test set to report; empty for the one answered last", "data", metavar="A|B|DIR")
    out: str = option("", "folder to write to; empty for the folder report in the run's", "output", metavar="DIR")


@dataclass(frozen=True)
class RunsConfig(CommandConfig):
    """python -m jclip_fewshot runs"""

    runs: str = option("runs", "folder of the runs", "run", metavar="DIR")
    compare: tuple[str, ...] = option((), "compare the answers of two runs to the same test set", "run", metavar="RUN",
                                      count=2)
    split: str = option("", "test set to compare; empty for one that both have answered", "data", metavar="A|B|DIR")


@dataclass(frozen=True)
class CheckConfig(CommandConfig):
    """python -m jclip_fewshot check"""

    result: str = option("", "a submission: result.txt, or the .zip around it", "arguments", metavar="result.txt",
                         needed=True)
    data: str = option("Dataset", "folder of the data set", "data", metavar="DIR")
    format: str = option("", "layout of the data set, if two fit", "data", ("", *FORMATS))
    labels: str = option("", "table of images and their classes: .csv, .tsv or .jsonl", "data", metavar="FILE")
    split: str = option("", "test set: A, B, or a folder in the data folder; empty for A, or test of a plain tree",
                        "data", metavar="A|B|DIR")


@dataclass(frozen=True)
class ConvertConfig(CheckpointConfig):
    """python -m jclip_fewshot convert"""

    source: str = option("", "checkpoint: .pt of OpenAI or torch.save, Jittor's .pkl, or .safetensors", "arguments",
                         metavar="IN", needed=True)
    target: str = option("", "OUT.safetensors; a name without an ending is a folder, for ONNX", "arguments",
                         metavar="OUT", needed=True)


@dataclass(frozen=True)
class CacheConfig(CommandConfig):
    """python -m jclip_fewshot cache"""

    size: bool = option(False, "print the size of the cache", "run")
    clear: bool = option(False, "delete everything in the cache; it is computed again when needed", "run")
    cache: str = option(".cache", "folder of the cache", "run", metavar="DIR")


@dataclass(frozen=True)
class DoctorConfig(DeviceConfig, CheckpointConfig):
    """python -m jclip_fewshot doctor"""

    data: str = option("Dataset", "folder of the data set", "data", metavar="DIR")
    format: str = option("", "layout of the data set, if two fit", "data", ("", *FORMATS))
    labels: str = option("", "table of images and their classes: .csv, .tsv or .jsonl", "data", metavar="FILE")
    model: tuple[str, ...] = option(("ViT-B/32",), "a released CLIP or a checkpoint file; may be repeated",
                                    "features", metavar="NAME")
    weights: str = option("weights", "folder where checkpoints lie", "features", metavar="DIR")
    deep: bool = option(False, "read the whole checkpoint and compare its digest", "features")


def checked(config: type[Config], values: dict[str, Any]) -> Config:
    """Return settings from `values`, each checked for type, choice and range.

    Raise UserError that names the flag and what it takes.
    """
    known = {f.name: f for f in fields(config)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"unknown setting {name!r}{nearest(name, known)}")
        default, about, flag = known[name].default, known[name].metadata, flag_of(name)
        if isinstance(default, tuple):
            value = found[name] = _several(flag, value)
            twice = [one for one in value if about["group"] == "features" and value.count(one) > 1]
            if twice:
                raise UserError(f"{flag} {twice[0]} is given twice; each encoder counts once")
        elif isinstance(default, float) and type(value) is int:
            value = found[name] = float(value)
        else:
            found[name] = value
            if type(value) is not type(default):
                raise UserError(f"{flag} takes {_KINDS[type(default)]}, not {_brief(value)}")
        if any("\0" in text for text in (value if isinstance(value, tuple) else [value]) if isinstance(text, str)):
            raise UserError(f"{flag} holds a NUL byte, which no name may: {_brief(value)}")
        if about["choices"] and value not in about["choices"]:
            raise UserError(f"{flag} takes {', '.join(about['choices'])}, not {_brief(value)}")
        if about["low"] is not None and not about["low"] <= value < 2**31:
            raise UserError(f"{flag} takes a number from {about['low']} up, not {_brief(value)}")
    return config(**found)


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def _several(flag: str, value: Any) -> tuple[str, ...]:
    """One text, or a list of texts, as a tuple."""
    found = (value,) if isinstance(value, str) and value else value
    if not isinstance(found, (str, list, tuple)) or not all(isinstance(one, str) and one for one in found):
        raise UserError(f"{flag} takes text, or a list of texts, not {_brief(value)}")
    return tuple(found)


def _brief(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**31:
        return "one so large"  # Python refuses to print thousands of digits
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
