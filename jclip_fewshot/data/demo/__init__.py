"""The built-in contest: a small world, drawn into the contest's own layout, and a small CLIP to go with it."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.config import DEMO_SEED, SourceConfig
from jclip_fewshot.console import progress
from jclip_fewshot.data.demo.drawing import draw, random_size
from jclip_fewshot.data.demo.world import DOMAINS, contest_classes
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import shipped_folder, write_text

CHECKPOINT = shipped_folder("demo_weights", "weights") / "demo_clip.safetensors"
SECOND_CHECKPOINT = CHECKPOINT.with_name("demo_clip_resnet.safetensors")  # another small CLIP, for two encoders
SEED = DEMO_SEED
COMPLETE = "complete.txt"
EDITION = "demo contest, edition 1, seed {}"  # a contest of another edition or seed is drawn again
TRAIN_IMAGES = 8  # a class; the default 4 shots are chosen from these
Settings = TypeVar("Settings", bound=SourceConfig)


def make_contest(folder: str | Path, seed: int = SEED) -> Path:
    """Draw the demo contest into `folder`, with its answers in labels_TestSetA.txt; return it.

    The same seed gives the same files, byte for byte (with the same Pillow). complete.txt is written last.
    """
    folder = Path(folder)
    classes = contest_classes(seed)
    rng = np.random.default_rng([seed, 2])
    train, test = [], []  # class ids, an image each
    for label, one in enumerate(classes):
        fewest, most = DOMAINS[one.domain].tests
        train += [label] * TRAIN_IMAGES
        test += [label] * int(fewest + rng.random() * (most - fewest + 1))
    test = [test[i] for i in np.argsort([rng.random() for _ in test], kind="stable")]

    def suffix() -> str:
        return "jpeg" if rng.random() < 0.1 else "jpg"

    images = [(f"TrainSet/{classes[label].name.replace('_', '/', 1)}/{i % TRAIN_IMAGES + 1}.{suffix()}", label)
              for i, label in enumerate(train)]
    images += [(f"TestSetA/image_{i}.{suffix()}", label) for i, label in enumerate(test, 1)]

    def draw_file(number: int) -> None:
        path, label = images[number]
        own = np.random.default_rng([seed, 3, number])
        image = draw(classes[label].domain, classes[label].scene, own, random_size(own))
        image.save(folder / path, "JPEG", quality=int(55 + 40 * own.random()))

    for parent in {(folder / path).parent for path, _ in images}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # Pillow's resizing, filters and JPEG run in parallel with its polygons
        drawn = pool.map(draw_file, range(len(images)))
        for _ in progress(drawn, stage="draw the demo contest", unit="images", total=len(images)):
            pass
    lists = {
        "classes.txt": [f"{one.name} {label}" for label, one in enumerate(classes)],
        "train.txt": [f"{path} {label}" for path, label in images[:len(train)]],
        "labels_TestSetA.txt": [f"{Path(path).name} {label}" for path, label in images[len(train):]],
        COMPLETE: [EDITION.format(seed)],
    }
    for name, lines in lists.items():
        write_text(folder / name, "\n".join(lines) + "\n")
    return folder


def prepare(folder: str | Path = "demo", seed: int = SEED) -> tuple[Path, Path]:
    """Return the demo contest's folder, drawn where it is not complete, and its CLIP's checkpoint.

    Raise UserError if `folder` holds something else, or the checkpoint is missing.
    """
    folder = Path(folder)
    if not CHECKPOINT.is_file():
        raise UserError(f"no {CHECKPOINT}: git brings it, tools/train_demo_clip.py makes it again")
    marker = folder / COMPLETE

    def complete() -> bool:
        return marker.is_file() and marker.read_text(encoding="utf-8").strip() == EDITION.format(seed)
    if not ranks.first():
        ranks.wait_for(lambda: "" if complete() else "the first process to draw the demo contest")
    if complete():
        return folder, CHECKPOINT
    if folder.exists() and not marker.is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than the demo contest; move it away")
    part = folder.with_name(folder.name + ".part")  # drawn beside it, then renamed: there whole or not at all
    shutil.rmtree(part, ignore_errors=True)
    make_contest(part, seed)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return folder, CHECKPOINT


def settings(given: Settings) -> Settings:
    """Return what `--demo` stands for: the same settings, on the demo contest's data and, without --model, its CLIP."""
    seed = given.demo_seed
    data, checkpoint = prepare(Path("demo" if seed == SEED else f"demo-{seed}"), seed)
    model = (str(checkpoint),) if given.model == SourceConfig().model else given.model
    return replace(given, data=str(data), board="A", model=model, features=())
