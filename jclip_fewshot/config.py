"""The settings of each command, with their defaults: a field is a flag (`--shot-list`) and a --config file's key."""

import reprlib
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jclip_fewshot.errors import UserError, flag_of

Config = TypeVar("Config", bound="CommandConfig")
Texts = tuple[str, ...]
FORMATS = "contest", "coop", "imagefolder", "table", "tree"  # of data sets, see data/formats
PROMPT_SETS = "both", "seeds", "templates", "openai80", "descriptions"  # the sentences of a class
DEMO_SEED = 1  # of the built-in contest that README's numbers are of


def option(default: Any, help: str, group: str, metavar: str = "", choices: tuple[str, ...] = (), low: int = 0,
           needed: bool = False, count: int = 0) -> Any:
    """Return a field with what its flag needs; in the group "arguments" it is no flag but stands by itself.

    A default that is a tuple of texts: the flag may be given several times; with `count`, it takes so many texts.
    low: the least number that makes sense. needed: it has no default.
    """
    metavar = metavar or "|".join(filter(None, choices)) or "N"
    return field(default=default, metadata={"help": help, "group": group, "choices": choices or None, "low": low,
                                            "metavar": metavar, "needed": needed, "count": count})


@dataclass(frozen=True)
class CommandConfig:
    """What every command takes."""

    verbose: bool = option(False, "show Jittor's own log and full error traces", "machine")


@dataclass(frozen=True)
class DeviceConfig(CommandConfig):
    """What every command takes that starts Jittor."""

    device: str = option("auto", "where Jittor runs", "machine", choices=("auto", "cpu", "cuda"))
    quiet: bool = option(False, "print only results and warnings", "machine")


@dataclass(frozen=True)
class DataConfig(CommandConfig):
    data: str = option("Dataset", "folder of the data set (docs/data.md lists the layouts)", "data", "DIR")
    format: str = option("", "layout of the data set, if two fit", "data", choices=("", *FORMATS))
    labels: str = option("", "table of images and their classes: .csv, .tsv or .jsonl", "data", "FILE")


@dataclass(frozen=True)
class CheckpointConfig(CommandConfig):
    """What a checkpoint may leave open."""

    activation: str = option("", "activation function of the checkpoint, if its files do not say it", "features",
                             choices=("", "quick_gelu", "gelu", "gelu_tanh"))
    head_width: int = option(0, "width of an attention head, if they do not say it", "features")


