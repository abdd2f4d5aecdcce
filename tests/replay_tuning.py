#!/usr/bin/env python3
"""Replays reference runs of the methods that train CLIP and says how far each ends from its file.

    python tests/replay_tuning.py ../shared/reference/tuning/coop.npz ../shared/reference/tuning/prolip.npz

A line a file: the largest deviation of loss, gradient, update and logits, each with its limit. Exit status 0 where
all hold, 1 where one does not, 2 where a file cannot be replayed.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jclip_fewshot.cli import command
from jclip_fewshot.errors import UserError

CHECKPOINT = ROOT.parent / "shared" / "reference" / "clip" / "tiny_vit.safetensors"


def checkpoint_of(file: Path, given: str) -> Path:
    """--checkpoint, or the small ViT beside the file's folder, or beside the checkout."""
    for candidate in [Path(given)] if given else [file.resolve().parent.parent / "clip" / CHECKPOINT.name, CHECKPOINT]:
        if candidate.is_file():
            return candidate
    raise UserError(f"no {given or CHECKPOINT}: --checkpoint says where the small ViT of the reference runs lies")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--checkpoint", default="", metavar="FILE", help="the small ViT that the runs start from")
    given = parser.parse_args()
    from tests.methods.towers.replay import MEASURES, replay
    status = 0
    for file in given.files:
        try:
            method, found = replay(file, checkpoint_of(file, given.checkpoint))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        values = [getattr(found, one) for one in MEASURES]
        holds = all(value <= limit for value, limit in zip(values, method.limits)) and not found.wrong
        said = "  ".join(f"{one} {value:.1e} ({limit:.0e})"
                         for one, value, limit in zip(MEASURES, values, method.limits))
        unequal = f"  not equal: {', '.join(found.wrong)}" if found.wrong else ""
        print(f"{file.name}: {method.name}  {said}  {'holds' if holds else 'FAILS'}{unequal}", flush=True)
        status = status or int(not holds)
    return status


if __name__ == "__main__":
    command.run(main)
