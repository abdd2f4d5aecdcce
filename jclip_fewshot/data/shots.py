"""Which k training images of a class serve as its shots.

Representative choice is k-medoids (Kaufman and Rousseeuw 1987, PAM) in CLIP's feature space: the k images for which the
sum of each image's distance 1 - x·x' to the nearest of them is least. The rows that lie farthest from the rest, or are
read as another class, may not be chosen and need not be covered (docs/notes/selection.md).

Letters: m images of one class's pool, k shots, K classes, D feature width.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from jclip_fewshot.console import warn
from jclip_fewshot.data.data_set import DataSet, by_class
from jclip_fewshot.data.listing import Files, LabelledPath, PathLike, count_of, locate, natural_key, read_pairs
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import write_text

# rows (n, D) of images by their paths, and why some could not be read: {index: reason}
Encode = Callable[[Sequence[str]], tuple[np.ndarray, dict[int, str]]]
KEPT = 0.9  # share of a pool that counts as typical: a tenth may be wrong labels and odd pictures


def medoids(distance: np.ndarray, k: int) -> list[int]:
    """Return indices of k medoids under an (m, m) distance matrix: greedy start, then swaps while they help."""
    m = len(distance)
    if m <= k:
        return list(range(m))
    chosen: list[int] = []

    def best_beside(others: list[int]) -> tuple[int, np.ndarray]:
        reach = distance[:, others].min(axis=1, initial=np.inf)
        cost = np.minimum(distance, reach[:, None]).sum(axis=0)
        cost[others] = np.inf
        return int(cost.argmin()), cost

    for _ in range(k):
        chosen.append(best_beside(chosen)[0])
    improved = True
    while improved:
        improved = False
        for place in range(k):
            best, cost = best_beside(chosen[:place] + chosen[place + 1:])
            if cost[best] < cost[chosen[place]] - 1e-9:
                chosen[place], improved = best, True
    return sorted(chosen)


def representative(rows: np.ndarray, k: int, text: np.ndarray, label: int) -> list[int]:
    """Return k of a class's (m, D) unit rows that stand for it, as sorted indices; text (K, D): of every class."""
    rows = np.asarray(rows, np.float64)
    # Near the pool's own mean, and nearer to its own text than to the most similar other one.
    similarity = rows @ text.T.astype(np.float64)
    rival = np.delete(similarity, label, axis=1).max(axis=1) if len(text) > 1 else 0.0
    typical = sum((v - v.mean()) / (v.std() or 1.0) for v in (rows @ rows.mean(axis=0), similarity[:, label] - rival))
    kept = np.sort(np.argsort(-typical, kind="stable")[:max(k, int(np.ceil(KEPT * len(rows))))])
    return [int(kept[i]) for i in medoids(1 - rows[kept] @ rows[kept].T, k)]


def choose_representative(labelled: Sequence[LabelledPath], rows: np.ndarray, text: np.ndarray,
                          k: int) -> list[LabelledPath]:
    """Return k images of each class from a pool: `labelled` (path, class id) with their (n, D) unit rows."""
    labels = np.array([label for _, label in labelled], np.int64)
    chosen: list[LabelledPath] = []
    for label in np.unique(labels):
        inside = sorted(np.flatnonzero(labels == label), key=lambda index: natural_key(labelled[index][0]))
        chosen += [labelled[inside[i]] for i in representative(rows[inside], k, text, int(label))]
    return chosen


def rule(shots: int, seed: int, select: str = "random", pool: int = 0, shot_list: str = "") -> str:
    """How the shots of a run were chosen, for its record."""
    if shots == 0 and not shot_list:
        return "none: class names alone"
    if shot_list:
        return f"list {shot_list}"
    if select == "representative":
        return f"representative: k-medoids, {shots} of {pool} a class, seed {seed}; held-out scores are pessimistic"
    return f"random: {shots} a class, seed {seed}"


def caution(select: str, shot_list: str = "") -> str:
    """Return what to know of held-out scores on shots so chosen, or "" (docs/notes/selection.md)."""
    if select != "representative" or shot_list:
        return ""
    return ("cv is pessimistic with representative shots: they lie far apart, and each that is left out takes its part "
            "of the class away; compare with other shots on a test set, not by cv")


