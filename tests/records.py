"""Small sound records, as the program writes them."""

import copy
import json

from jclip_fewshot.storage.json_files import read_json

RECORD = {
    "command": "python train.py", "date": "2026-01-02 03:04:05", "versions": {"numpy": "1.26.4"}, "device": "cpu",
    "config": {"device": "auto", "batch_size": 0, "quiet": True, "data": "Dataset", "board": "A", "demo": False,
               "model": ["ViT-B/32"], "methods": "tip_adapter", "shots": 2, "runs": "runs", "name": "one"},
    "encoder": {"model": "ViT-B/32", "weights": "weights", "fingerprint": "0123", "weights_digest": "abcd",
                "precision": "float32", "width": 512, "image_size": 224, "parameters": 151277313},
    "classes": ["Cat_a", "Dog_b"], "domains": ["Cat", "Dog"],
    "shots": {"rule": "random: 2 a class, seed 0", "files": ["TrainSet/Cat/a/0.jpg", "TrainSet/Dog/b/1.jpg"],
              "labels": [0, 1], "unreadable": {"7": "no image"}},
    "settings": {"zero_shot": {}, "tip_adapter": {"alpha": [1.5, 2.0], "beta": 3.5, "held_out_top1": 75.0, "epoch": 3}},
    "histories": {"clip_adapter": [{"epoch": 0, "loss": None}, {"epoch": 1, "loss": 0.5, "held_out_top1": 50.0}]},
    "seconds": {"sentences": 0.5, "method tip_adapter": 1}}

TEST = {
    "command": "python test.py", "date": "2026-01-02 03:05:05", "device": "cpu",
    "config": {"run": "", "data": "", "split": "", "refine": "auto", "result": "result.txt"},
    "images": 2, "unreadable": {"image_9.jpg": "no image"},
    "refinement": {"changed": 1, "queries": 2, "classes_present": 2,
                   "decisions": {"evidence": {"weight": None, "why": "off"}}},
    "scores": {"zero_shot": {"top1": 50.0, "top5": 100.0, "class_mean": 50.0,
                             "domains": {"Cat": {"n": 1, "top1": 0.0, "top5": 100.0}}}},
    "seconds": {"features": 0.5}}

VALIDATION = {
    "command": "python -m jclip_fewshot validate", "date": "2026-01-02 03:06:05", "versions": {},
    "config": {"data": "Dataset", "shots": "1,2", "board_mix": False}, "n": 10, "k": 2,
    "curve": {count: {name: {"top1": [50.0, 60.0], "top5": [100.0, 100.0], "error": [5.0, 5.0],
                             "domains": {"Cat": [50.0, 60.0]}}
                      for name in ("zero_shot", "ensemble")} for count in ("1", "2")},
    "held_out": ["TrainSet/Cat/a/2.jpg"]}


def changed(record: dict, *place_and_value) -> dict:
    """A copy with another value at a place: `changed(RECORD, "shots", "labels", 0, 7)`; `...` takes the key away."""
    *way, last, value = place_and_value
    record = inside = copy.deepcopy(record)
    for key in way:
        inside = inside[key]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return record


def as_record(kind, content, folder):
    """The content of a file as the type that it is read as."""
    path = folder / "sample.json"
    path.write_text(json.dumps(content))
    try:
        return read_json(path, kind)
    finally:
        path.unlink()
