"""Damaged and hostile files against every reader: each case ends well or in one UserError, in 5 s and bounded memory.

    python tests/fuzz.py --cases 50000                      every reader
    python tests/fuzz.py --cases 50000 --kind checkpoint    one of them
    python tests/fuzz.py --kind npz --only 1234 --keep DIR  one case again, its file kept

A case is made from the seed, the kind and its number alone. `tests/test_fuzz.py` runs 300 of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jclip_fewshot.cli.history import runs_table  # noqa: E402
from jclip_fewshot.clip.checkpoint import check_state_dict, read_clip, read_state_dict, read_tensors  # noqa: E402
from jclip_fewshot.config import TestConfig, TrainConfig  # noqa: E402
from jclip_fewshot.data.decode import Recipe, decode  # noqa: E402
from jclip_fewshot.data.formats import read_data_set  # noqa: E402
from jclip_fewshot.data.recipe import PixelRecipe  # noqa: E402
from jclip_fewshot.data.shots import read_shot_list  # noqa: E402
from jclip_fewshot.data.submission import check_result, write_result  # noqa: E402
from jclip_fewshot.errors import UserError  # noqa: E402
from jclip_fewshot.evaluation.suites import load_suite  # noqa: E402
from jclip_fewshot.evaluation.validate import shot_curve  # noqa: E402
from jclip_fewshot.features.sources import TableSource  # noqa: E402
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline  # noqa: E402
from jclip_fewshot.records import Record, TestRecord, Validation  # noqa: E402
from jclip_fewshot.report.page import leaderboard_page  # noqa: E402
from jclip_fewshot.run import Run, repeated  # noqa: E402
from jclip_fewshot.storage.arrays import load_arrays  # noqa: E402
from jclip_fewshot.storage.json_files import read_json  # noqa: E402
from tests.mutations import (  # noqa: E402
    ANY,
    as_safetensors,
    as_torch_zip,
    bomb,
    cut,
    flip,
    hugging_face,
    member,
    npy_header,
    number,
    odd_array,
    odd_clip,
    odd_record,
    odd_text,
    one_npy,
    opcodes,
    png_size,
    safetensors_header,
    splice,
    tiny_clip,
)
from tests.records import RECORD, TEST, VALIDATION  # noqa: E402

SECONDS = 5.0  # of the processor, a case
MEMORY = 64 << 20  # bytes a case beyond four times its file
IMAGE_MEMORY = 1080 << 20  # 179 megapixels, the most that a file may have which is no JPEG, twice as RGB
CHUNK = 1000  # cases a process


class Kind(NamedTuple):
    """seeds: sound files by name. read: what is tried, by the name of the seed. mutate: ways that know the format."""

    seeds: dict[str, bytes]
    read: Callable[[str, Path], object]
    mutate: list[Callable[[random.Random, bytes], bytes]]
    memory: int = MEMORY


class TooLong(BaseException):
    """Passes through every `except Exception`."""


# Readers, and the sound files that cases are made of.


def read_checkpoint(name: str, path: Path) -> None:
    for read in (read_tensors, read_clip):
        for outline in (True, False):
            with contextlib.suppress(UserError):
                read(path, outline=outline)
    check_state_dict(read_state_dict(path))


def checkpoint_kind(folder: Path) -> Kind:
    tensors = tiny_clip(np.random.default_rng(0))
    seeds = {"clip.safetensors": as_safetensors(tensors), "clip.pkl": pickle.dumps(tensors, 4),
             "old.pkl": pickle.dumps({name: tensors[name] for name in list(tensors)[:4]}, 2),
             "hf.safetensors": as_safetensors(hugging_face(tensors)), "clip5.pkl": pickle.dumps(tensors, 5)}
    seeds.update({"clip.pt": as_torch_zip(tensors, False), "script.pt": as_torch_zip(tensors, True)})
    for name in ("legacy_torch.pt", "training_torch.pt"):
        seeds[name] = (ROOT / "tests" / "data" / name).read_bytes()
    assert check_state_dict(tensors)
    return Kind(seeds, read_checkpoint, [*ANY, odd_clip, safetensors_header, opcodes, bomb,
                                         member([flip, cut, splice, number, opcodes, bomb])])


def read_npz(name: str, path: Path) -> object:
    if name.startswith("features"):
        table = TableSource(path)
        rows = [table.images(None, list(table.index)[:2])[0]] + ([table.text] if table.text is not None else [])
        assert all(np.isfinite(row).all() for row in rows)
        return table
    if name.startswith("suite"):
        suite = load_suite(path)
        assert np.isfinite(suite.features).all() and suite.features.any(axis=1).all()
        return suite
    if name.startswith("classifier"):
        from jclip_fewshot.classifier import FewShotClassifier
        return FewShotClassifier.load(path).predict_proba(np.ones((2, 16), np.float32))
    return Pipeline.from_state(load_arrays(path, STATE_SCHEMA))


def npz_kind(folder: Path) -> Kind:
    from jclip_fewshot.classifier import FewShotClassifier
    rng = np.random.default_rng(0)
    text = rng.standard_normal((4, 16)).astype(np.float32)
    rows = (np.repeat(text, 3, 0) + rng.standard_normal((12, 16)) / 3).astype(np.float32)
    labels, names = np.repeat(np.arange(4), 3), np.array(["Cat_a", "Cat_b", "Dog_c", "Dog_d"])
    paths = np.array([f"TrainSet/{k}.jpg" for k in range(12)])

    def npz(write=np.savez, **arrays) -> bytes:
        buffer = io.BytesIO()
        write(buffer, **arrays)
        return buffer.getvalue()

    classifier = FewShotClassifier(methods=["gda", "tip_adapter"]).fit(rows, labels, list(names), text)
    classifier.save(folder / "classifier.npz")
    suite = {"train_x": rows.astype(np.float16), "train_y": labels, "test_x": rows[::2], "test_y": labels[::2],
             "text": text, "classes": names}
    seeds = {"features.npz": npz(path=paths, feature=rows, text=text, classes=names), "suite.npz": npz(**suite),
             "features_small.npz": npz(np.savez_compressed, path=paths, feature=rows.astype(np.float64)),
             "classifier.npz": (folder / "classifier.npz").read_bytes(),
             "model.npz": npz(**classifier.pipeline_.state())}
    inside = member([flip, cut, splice, npy_header, npy_header])
    return Kind(seeds, read_npz, [*ANY, odd_array, odd_array, one_npy, inside])


def record_kind(folder: Path) -> Kind:
    seeds = {"record.json": RECORD, "test_A.json": TEST, "validate.json": VALIDATION}
    kinds = {"record.json": Record, "test_A.json": TestRecord, "validate.json": Validation}
    run = folder / "runs" / "one"
    run.mkdir(parents=True)

    def read(name: str, path: Path) -> None:
        """Those who trust a record, too: what `runs`, `--from-run`, test.py and the leaderboard make of it."""
        record = read_json(path, kinds[name])
        for other in seeds:
            (run / other).unlink() if (run / other).exists() else None
        (run / name).write_bytes(path.read_bytes())
        if name != "test_A.json":
            runs_table(run.parent)
        if name == "record.json":
            Run.open(run).where_sources(TestConfig())
            repeated(TrainConfig(from_run=str(run)), {})
        if name == "validate.json":
            leaderboard_page(lambda *picture: None, record)
            shot_curve(record.curve)
    return Kind({name: json.dumps(record).encode() for name, record in seeds.items()}, read,
                [*ANY, odd_record, odd_record, odd_record, odd_text])


LISTS = {"classes.txt": b"Animal_Bear 0\nAnimal_Bee 1\nThu-dog_x 2\n",
         "train.txt": b"".join(b"TrainSet/%d_%d.jpg %d\n" % (k, n, k) for k in range(3) for n in range(2)),
         "labels_TestSetA.txt": b"image_1.jpg 0\nimage_2.jpg 2\n",
         "shots.txt": b"TrainSet/0_0.jpg 0\nTrainSet/2_1.jpg 2\n"}


def lists_kind(folder: Path) -> Kind:
    root = folder / "data"
    for name in [f"TrainSet/{k}_{n}.jpg" for k in range(3) for n in range(2)] + ["TestSetA/image_1.jpg",
                                                                                 "TestSetA/image_2.jpg"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()

    def read(name: str, path: Path) -> None:
        for other, content in LISTS.items():
            (root / other).write_bytes(path.read_bytes() if other == name else content)
        contest = read_data_set(root)
        contest.split()
        read_shot_list(root / "shots.txt", contest)
    return Kind(LISTS, read, [*ANY, odd_text, odd_text, odd_text])


def tables_kind(folder: Path) -> Kind:
    """Tables and CoOp's split, each by itself in a folder of images."""
    rows = [(f"{number}.jpg", number % 2, "ab"[number % 2]) for number in range(6)]
    seeds = {"train.csv": "image,label,split\n" + "".join(f"train/{p},{name},train\n" for p, _, name in rows),
             "train.jsonl": "".join(f'{{"image": "train/{p}", "label": "{name}"}}\n' for p, _, name in rows),
             "metadata.csv": "file_name,label\n" + "".join(f"{p},{name}\n" for p, _, name in rows),
             "split_zhou_X.json": '{"train": [' + ", ".join(f'["{p}", {k}, "{name}"]' for p, k, name in rows) + "]}"}
    (folder / "tables/train").mkdir(parents=True)
    for path, _, _ in rows:
        (folder / "tables/train" / path).touch()

    def read(name: str, path: Path) -> None:
        target = folder / "tables" / ("train" if name == "metadata.csv" else "") / name
        target.write_bytes(path.read_bytes())
        try:
            data = read_data_set(folder / "tables")
            data.split()
            data.summary().encode("utf-8")
        finally:
            target.unlink()
    return Kind({name: text.encode() for name, text in seeds.items()}, read, [*ANY, odd_text, odd_text, odd_text])