@dataclass(frozen=True)
class MachineConfig(DeviceConfig):
    """What every command takes that encodes images."""

    precision: str = option("auto", "number format of the encoder; auto: float16 on CUDA, bfloat16 where it is safe",
                            "machine", choices=("auto", "float32", "float16", "bfloat16"))
    batch_size: int = option(0, "images in a batch; 0 chooses it for the device", "machine")
    workers: int = option(0, "processes that decode images; 0 takes one for each core", "machine")
    cache: str = option(".cache", "folder of the feature cache; empty for none", "machine", "DIR")

    @property
    def encoding(self) -> dict[str, Any]:
        """Return what open_source and reopen_source take of the settings."""
        names = "cache", "batch_size", "workers", "precision", "activation", "head_width", "output"
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(frozen=True)
class SourceConfig(MachineConfig, CheckpointConfig, DataConfig):
    """Which images, which CLIP, which methods: train.py and validate."""

    board: str = option("A", "board of the contest; B adds the classes of classes_b.txt", "data", choices=("A", "B"))
    domains: bool = option(False, "take the part of a class name before the first _ as its domain", "data")
    demo: bool = option(False, "use the built-in small contest and its small CLIP", "data")
    demo_seed: int = option(DEMO_SEED, "draw the built-in contest from random seed N; turns --demo on", "data")
    skip_bad: bool = option(False, "leave out training images that cannot be read", "data")
    model: Texts = option(("ViT-B/32",), "a released CLIP or a checkpoint file; may be repeated", "features", "NAME")
    weights: str = option("weights", "folder where checkpoints lie and are downloaded to", "features", "DIR")
    output: str = option("", "output of an ONNX encoder that holds the features, if not the usual", "features", "NAME")
    features: Texts = option((), "take features from FILE.npz, not a checkpoint; may be repeated", "features", "FILE")
    features_extra: Texts = option((), "features of an image encoder without text, used beside CLIP; may be repeated",
                                   "features", "FILE")
    augment: int = option(10, "random training views averaged for each shot; 0: the plain image", "features", "V")
    prompts: str = option("", "folder of templates and descriptions; empty for ours", "features", "DIR")
    prompt_set: str = option("both", f"sentences of a class: {', '.join(PROMPT_SETS)}", "features", "SET", PROMPT_SETS)
    descriptions: str = option("", "your own descriptions: {class name: [sentence, ...]}", "features", "FILE.json")
    names: str = option("", "what to call the classes; each line: raw name, tab, name", "features", "FILE.tsv")
    templates: str = option("", "your templates, one a line; of one class: raw name, tab, template", "features", "FILE")
    select: str = option("random", "random or representative shots", "shots", "HOW", ("random", "representative"))
    pool: int = option(64, "images of each class that representative selection considers", "shots", low=1)
    methods: str = option("auto", "methods to fit: auto (those that data and time allow), fast (no training: a tenth "
                          "of the time, up to 0.2 points less), all, or names separated by commas", "method", "LIST")
    runs: str = option("runs", "folder in which runs are saved", "run", "DIR")
    name: str = option("", "name of the run's folder; empty for date and board", "run", "NAME")

    # settings of train.py, and what validate, which has no such flags, takes
    seed, shot_list, support, support_for, unlabelled, transductive = 0, "", "", "all", "", False


@dataclass(frozen=True)
class TrainConfig(SourceConfig):
    from_run: str = option("", "repeat a saved run: its settings and its shots", "run", "DIR")
    shots: int = option(4, "training images for each class, at most; 0: class names only", "shots")
    seed: int = option(0, "random seed for choosing shots, augmentation and training", "shots")
    support: str = option("", "found or generated images in class folders; some may be wrong", "shots", "DIR")
    support_for: str = option("all", "whom it serves: all or without-shots", "shots", "WHICH", ("all", "without-shots"))
    unlabelled: str = option("", "folder of images without labels to learn from", "shots", "DIR")
    transductive: bool = option(False, "learn from the test images too, without their labels", "shots")
    shot_list: str = option("", "use exactly the images that FILE lists", "shots", "FILE")


@dataclass(frozen=True)
class ValidateConfig(SourceConfig):
    run: str = option("", "use the settings of a saved run", "run", "DIR")
    shots: str = option("4", "training images for each class; 1,2,4,8,16 draws the curve", "shots", "LIST")
    seeds: int = option(3, "number of random seeds: each draws other shots", "shots", low=1)
    per_class: int = option(10, "held-out labelled images of each class, at most", "shots", low=1)
    views: int = option(1, "test views averaged for each held-out image, as test.py --views", "features", "V", low=1)
    board_mix: bool = option(False, "weight the domains as board A's test set seems to", "shots")


@dataclass(frozen=True)
class MovedConfig(MachineConfig):
    """Where what a run was trained with lies now: commands that open a run and encode."""

    model: Texts = option((), "where the run's checkpoint lies now; one for each model, in order", "features", "FILE")
    weights: str = option("", "folder where the run's released checkpoint lies now", "features", "DIR")
    features: Texts = option((), "where the run's feature file lies now; one for each, in order", "features", "FILE")
    features_extra: Texts = option((), "the same for its extra feature files", "features", "FILE")


