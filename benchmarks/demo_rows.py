"""What benchmarks/encoders.py and views.py share: rows of the built-in contest, and scores over draws of its shots."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jclip_fewshot.data import demo, prompts
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.data.shots import choose_shots
from jclip_fewshot.evaluation.scores import percent, truth_of
from jclip_fewshot.pipeline import Pipeline
from jclip_fewshot.task import Task, domain_indices, joined, joined_scale

QUICK = "zero_shot,gda,proker,text_profile"


class DemoRows:
    """The contest of a seed, drawn where it is not there yet; `encode` gives each encoder's rows of all of it."""

    def __init__(self, seed):
        folder, self.checkpoint = demo.prepare(Path("demo" if seed == demo.SEED else f"demo-{seed}"), seed)
        self.contest = read_data_set(folder)
        self.tests = self.contest.split()
        self.truth = truth_of(self.tests.labels, self.tests.names)
        self.sentences = prompts.class_sentences(self.contest.class_names, self.contest.domains)

    def encode(self, source, test_views=1):
        """Text rows, {path: row of a training image, ten random views averaged}, rows of the test images."""
        text = source.texts(self.contest.class_names, self.sentences)
        paths = [path for path, _ in self.contest.train]
        rows, _ = source.images(self.contest.root, paths, views=10, stage="training images")
        tests, _ = source.images(self.contest.root, self.tests.files, test_views=test_views)
        return text, dict(zip(paths, rows)), tests

    def task(self, parts, encoded, seed, shots=4):
        """The shots of a draw, as (path, label), and the task that they are."""
        several = parts if len(parts) > 1 else ()
        text = joined([one[0] if part.has_text else np.zeros_like(one[0]) for part, one in zip(parts, encoded)])
        drawn = choose_shots(self.contest, shots, seed)
        rows = joined([np.stack([one[1][path] for path, _ in drawn]) for one in encoded])
        scale = joined_scale(several) if several else parts[0].scale
        labels = [label for _, label in drawn]
        return drawn, Task(rows, labels, text, domain_indices(self.contest.domains), scale, several)

    def scores(self, parts, encoded, names, seeds, shots=4):
        """{method: top-1 of each draw}. encoded: what `encode` gave for each of the parts."""
        tests, found = joined([one[2] for one in encoded]), {}
        for seed in range(seeds):
            _, task = self.task(parts, encoded, seed, shots)
            answers = Pipeline(names).fit(task).answer(tests).by_method()
            for name, answer in answers.items():
                found.setdefault(name, []).append(percent(answer.argmax(axis=1) == self.truth))
        return found


def said(values):
    """`80.1 ± 0.3` over the draws."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {spread:.1f}"