def images_kind(folder: Path) -> Kind:
    from PIL import Image
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    wide = Image.fromarray(np.uint16(rng.integers(0, 65535, (20, 20))))
    seeds = {}
    for name, picture, options in [
            ("a.jpg", image, {}), ("prog.jpg", image, {"progressive": True}), ("cmyk.jpg", image.convert("CMYK"), {}),
            ("a.png", image, {}), ("p.png", image.convert("P"), {}), ("wide.png", wide, {}), ("a.gif", image, {}),
            ("a.bmp", image, {}), ("a.webp", image, {}), ("a.tiff", image, {}),
            ("thin.png", image.resize((3000, 1)), {}), ("la.png", image.convert("LA"), {})]:
        buffer = io.BytesIO()
        picture.save(buffer, name.split(".")[1].upper().replace("JPG", "JPEG"), **options)
        seeds[name] = buffer.getvalue()

    def read(name: str, path: Path) -> None:
        out, pixels = np.empty((2, 32, 32, 3), np.uint8), PixelRecipe((32, 32))
        seen = Recipe(pixels, as_seen=True)
        for recipe, views in ((Recipe(pixels), out[:1]), (Recipe(pixels, 2), out), (seen, out[:1])):
            done = decode(str(path), recipe, views)
            assert len(done.digest) == 16
        if done.reason:
            raise UserError(done.reason)

    return Kind(seeds, read, [*ANY, png_size], IMAGE_MEMORY)