@dataclass(frozen=True)
class TestConfig(MovedConfig):
    __test__ = False  # pytest: no test class

    run: str = option("", "folder of a run; empty for the newest", "run", "DIR")
    runs: str = option("runs", "folder in which the newest run is looked for", "run", "DIR")
    data: str = option("", "folder of the data set; empty for the run's own", "data", "DIR")
    split: str = option("", "test set: A, B, or a folder in the data; empty for the run's board", "data", "A|B|DIR")
    demo: bool = option(False, "use the newest run of the built-in contest", "data")
    demo_seed: int = option(DEMO_SEED, "the built-in contest of random seed N; turns --demo on", "data")
    views: int = option(1, "test views averaged for each image: centre, whole, mirrored, crops", "features", "V", low=1)
    refine: str = option("auto", "refine the whole test set together", "method", choices=("auto", "on", "off"))
    result: str = option("", "file of the answers [result.txt or .csv; with --demo in its folder]", "output", "FILE")
    out: str = option("auto", "format of the answers: txt, the contest's submission; csv: path, label, probability; "
                      "auto chooses by the data set", "output", choices=("auto", "txt", "csv"))


@dataclass(frozen=True)
class PredictConfig(MovedConfig):
    run: str = option("", "folder of a run, or a classifier saved from Python", "arguments", "RUN", needed=True)
    images: Texts = option((), "files, folders, patterns; - reads names from a pipe", "arguments", "IMAGE", needed=True)
    top: int = option(5, "classes printed for each picture, best first", "output", low=1)
    json: bool = option(False, "print a JSON object on each line", "output")
    csv: bool = option(False, "print comma-separated values with a header", "output")
    refine: bool = option(False, "answer all pictures together, as test.py does", "method")
    views: int = option(1, "test views averaged for each picture, as test.py --views", "features", "V", low=1)
    reject: float = option(0.0, "print (none of these) if no class has at least probability P", "output", "P")


@dataclass(frozen=True)
class EvaluateConfig(DeviceConfig):
    suite: str = option("", "feature suite with train_x, train_y, test_x, test_y, text and classes", "data", "FILE.npz",
                        needed=True)
    methods: str = option("auto", "auto (those of train.py), fast, all, or names with commas", "method", "LIST")
    shots: int = option(-1, "shots of each class, drawn by --seed; 0: names only; -1: all there are", "shots", low=-1)
    seed: int = option(0, "random seed for choosing shots and tasks, and for training", "shots")
    seeds: int = option(1, "repeat with N random seeds from --seed on, and print mean and spread", "shots", low=1)
    compare: str = option("", "compare with the result of another evaluation, row by row", "output", "OTHER.json")
    json: str = option("", "write the numbers to a file", "output", "OUT")
    tasks: int = option(0, "score N tasks of few classes instead of all rows", "data")
    task_classes: int = option(5, "classes of each task", "data", low=1)
    task_queries: int = option(75, "test rows of each task, at most", "data", low=1)


@dataclass(frozen=True)
class BenchmarkConfig(MachineConfig):
    data: Texts = option((), "folders of data sets (docs/data.md), or suites .npz", "arguments", "DATA", needed=True)
    methods: str = option("auto", "auto (train.py's, without those that need the images again), fast, all, or names "
                          "with commas", "method", "LIST")
    shots: str = option("1,2,4,8,16", "numbers of shots a class, with commas", "shots", "LIST")
    seeds: int = option(3, "random seeds, from 0 on, or from 1 on with --coop-seeds", "shots", low=1)
    coop_seeds: bool = option(False, "draw the shots that CoOp's code draws", "shots")
    model: Texts = option(("ViT-B/32",), "of folders: a released CLIP or a file; may be repeated", "features", "NAME")
    weights: str = option("weights", "where checkpoints lie and are downloaded to", "features", "DIR")
    augment: int = option(10, "random views averaged a shot; 0 takes the plain image", "features", "V")
    prompt_set: str = option("both", f"sentences of a class: {', '.join(PROMPT_SETS)}", "features", "SET", PROMPT_SETS)
    out: str = option("benchmark", "folder of numbers and picture; what is finished is not repeated", "output", "DIR")