def choose_shots(data: DataSet, shots: int = 4, seed: int = 0, shot_list: PathLike = "", pool: int = 64,
                 encode: Encode | None = None, text: np.ndarray | None = None) -> list[LabelledPath]:
    """Return the training images to learn from: `shots` of every class that has any, sorted by class.

    shot_list: a file that makes the choice instead (see read_shot_list). encode, text (K, D): choose those that
    represent a `pool` of images a class, by their rows and the classes' text rows. In a plain tree a class with fewer
    images gives all it has. Raise UserError if a class of the contest has some, but too few, or the list is wrong.
    """
    if shot_list:
        return read_shot_list(shot_list, data)
    if shots < 0:
        raise UserError(f"--shots is {shots}; it must be 0 or more")
    counts = Counter(label for _, label in data.train)
    few = [label for label in sorted(counts) if counts[label] < shots]
    if few and not data.plain:
        raise UserError(f"class {data.class_names[few[0]]} has {count_of(counts[few[0]], 'training image')}, fewer "
                        f"than the {shots} shots asked for; use --shots {min(counts.values())} or a --shot-list")
    if encode is None or text is None or shots == 0:
        return draw_pool(data, shots, seed)
    candidates = draw_pool(data, max(pool, shots), seed)
    rows, bad = encode([path for path, _ in candidates])
    readable = [index for index in range(len(candidates)) if index not in bad]
    return choose_representative([candidates[i] for i in readable], rows[readable], text, shots)


def shortage(data: DataSet, shots: int) -> str:
    """What to say where classes of a plain tree have fewer images than shots; "" where all have enough."""
    few = [count for count in Counter(label for _, label in data.train).values() if count < shots]
    if not data.plain or not few:
        return ""
    return (f"{count_of(len(few), 'class has', 'classes have')} fewer than {shots} images (the fewest: {min(few)}); "
            "they give all they have")


def draw_pool(data: DataSet, most: int, seed: int = 0) -> list[LabelledPath]:
    """Return up to `most` training images of every class, sorted by class: the first by the SHA-256 of seed and path.

    The choice is the same on every machine, whatever the other classes are; fewer shots are always a part of more.
    """
    drawn: dict[int, list[LabelledPath]] = {}
    for row in sorted(data.train, key=lambda row: hashlib.sha256(f"{seed} {row[0]}".encode()).digest()):
        drawn.setdefault(row[1], []).append(row)
    return by_class(row for rows in drawn.values() for row in rows[:most])


def read_shot_list(path: PathLike, data: DataSet) -> list[LabelledPath]:
    """Return chosen training images, `path label` a line, the path below the data folder.

    Warn of classes that have training images, but none in the list. Raise UserError if there is no line, one is wrong,
    or an image is there twice, absent, elsewhere or of a test set.
    """
    path = Path(path)
    listed = read_pairs(path, num_classes=len(data.class_names))
    if not listed:
        raise UserError(f"{path} lists no image; it needs lines like `TrainSet/Animal/Bear/1.jpg 0`")
    known, seen = dict(data.train), dict[str, int]()
    found = locate(Files(data.root), path, listed)
    tests: dict[str, str] = {}  # the images of all test sets that can be read
    if any(image not in known for _, image, _ in found):
        for name in data.splits:
            with suppress(UserError):  # a test set that is not there
                tests.update(dict.fromkeys(data.split(name).files, name))
    for number, image, label in found:
        wrong = ""
        if image in seen:
            wrong = f"is on line {seen[image]} too; remove one"
        elif image not in known and image in tests:
            wrong = f"is an image of the test set {tests[image]}, which no model may learn from; take the line out"
        elif known.get(image, label) != label:
            wrong = f"has class {label} here, but {known[image]} in the data set; was the list made for another board?"
        if wrong:
            raise UserError(f"{path}, line {number}: {image} {wrong}")
        seen[image] = number
    without = sorted(set(known.values()) - {label for _, _, label in found})
    if without:
        warn(f"{path} lists no image of {len(without)} of {len(data.class_names)} classes "
             f"({data.class_names[without[0]]} for one), though there are some: their names alone are learned from")
    return by_class((image, label) for _, image, label in found)


def write_shot_list(path: PathLike, shots: Iterable[LabelledPath]) -> None:
    """Write chosen training images in the format that read_shot_list reads."""
    write_text(path, "".join(f"{image} {label}\n" for image, label in shots))
