"""One data set in the contest's layout, linked into every other format: same photographs, same classes."""

import json
import os
from pathlib import Path


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target) if os.stat(source).st_dev == os.stat(target.parent).st_dev else target.symlink_to(source)


def rows_of(root):
    """(training rows, test rows) of the contest's layout: path below root, class name."""
    names = [line.rsplit(" ", 1)[0] for line in Path(root, "classes.txt").read_text().split("\n") if line]

    def listed(file, below=""):
        lines = [line.rsplit(" ", 1) for line in Path(root, file).read_text().split("\n") if line]
        return [(below + path, names[int(label)]) for path, label in lines]
    return listed("train.txt"), listed("labels_TestSetA.txt", "TestSetA/")


def _linked(root, out, train, test, place):
    """Links images to `place(part, path, name)`; returns {path before: path now}."""
    now = {}
    for part, rows in (("train", train), ("test", test)):
        for path, name in rows:
            now[path] = place(part, path, name)
            link(Path(root, path).resolve(), out / now[path])
    return now


def flat(part, path, name):
    return f"{part}/{path.replace('/', '-')}"


def make(kind, root, out):
    """Writes the data set of `root` into `out` in a format; returns {path before: path now} of every image."""
    train, test = rows_of(root)
    write = lambda name, text: (out / name).write_text(text, encoding="utf-8")  # noqa: E731
    if kind in ("tree", "kaggle tree", "unpacked twice", "yolo"):
        first, second, top = {"tree": ("train", "test", ""),
                              "kaggle tree": ("seg_train/seg_train", "seg_test/seg_test", ""),
                              "unpacked twice": ("Training", "Testing", "archive/dataset/dataset/"),
                              "yolo": ("images/train", "images/val", "")}[kind]
        now = _linked(root, out, train, test, lambda part, path, name:
                      f"{top}{first if part == 'train' else second}/{name}/{path.rpartition('/')[2]}")
        if kind == "yolo":
            write("data.yaml", "path: .\ntrain: images/train\n")
        return now
    if kind == "single tree":
        return _linked(root, out, train, test, lambda part, path, name: f"{name}/{part}-{path.rpartition('/')[2]}")
    if kind == "one csv":
        now = _linked(root, out, train, test, lambda part, path, name: f"images/{path.replace('/', '-')}")
        lines = [f"{now[path][7:]},{name},{part}\n" for part, rows in (("train", train), ("test", test))
                 for path, name in rows]
        write("labels.csv", "filename,label,split\n" + "".join(lines))
        return now
    if kind == "kaggle csv":
        now = _linked(root, out, train, test, lambda part, path, name: flat(f"{part}_images", path, name))
        for part, rows in (("train", train), ("test", test)):
            stem = lambda path: Path(now[path]).stem  # noqa: E731
            write(f"{part}.csv", "image_id,breed\n" + "".join(f"{stem(path)},{name}\n" for path, name in rows))
        write("sample_submission.csv", "image_id,breed\n")
        return now
    if kind in ("tsv", "jsonl"):
        now = _linked(root, out, train, test, flat)
        for part, rows in (("train", train), ("test", test)):
            if kind == "tsv":
                text = "path\tclass\n" + "".join(f"{now[path]}\t{name}\n" for path, name in rows)
            else:
                text = "".join(json.dumps({"image": now[path], "label": name}) + "\n" for path, name in rows)
            write(f"{part}.{kind}", text)
        return now
    if kind == "imagefolder":
        now = _linked(root, out, train, test, flat)
        for part, rows in (("train", train), ("test", test)):
            text = "".join(f"{now[path].partition('/')[2]},{name}\n" for path, name in rows)
            write(f"{part}/metadata.csv", "file_name,label\n" + text)
        return now
    if kind == "coop":
        now = _linked(root, out, train, test, lambda part, path, name:
                      f"101_ObjectCategories/{name}/{part}-{path.rpartition('/')[2]}")
        ids = {name: label for label, name in enumerate(dict.fromkeys(name for _, name in train))}
        split = {part: [[now[path].partition("/")[2], ids[name], name] for path, name in rows]
                 for part, rows in (("train", train), ("test", test))}
        write("split_zhou_Caltech101.json", json.dumps({**split, "val": split["test"][:5]}))
        return now
    raise ValueError(kind)


KINDS = {"tree": "tree", "kaggle tree": "tree", "unpacked twice": "tree", "yolo": "tree", "one csv": "table",
         "kaggle csv": "table", "tsv": "table", "jsonl": "table", "imagefolder": "imagefolder", "coop": "coop"}