NAMES = ["image_1.jpg", "image_2.jpg", "image_10.jpg"]


def submission_kind(folder: Path) -> Kind:
    write_result(folder / "result.txt", NAMES, [[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [9, 8, 7, 6, 5]], 10)
    seeds = {name: (folder / name).read_bytes() for name in ("result.txt", "result.zip")}

    def read(name: str, path: Path) -> None:
        found = check_result(path, NAMES, 10)
        for line in found.problems + found.notes:
            assert line.isprintable() and len(line) < 2000, line[:200]
        if found.problems:
            raise UserError(found.problems[0])

    return Kind(seeds, read, [*ANY, odd_text, odd_text, member([flip, cut, splice, odd_text])])


KINDS: dict[str, Callable[[Path], Kind]] = {
    "checkpoint": checkpoint_kind, "npz": npz_kind, "record": record_kind, "lists": lists_kind,
    "tables": tables_kind, "images": images_kind,
    "submission": submission_kind}


# Cases.


class Result(NamedTuple):
    """counts: "read", "refused"; failures: (number of the case, what happened)."""

    counts: Counter
    failures: list[tuple[int, str]]


def make_case(kind: Kind, label: str, seed: int, index: int) -> tuple[str, bytes]:
    """The name of the seed, and the bytes."""
    rng = random.Random(f"{seed} {label} {index}")
    name = rng.choice(sorted(kind.seeds))
    data = kind.seeds[name]
    for _ in range(rng.choice((1, 1, 1, 2))):
        if data:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    data = rng.choice(kind.mutate)(rng, data)
            except Exception:  # damaged already, beyond what this way can change
                data = flip(rng, data)
    return name, data


def run(label: str, first: int, cases: int, seed: int = 0, keep: str = "", name: str = "") -> Result:
    """Tries the cases `first`, ...; files of those that fail are kept in `keep`."""
    counts, failures = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[label](Path(folder))
        for index in range(first, first + cases):
            source, data = make_case(kind, label, seed, index)
            path = Path(folder, f"case{Path(source).suffix}")
            path.write_bytes(data)
            outcome = try_case(kind, source, path, 4 * len(data) + kind.memory)
            counts[outcome if outcome in ("read", "refused") else "failed"] += 1
            if outcome not in ("read", "refused"):
                failures.append((index, f"{source}: {outcome}"))
                if keep:
                    Path(keep).mkdir(parents=True, exist_ok=True)
                    Path(keep, f"{label}-{seed}-{index}-{source}").write_bytes(data)
    return Result(counts, failures)


def try_case(kind: Kind, source: str, path: Path, most: int) -> str:
    """"read", "refused", or what went wrong."""
    before, warned = reset_peak(), io.StringIO()
    previous = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with contextlib.redirect_stderr(warned):
            kind.read(source, path)
        outcome = "read"
    except UserError as error:
        line = str(error)
        outcome = "refused" if line.isprintable() and 0 < len(line) < 5000 else f"the line is none: {line[:100]!r}"
    except TooLong:
        outcome = f"took more than {SECONDS:.0f} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    used = peak() - before
    if used > most and outcome in ("read", "refused"):
        outcome = f"took {used >> 20} MB, more than {most >> 20}"
    return outcome


def _too_long(*_: object) -> None:
    raise TooLong


def reset_peak() -> int:
    """Sets the peak of resident memory to the present; returns it in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    with contextlib.suppress(OSError, AttributeError):
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1)) << 10
    return 0


def in_child(label: str, first: int, cases: int, seed: int, keep: str) -> Result:
    """`run` in a process of its own, so that a crash is a failure and nothing piles up."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        with os.fdopen(writable, "w") as pipe:
            counts, failures = run(label, first, cases, seed, keep)
            json.dump([dict(counts), failures], pipe)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status or not said:
        return Result(Counter(failed=1), [(first, f"the process died ({status}) in this or the next {cases}")])
    counts, failures = json.loads(said)
    return Result(Counter(counts), [tuple(failure) for failure in failures])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000, help="of each kind")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="repeat for several; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="one case, in this process")
    parser.add_argument("--keep", default="", metavar="DIR", help="where the files of failures go")
    given = parser.parse_args()
    failed = 0
    for label in given.kind or list(KINDS):
        begun, counts = time.monotonic(), Counter()
        if given.only is not None:
            found = run(label, given.only, 1, given.seed, given.keep)
            print(label, dict(found.counts), *(text for _, text in found.failures))
            failed += len(found.failures)
            continue
        for first in range(given.first, given.first + given.cases, CHUNK):
            size = min(CHUNK, given.first + given.cases - first)
            found = in_child(label, first, size, given.seed, given.keep)
            counts += found.counts
            failed += len(found.failures)
            for index, text in found.failures:
                print(f"{label} {index}: {text}", flush=True)
        print(f"{label}: {sum(counts.values())} cases, {counts['read']} read, {counts['refused']} refused, "
              f"{counts['failed']} failed, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