@dataclass(frozen=True)
class ExportConfig(MovedConfig):
    run: str = option("", "folder of a run", "arguments", "RUN", needed=True)
    target: str = option("", "file to write: .npz, .safetensors or .onnx", "arguments", "OUT", needed=True)
    uint8: bool = option(False, "make an .onnx that takes pixels from 0 to 255, as Pillow has them", "output")


@dataclass(frozen=True)
class ReportConfig(CommandConfig):
    run: str = option("", "folder of a run; empty for the newest", "arguments", "RUN")
    runs: str = option("runs", "folder in which the newest run is looked for", "run", "DIR")
    split: str = option("", "test set to report; empty for the one answered last", "data", "A|B|DIR")
    out: str = option("", "folder to write to; empty for the folder report in the run's", "output", "DIR")


@dataclass(frozen=True)
class RunsConfig(CommandConfig):
    runs: str = option("runs", "folder of the runs", "run", "DIR")
    compare: Texts = option((), "compare the answers of two runs to the same test set", "run", "RUN", count=2)
    split: str = option("", "test set to compare; empty for one that both have answered", "data", "A|B|DIR")


@dataclass(frozen=True)
class CheckConfig(DataConfig):
    result: str = option("", "a submission: result.txt, or the .zip around it", "arguments", "result.txt", needed=True)
    split: str = option("", "test set: A, B, or a folder in the data; empty for A, or a tree's test", "data", "A|B|DIR")


@dataclass(frozen=True)
class ConvertConfig(CheckpointConfig):
    source: str = option("", "checkpoint: .pt of OpenAI or torch, .pkl, .safetensors", "arguments", "IN", needed=True)
    target: str = option("", "OUT.safetensors; without an ending: a folder, for ONNX", "arguments", "OUT", needed=True)


@dataclass(frozen=True)
class CacheConfig(CommandConfig):
    size: bool = option(False, "print the size of the cache", "run")
    clear: bool = option(False, "delete everything in the cache; it is computed again when needed", "run")
    cache: str = option(".cache", "folder of the cache", "run", "DIR")


@dataclass(frozen=True)
class DoctorConfig(DeviceConfig, CheckpointConfig, DataConfig):
    model: Texts = option(("ViT-B/32",), "a released CLIP or a checkpoint file; may be repeated", "features", "NAME")
    weights: str = option("weights", "folder where checkpoints lie", "features", "DIR")
    deep: bool = option(False, "read the whole checkpoint and compare its digest", "features")


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
          tuple: "text, or a list of texts"}


def _brief(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of 5,000 digits
        return "one so large"


def checked(config: type[Config], values: dict[str, Any]) -> Config:
    """Return settings from `values`. Raise UserError, which names the flag, for another type, choice or range."""
    known, found = {f.name: f for f in fields(config)}, dict[str, Any]()
    for name, value in values.items():
        about, flag = known[name].metadata, flag_of(name)
        kind: Any = type(known[name].default)
        if kind is float and type(value) is int:
            value = float(value)
        elif kind is tuple and isinstance(value, (str, list)):
            value = (value,) if value and isinstance(value, str) else tuple(value)
        texts = value if kind is tuple else (value,)
        if type(value) is not kind or (kind is tuple and not all(isinstance(one, str) and one for one in texts)):
            raise UserError(f"{flag} takes {_KINDS[kind]}, not {_brief(value)}")
        if any("\0" in one for one in texts if isinstance(one, str)):
            raise UserError(f"{flag} holds a NUL byte, which no name may: {_brief(value)}")
        if about["choices"] and value not in about["choices"]:
            raise UserError(f"{flag} takes {', '.join(about['choices'])}, not {_brief(value)}")
        if kind in (int, float) and not about["low"] <= value < 2**31:
            said = "one so large" if value > about["low"] else value
            raise UserError(f"{flag} takes a number from {about['low']} up, not {said}")
        found[name] = value
    return config(**found)
