"""A small labelled feature suite, for tests."""

import numpy as np

CLASSES = ("Animal_cat", "Animal_lynx", "Thu-dog_pug", "Thu-dog_husky", "Thu-dog_chow", "Thu-dog_boxer")


def small_suite(path, classes=CLASSES, task=3, tests=8, width=24, seed=0, **changes):
    """Clusters around text rows: easy, but not trivial."""
    rng = np.random.default_rng(seed)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    k = len(classes)
    text = unit(rng.standard_normal((k, width)) + 2)
    means = unit(text + 0.5 * rng.standard_normal((k, width)) / np.sqrt(width))
    draw = lambda labels: unit(means[labels] + 0.6 * rng.standard_normal((len(labels), width)) / np.sqrt(width))  # noqa: E731
    train_y, test_y = np.repeat(np.arange(k), task), np.repeat(np.arange(k), tests)
    arrays = {"train_x": draw(train_y).astype(np.float16), "train_y": train_y,
              "test_x": draw(test_y).astype(np.float16),
              "test_y": test_y, "text": text.astype(np.float16), "classes": np.array(classes), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path
