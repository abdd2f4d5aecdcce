"""Which files hold a model's weights: one, the shards of a large one, or a folder as the hub and open_clip have it."""

import os
from pathlib import Path

import msgspec

from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.json_files import read_json

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pkl")
INDEX = ".index.json"
# In a folder the first of these that is there, in open_clip's order of preference, whole or in shards.
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")


def weight_files(path: str | Path) -> list[Path]:
    """Return the files that hold the tensors of a checkpoint file, an index of shards or a downloaded folder.
    Raise UserError if a folder has none or several that could be meant, or if an index is damaged."""
    path = Path(path)
    if path.name.endswith(INDEX):
        return _shards(path)
    if not os.path.isdir(path):  # False as well of a name that no file system takes
        return [path]
    known = [file for name in HUB_NAMES for end in ("", INDEX) if (file := path / (name + end)).is_file()]
    if known:
        return weight_files(known[0])
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise UserError(f"{path} is a folder without a checkpoint ({', '.join(HUB_NAMES)})")
    if len(found) > 1:
        raise UserError(f"{path}: give one of its checkpoints by its file name "
                        f"({', '.join(file.name for file in found[:4])}{', …' if len(found) > 4 else ''})")
    return found


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _shards(index: Path) -> list[Path]:
    places = read_json(index, _Index, "it needs weight_map, a file's name for each tensor").weight_map
    files = {name: index.parent / name for name in sorted(set(places.values()))}
    for name, file in files.items():
        if Path(name).name != name or file.suffix not in SUFFIXES:
            raise UserError(f"{index}: names the shard {name[:60]!a}, which is no checkpoint's file name")
        if not file.is_file():
            raise UserError(f"{file} is missing, one of the {len(files)} shards that {index.name} names")
    return list(files.values())
