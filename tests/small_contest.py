"""Eight classes of the built-in contest with a few images each: quick to draw and to encode."""

import numpy as np

from jclip_fewshot.data.demo.drawing import draw, random_size
from jclip_fewshot.data.demo.world import contest_classes

CLASSES, SHOTS, TESTS = 8, 4, 24


def small_contest(root):
    """data/: the contest. found/: support images of the first four classes, one in five of another class."""
    classes = contest_classes(1)[::9][:CLASSES]

    def put(path, label, number):
        rng = np.random.default_rng([label, number])
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        draw(classes[label].domain, classes[label].scene, rng, random_size(rng)).save(root / path, "JPEG")

    listed, answers = [], []
    for label, one in enumerate(classes):
        for number in range(SHOTS):
            put(f"data/TrainSet/{label}/{number}.jpg", label, number)
            listed.append(f"TrainSet/{label}/{number}.jpg {label}\n")
        for number in range(5 if label < 4 else 0):
            put(f"found/{one.name}/{number}.jpg", label if number else (label + 1) % CLASSES, 100 + number)
    for number in range(TESTS):
        put(f"data/TestSetA/image_{number}.jpg", number % CLASSES, 200 + number)
        answers.append(f"image_{number}.jpg {number % CLASSES}\n")
    (root / "data/classes.txt").write_text("".join(f"{one.name} {label}\n" for label, one in enumerate(classes)))
    (root / "data/train.txt").write_text("".join(listed))
    (root / "data/labels_TestSetA.txt").write_text("".join(answers))
    return root
