"""A small contest, what train.py, test.py and validate would leave for it, and readers of the page."""

import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.evaluation.scores import best_classes, score
from jclip_fewshot.methods.rows.tip_adapter import TipAdapter
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.provenance import versions
from jclip_fewshot.records import VALIDATE
from jclip_fewshot.report.analysis import nearest_shots
from jclip_fewshot.run import MODEL, Run
from jclip_fewshot.storage.arrays import save_arrays
from jclip_fewshot.storage.json_files import write_json
from jclip_fewshot.task import Task, domain_indices

NASTY = 'Cat_<b>&"$x_1$\'</b>'  # markup, quotes, and what matplotlib takes for a formula
NAMES = ["Cat_tabby", "Cat_siamese", NASTY, "Dog_pug", "Dog_beagle", "Dog_golden_retriever"]
WIDTH = 16


class Elements(HTMLParser):
    """Every element as (tag, attributes), and all text outside the style sheet."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        self.text += "" if self._inside in ("style", "script") else data

    def of(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


def make_contest(root, labelled, names=NAMES):
    rng = np.random.default_rng(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)).save(path)

    (root / "TrainSet").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(names)), encoding="utf-8")
    lines = [f"TrainSet/{k}_{n}.jpg {k}\n" for k in range(len(names)) for n in range(3)]
    for text in lines:
        draw(root / text.split()[0])
    (root / "train.txt").write_text("".join(lines))
    for n in range(1, 31):
        draw(root / f"TestSetA/image_{n}.jpg")
    if labelled:
        (root / "labels_TestSetA.txt").write_text("".join(f"image_{n}.jpg {n % len(names)}\n" for n in range(1, 31)))
    return root


def make_run(folder, root, refined=True, tested=True):
    """What train.py and test.py would leave for that contest, in their own words."""
    rng = np.random.default_rng(1)
    contest = read_data_set(root, domains=True)
    count = len(contest.class_names)
    text = rng.standard_normal((count, WIDTH)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)

    def near(labels):
        rows = text[labels] + rng.standard_normal((len(labels), WIDTH)).astype(np.float32) / 3
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    labels = np.array([label for _, label in contest.train])
    folder.mkdir(parents=True)
    pipeline = Pipeline()
    pipeline.task_ = Task(near(labels), labels, text, domain_indices(contest.domains))
    pipeline.methods_ = {"tip_adapter": TipAdapter()}
    save_arrays(folder / MODEL, {
        **{f"shots/{key}": getattr(pipeline.task_, key) for key in ("features", "labels", "text", "domains")},
        **pipeline.report_arrays(), "held_out_probs": softmax(25 * pipeline.task_.features @ text.T),
        "methods/tip_adapter/text_": text,
        "methods/tip_adapter/keys_": np.zeros((18, WIDTH), np.float32),
        "methods/tip_adapter/seen_": np.ones(count, bool),
        "methods/clip_adapter/learned.w": np.zeros((4, WIDTH), np.float32), "ensemble/weights": np.zeros(3, np.float32),
        "methods": np.array(["zero_shot", "tip_adapter", "clip_adapter"])})
    history = [{"epoch": 0, "held_out_loss": 2.0, "held_out_top1": 50.0}] + [
        {"epoch": e, "loss": 1 / e, "train_top1": 60.0 + e, "held_out_loss": 1 + 1 / e, "held_out_top1": 55.0 + e}
        for e in range(1, 6)]
    write_json(folder / "record.json", {
        "command": "python train.py --data 'a <b>'", "date": "2025-11-21 03:12:44", "versions": versions(),
        "device": "the CPU", "config": {"data": str(root), "board": "A", "demo": False, "shots": 3, "name": ""},
        "encoder": {"model": "ViT-B/32", "weights": "", "fingerprint": "abcd1234", "parameters": 151_277_313},
        "classes": contest.class_names,
        "domains": contest.domains, "shots": {"rule": "random: 3 a class, seed 0",
                                              "files": [path for path, _ in contest.train], "labels": labels},
        "settings": {"zero_shot": {}, "tip_adapter": {"alpha": [1.5, 2.5][:len(set(contest.domains))], "beta": 5.5,
                                                      "held_out_top1": 81.0},
                     "clip_adapter": {"epoch": 3, "lr": 1e-3, "held_out_top1": 82.0},
                     "ensemble": {"temperature": 1.2}},
        "histories": {"clip_adapter": history},
        "seconds": {"sentences": 1.0, "shots": 2.0, "methods": 3.0, "method clip_adapter": 2.5}})
    if tested:
        answer(folder, contest, pipeline.task_, near, text, refined)
    return folder


def answer(folder, contest, task, near, text, refined):
    rng = np.random.default_rng(2)
    tests = contest.split()
    known = tests.labels
    truth = np.arange(1, 31) % len(contest.class_names)
    features = near(truth)
    readable = [index for index in range(30) if index != 4]
    before = softmax(25 * features[readable] @ text.T)
    final = softmax(np.log(before) + rng.standard_normal(before.shape)) if refined else before
    answers = {"zero_shot": 100 * features[readable] @ text.T, "ensemble": before}
    answers.update({"ensemble_refined": final} if refined else {})
    scores = {} if known is None else {name: score(best_classes(a), truth[readable], contest.domains)
                                       for name, a in answers.items()}
    Run.open(folder).save_test("A", {
        "command": "python test.py", "date": "2025-11-21 03:13:00", "device": "the CPU", "config": {"data": ""},
        "images": 30, "unreadable": {"image_5.jpg": "cut <short>"},
        "refinement": {"changed": 2, "classes_present": 3} if refined else None, "scores": scores,
        "seconds": {"features": 4.0}},
        {"names": tests.names, "best": best_classes(final), "probs": final, "before": before, "readable": readable,
         **nearest_shots(features[readable], final, truth[readable], task)})


def cells(page, row):
    """The table row that carries the attribute `row`: [(attributes, text) of its cells]."""
    found = re.search(rf"<tr[^>]*{re.escape(row)}[^>]*>(.*?)</tr>", page, re.DOTALL).group(1)
    return [(Elements(start).found[0][1], Elements(text).text) for start, text in
            re.findall(r"(<td[^>]*>)(.*?)</td>", found, re.DOTALL)]


def make_validation(folder):
    curve = {count: {name: {"top1": [70.0 + s + count, 71.0, 73.5], "top5": [90.0, 91.0, 92.0],
                            "error": [0.6, 0.6, 0.6],
                            "domains": {"Cat": [60.0, 61.0, 62.0], "Dog": [80.0, 81.0, 83.0]}}
                     for s, name in ((0, "zero_shot"), (1, "gda"), (1, "token_gda"), (2, "ensemble"),
                                     (3, "ensemble_refined"))} for count in (1, 4)}
    del curve[1]["token_gda"]  # one shot tunes no towers
    folder.mkdir(parents=True)
    write_json(folder / VALIDATE, {
        "command": "python -m jclip_fewshot validate", "date": "2025-11-21",
        "versions": {"numpy": "1"},
        "config": {"seeds": 3, "board_mix": True}, "n": 3740, "k": 374, "curve": curve, "held_out": []})
    return folder
