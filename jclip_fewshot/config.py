"""Every default stands here, once; the command-line flags and the TOML keys are made from it.

A field's name is its flag (`--shot-list`) and its key in a --config file (`shot_list`). A command's settings are one of
these classes: cli/commands.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jclip_fewshot.errors import UserError, nearest

Config = TypeVar("Config")
FORMATS = "contest", "coop", "imagefolder", "table", "tree"  # of data sets, see data/formats
DEMO_SEED = 1  # of the built-in contest that README's numbers are of


def option(default: Any, help: str, group: str, choices: Sequence[str] | None = None, metavar: str | None = None,
           low: int | None = None, implies: str = "", needed: bool = False, count: int = 0) -> Any:
    """Return a field with what its flag needs.

    A default that is a tuple of texts: the flag may be given several times; with `count`, it takes so many texts.
    low: the least value that makes sense. implies: a switch that it turns on. needed: it has no default. In the group
    "arguments" it is no flag but stands by itself, in the order of the fields.
    """
    return field(default=default, metadata=dict(help=help, group=group, choices=choices, metavar=metavar, low=low,
                                                implies=implies, needed=needed, count=count))


@dataclass(frozen=True)
class CommandConfig:
    """What every command takes."""

    verbose: bool = option(False, "show Jittor's own log and full error traces", "machine")


@dataclass(frozen=True)
class DeviceConfig(CommandConfig):
    """What every command takes that starts Jittor."""

    device: str = option("auto", "where Jittor runs", "machine", ("auto", "cpu", "cuda"))
    quiet: bool = option(False, "print results and warnings alone", "machine")


@dataclass(frozen=True)
class MachineConfig(DeviceConfig):
    """What every command takes that encodes images."""

    precision: str = option("auto", "of the encoder's products; auto: float16 on CUDA, bfloat16 where safe",
                            "machine", ("auto", "float32", "float16", "bfloat16"))
    batch_size: int = option(0, "images a batch; 0 fits it to the device", "machine", metavar="N", low=0)
    workers: int = option(0, "decoding processes; 0 takes one a core", "machine", metavar="N", low=0)
    cache: str = option(".cache", "folder of the feature cache; empty for none", "machine", metavar="DIR")

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
    activation: str = option("", "a checkpoint's activation, where nothing in or beside it says it", "features",
                             ("", "quick_gelu", "gelu", "gelu_tanh"))
    output: str = option("", "which output of an ONNX encoder is the row; empty for the usual one", "features",
                         metavar="NAME")
    head_width: int = option(0, "width of its heads, where nothing says it", "features", metavar="N", low=0)
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
    methods: str = option("auto", "auto: the default methods that the data and the time allow; fast: those without "
                          "training (a tenth of the time, up to 0.2 points less); all; or names with commas",
                          "method", metavar="LIST")
    runs: str = option("runs", "where run folders are made", "run", metavar="DIR")
    name: str = option("", "of the run's folder; empty for date and board", "run", metavar="NAME")

    @property
    def encoding(self) -> dict[str, Any]:
        return {**super().encoding, "activation": self.activation, "head_width": self.head_width,
                "output": self.output}


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
    shot_list: str = option("", "use exactly the images that FILE lists", "shots", metavar="FILE")


@dataclass(frozen=True)
class ValidateConfig(SourceConfig):
    """python -m jclip_fewshot validate"""

    run: str = option("", "take the settings of a run's folder", "run", metavar="DIR")
    shots: str = option("4", "training images a class; 1,2,4,8,16 draws the curve", "shots", metavar="LIST")
    seeds: int = option(3, "draws of the shots", "shots", metavar="N", low=1)
    per_class: int = option(10, "labelled images a class that are held out, at most", "shots", metavar="N", low=1)
    views: int = option(1, "views averaged a held-out image, as test.py --views", "features", metavar="V", low=1)
    board_mix: bool = option(False, "weigh the domains as board A's test set seems to", "shots")


@dataclass(frozen=True)
class MovedConfig(MachineConfig):
    """Where what a run was trained with lies now: commands that open a run and encode."""

    model: tuple[str, ...] = option((), "where the run's checkpoint lies now; one for each of its models, in order",
                                    "features", metavar="FILE")
    weights: str = option("", "where the run's released checkpoint lies now", "features", metavar="DIR")
    features: tuple[str, ...] = option((), "where the run's feature file lies now; one for each", "features",
                                       metavar="FILE")
    features_extra: tuple[str, ...] = option((), "the same for its extra feature files", "features", metavar="FILE")


@dataclass(frozen=True)
class TestConfig(MovedConfig):
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
    views: int = option(1, "views averaged a test image: centre, whole, mirrored, crops", "features", metavar="V",
                        low=1)
    refine: str = option("auto", "refine the test set as a whole", "method", ("auto", "on", "off"))
    result: str = option("", "the answers' file; of a .txt a .zip next to it [result.txt, result.csv; in the demo's "
                         "folder with --demo]", "output", metavar="FILE")
    out: str = option("auto", "txt: the contest's submission; csv: path, label, probability; auto: by the format",
                      "output", ("auto", "txt", "csv"))


@dataclass(frozen=True)
class PredictConfig(MovedConfig):
    """python -m jclip_fewshot predict"""

    run: str = option("", "a run's folder, or a classifier that Python saved", "arguments", metavar="RUN", needed=True)
    images: tuple[str, ...] = option((), "files, folders, patterns like 'a/*.jpg'; - reads names from standard input",
                                     "arguments", metavar="IMAGE", needed=True)
    top: int = option(5, "classes a picture, best first", "output", metavar="N", low=1)
    json: bool = option(False, "a JSON object a line", "output")
    csv: bool = option(False, "comma-separated, with a header", "output")
    refine: bool = option(False, "answer all pictures together, as test.py does", "method")
    views: int = option(1, "views averaged a picture, as test.py's", "features", metavar="V", low=1)
    reject: float = option(0.0, "say (none of these) where no class has a probability of P, 0 to 1", "output",
                           metavar="P", low=0)


@dataclass(frozen=True)
class EvaluateConfig(DeviceConfig):
    """python -m jclip_fewshot evaluate"""

    suite: str = option("", "train_x, train_y, test_x, test_y, text, classes", "data", metavar="FILE.npz", needed=True)
    methods: str = option("auto", "auto (train.py's), fast, all, or names with commas", "method", metavar="LIST")
    shots: int = option(-1, "shots a class, drawn by the seed; 0: class names alone; -1: all that the suite has",
                        "shots", metavar="N", low=-1)
    seed: int = option(0, "of the shots' draw, of training and of the tasks", "shots", metavar="N", low=0)
    seeds: int = option(1, "repeat with N seeds from --seed on: mean and spread", "shots", metavar="N", low=1)
    bootstrap: int = option(0, "95 % interval of top-1 from N samples of the test rows, or of the tasks", "output",
                            metavar="N", low=0)
    compare: str = option("", "paired comparison with another --json", "output", metavar="OTHER.json")
    json: str = option("", "write the numbers there", "output", metavar="OUT")
    tasks: int = option(0, "N tasks of few classes instead of all rows", "data", metavar="N", low=0)
    task_classes: int = option(5, "classes a task", "data", metavar="N", low=1)
    task_queries: int = option(75, "test rows a task, at most", "data", metavar="N", low=1)


@dataclass(frozen=True)
class ExportConfig(MovedConfig):
    """python -m jclip_fewshot export"""

    run: str = option("", "a run's folder", "arguments", metavar="RUN", needed=True)
    target: str = option("", "a file that ends in .npz, .safetensors or .onnx", "arguments", metavar="OUT", needed=True)
    uint8: bool = option(False, "the .onnx takes pixels as Pillow has them", "output")


@dataclass(frozen=True)
class ReportConfig(CommandConfig):
    """python -m jclip_fewshot report"""

    run: str = option("", "a run's folder; empty for the newest", "arguments", metavar="RUN")
    runs: str = option("runs", "where the newest run is looked for", "run", metavar="DIR")
    split: str = option("", "the test set; empty for the one that was answered last", "data", metavar="A|B|DIR")
    out: str = option("", "where to write; empty for the folder report in the run's", "output", metavar="DIR")


@dataclass(frozen=True)
class RunsConfig(CommandConfig):
    """python -m jclip_fewshot runs"""

    runs: str = option("runs", "where runs lie", "run", metavar="DIR")
    compare: tuple[str, ...] = option((), "answers of two runs to the same test set", "run", metavar="RUN", count=2)
    split: str = option("", "the test set; empty for one that both have answered", "data", metavar="A|B|DIR")


@dataclass(frozen=True)
class CheckConfig(CommandConfig):
    """python -m jclip_fewshot check"""

    result: str = option("", "a submission, .txt or the .zip around it", "arguments", metavar="result.txt", needed=True)
    data: str = option("Dataset", "the folder of the data set", "data", metavar="DIR")
    format: str = option("", "how the data set lies there, where two fit (docs/data.md)", "data", ("", *FORMATS))
    labels: str = option("", "a table of images and their classes: .csv, .tsv, .jsonl", "data", metavar="FILE")
    split: str = option("", "a test set, or a folder in the data folder; empty for A, or test of a plain tree", "data",
                        metavar="A|B|DIR")


@dataclass(frozen=True)
class ConvertConfig(CommandConfig):
    """python -m jclip_fewshot convert"""

    source: str = option("", ".pt of OpenAI or torch.save, Jittor's .pkl, .safetensors", "arguments", metavar="IN",
                         needed=True)
    target: str = option("", "OUT.safetensors; a name without an ending is a folder, for ONNX", "arguments",
                         metavar="OUT", needed=True)
    activation: str = option("", "a checkpoint's activation, where nothing in or beside it says it", "features",
                             ("", "quick_gelu", "gelu", "gelu_tanh"))
    head_width: int = option(0, "width of its heads, where nothing says it", "features", metavar="N", low=0)


@dataclass(frozen=True)
class CacheConfig(CommandConfig):
    """python -m jclip_fewshot cache"""

    size: bool = option(False, "print its size", "run")
    clear: bool = option(False, "delete all that it keeps; it fills again by itself", "run")
    cache: str = option(".cache", "its folder", "run", metavar="DIR")


@dataclass(frozen=True)
class DoctorConfig(DeviceConfig):
    """python -m jclip_fewshot doctor"""

    data: str = option("Dataset", "the folder of the data set", "data", metavar="DIR")
    format: str = option("", "how the data set lies there, where two fit (docs/data.md)", "data", ("", *FORMATS))
    labels: str = option("", "a table of images and their classes: .csv, .tsv, .jsonl", "data", metavar="FILE")
    model: tuple[str, ...] = option(("ViT-B/32",), "a released CLIP, or a checkpoint file; repeat it for several",
                                    "features", metavar="NAME")
    weights: str = option("weights", "where checkpoints lie", "features", metavar="DIR")
    deep: bool = option(False, "read all of the checkpoint and compare its digest", "features")
    activation: str = option("", "a checkpoint's activation, where nothing in or beside it says it", "features",
                             ("", "quick_gelu", "gelu", "gelu_tanh"))
    head_width: int = option(0, "width of its heads, where nothing says it", "features", metavar="N", low=0)


def checked(config: type[Config], values: dict[str, Any]) -> Config:
    """Return settings from `values`, each checked for type, choice and range.

    Raise UserError that names the flag and what it takes.
    """
    known = {f.name: f for f in fields(config)}
    found = {}
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
