"""What each method without labels is worth on the built-in contest: the tables of docs/nolabels.md.

    python benchmarks/nolabels.py [--seed 1] [--only zero_shot,upl,...] [--work DIR]

0 shots: class names, the test images without labels, and a support folder drawn from the same world in which 20 % of
the pictures show another class. 4 shots: what is added to zero-shot and to the ensemble. Top-1 and top-5 in percent,
seconds beside other work on this machine.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from jclip_fewshot.backend import jt  # noqa: E402
from jclip_fewshot.backend.numerics import matmul, softmax, unit_rows  # noqa: E402
from jclip_fewshot.clip.preprocess import normalize  # noqa: E402
from jclip_fewshot.combine.ensemble import Ensemble  # noqa: E402
from jclip_fewshot.combine.zero_shot_refinement import refine_zero_shot  # noqa: E402
from jclip_fewshot.data import demo, prompts  # noqa: E402
from jclip_fewshot.data.contest import read_contest, read_labels, test_images  # noqa: E402
from jclip_fewshot.data.demo.drawing import draw  # noqa: E402
from jclip_fewshot.data.demo.world import contest_classes  # noqa: E402
from jclip_fewshot.data.shots import choose_shots  # noqa: E402
from jclip_fewshot.encoders import open_encoder  # noqa: E402
from jclip_fewshot.features.bank import Bank  # noqa: E402
from jclip_fewshot.features.encode import encode_images, encode_texts  # noqa: E402
from jclip_fewshot.methods.rows.sus_x import SusX, SusXF  # noqa: E402
from jclip_fewshot.methods.towers import coop, towers  # noqa: E402
from jclip_fewshot.methods.towers.last_blocks import LastBlocks  # noqa: E402
from jclip_fewshot.methods.towers.training import batches  # noqa: E402
from jclip_fewshot.methods.unlabelled import fixmatch, label_free, lafter, views  # noqa: E402
from jclip_fewshot.methods.unlabelled.calip import calip_logits  # noqa: E402
from jclip_fewshot.methods.unlabelled.clip_dn import clip_dn_logits  # noqa: E402
from jclip_fewshot.pipeline import HEADS_TOGETHER, Pipeline, with_support  # noqa: E402
from jclip_fewshot.task import Task, domain_indices  # noqa: E402

WRONG, SUPPORT = 0.2, 8  # share of wrong pictures, pictures a class


class Bench:
    """The contest of a seed, encoded."""

    def __init__(self, seed: int, work: Path) -> None:
        folder = work / f"contest{seed}"
        if not (folder / "complete.txt").is_file():
            demo.make_contest(folder, seed)
        self.seed, self.classes = seed, contest_classes(seed)
        self.contest, self.tests = read_contest(folder), test_images(folder)
        labels = read_labels(self.contest)
        self.truth = np.array([labels[name] for name in self.tests.names])
        self.encoder = open_encoder(demo.CHECKPOINT)
        self.paths = [str(path) for path in self.tests.paths]
        self.rows = encode_images(self.encoder, self.paths, workers=0)[0]
        self.names = [prompts.display_name(name, domain)
                      for name, domain in zip(self.contest.class_names, self.contest.domains)]
        self.text = self.text_of("both")

    def text_of(self, prompt_set: str, **more) -> np.ndarray:
        sentences = prompts.class_sentences(self.contest.class_names, self.contest.domains, prompt_set=prompt_set,
                                            **more)
        return encode_texts(self.encoder, sentences)

    def task(self, text=None) -> Task:
        text = self.text if text is None else text
        return Task(np.zeros((0, text.shape[1])), [], text, domain_indices(self.contest.domains), self.encoder.scale)

    def descriptions(self, work: Path) -> Path:
        """A sentence an attribute that the class's name tells, in the words of the world's captions."""
        import json
        found = {one.name: [f"{name}, {value} {attribute}" for attribute, value in one.scene.items()
                            if value in one.name.lower()] or [name]
                 for one, name in zip(self.classes, self.names)}
        path = work / f"descriptions{self.seed}.json"
        path.write_text(json.dumps(found))
        return path

    def support(self, work: Path) -> "tuple[list, list]":
        """Drawn pictures by class name, a fifth of them of another class: paths and the labels that they go by."""
        folder, paths, labels = work / f"support{self.seed}", [], []
        folder.mkdir(parents=True, exist_ok=True)
        for label in range(len(self.classes)):
            for number in range(SUPPORT):
                rng = np.random.default_rng([self.seed, 77, label, number])
                shown = self.classes[int(rng.integers(len(self.classes))) if rng.random() < WRONG else label]
                path = folder / f"{label}_{number}.jpg"
                if not path.is_file():
                    draw(shown.domain, shown.scene, rng, (90, 90)).save(path)
                paths.append(str(path))
                labels.append(label)
        return paths, labels


def zero_shots(bench: Bench, work: Path):
    """(name, logits or probabilities) of everything that works without a label."""
    rows, task = bench.rows, bench.task()
    zero_shot = task.zero_shot(rows)
    probs = softmax(zero_shot)
    yield "zero_shot", lambda: zero_shot
    for one in ("seeds", "templates", "openai80"):
        yield f"prompts {one}", lambda one=one: bench.task(bench.text_of(one)).zero_shot(rows)
    own = bench.descriptions(work)
    for one in ("descriptions", "both"):
        yield f"prompts {one}", lambda one=one: bench.task(
            bench.text_of(one, descriptions=own)).zero_shot(rows)
    yield "clip_dn", lambda: clip_dn_logits(rows, task.text, rows.mean(axis=0), scale=task.scale)
    pixels, _ = views.weak_pixels(bench.paths, bench.encoder.image_size)
    model = bench.encoder.model

    def calip():
        patches = np.concatenate([towers.patch_rows(model, jt.array(normalize(pixels[i:i + 64]))).numpy()
                                  for i in range(0, len(pixels), 64)])
        return calip_logits(rows, patches, task.text, scale=task.scale)
    yield "calip", calip

    found, labels = bench.support(work)
    support = encode_images(bench.encoder, found, workers=0)[0]
    supported, kept = with_support(task, support, labels)
    print(f"support: {kept.sum()} of {len(kept)} pictures stay", file=sys.stderr)
    yield "sus_x", lambda: SusX().fit(supported).logits(rows)
    yield "sus_x_f", lambda: SusXF().fit(supported).logits(rows)
    yield "support, whole pipeline", lambda: Pipeline().fit(supported).answer(rows, "off").probs
    yield "support, refined", lambda: Pipeline().fit(supported).answer(rows).final

    sentences = prompts.class_sentences(bench.contest.class_names, bench.contest.domains)
    sentence_rows = [unit_rows(bench.encoder.texts(bench.encoder.tokens(one))) for one in sentences]
    members = {}
    for name in label_free.MEMBERS:
        def learn(name=name):
            members[name], = label_free.learn([name], bench.encoder, bench.names, rows, task, sentence_rows)
            return members[name].logits(rows)
        yield name, learn

    def adapted():
        settings = lafter.Settings()
        adapter = members["lafter_text"].learned_["adapter"]
        start = lafter.start_of(model, adapter, settings.prompts)
        rng = np.random.default_rng(0)
        order = np.stack([rng.permutation(len(rows)) for _ in range(settings.epochs)])
        steps = batches(order, settings.batch)
        final = lafter.adapt(start, model, lambda step: views.pair(pixels, steps[step], 0, step),
                             [settings.lr] * len(steps), stage="lafter")
        p = {name: jt.array(value) for name, value in final.items()}
        return np.concatenate([lafter.student_logits(p, model, jt.array(normalize(pixels[i:i + 64]))).numpy()
                               for i in range(0, len(pixels), 64)])
    yield "lafter (both stages)", adapted
    yield "zero_shot_refined", lambda: refine_zero_shot(probs, rows, task).probs
    for name in label_free.MEMBERS:
        yield f"{name}, refined", lambda name=name: refine_zero_shot(
            softmax(members[name].logits(rows)), rows, task).probs


def four_shots(bench: Bench, work: Path):
    """FixMatch with 4 shots, and what it and the label-free members add to the ensemble."""
    shots = choose_shots(bench.contest, 4, 0)
    labels = np.array([label for _, label in shots])
    paths = [str(bench.contest.root / path) for path, _ in shots]
    support = encode_images(bench.encoder, paths, workers=0, views=10)[0]
    task = Task(support, labels, bench.text, domain_indices(bench.contest.domains), bench.encoder.scale)
    pipeline = Pipeline().fit(task)
    answers = pipeline.answer(bench.rows)
    yield "4 shots: ensemble", lambda: answers.probs
    yield "4 shots: ensemble, refined", lambda: answers.final

    def fix():
        settings, rng = fixmatch.Settings(), np.random.default_rng(0)
        of = {}
        for key, files in (("x", paths), ("u", bench.paths)):
            pixels, _ = views.weak_pixels(files, bench.encoder.image_size)
            strong = np.stack([views.strong_view(one, rng) for one in pixels])
            of[key] = [unit_rows(np.concatenate([bench.encoder.images(part[i:i + 64])
                                                 for i in range(0, len(part), 64)])) for part in (pixels, strong)]
        count = max(1, len(labels) // settings.batch_x)
        steps_x = batches(np.stack([rng.permutation(len(labels)) for _ in range(settings.epochs)]), settings.batch_x)
        steps_u = [rng.permutation(len(bench.rows))[:settings.batch_u] for _ in steps_x]
        sentences = label_free.prompts_for(bench.encoder, bench.names, settings.context)
        threshold = fixmatch.class_thresholds(softmax(task.zero_shot(of["u"][0])), settings.keep)
        width = bench.encoder.model.token_embedding.weight.shape[1]
        rates = fixmatch.schedule(settings.epochs, count, settings.lr)
        start = {"ctx": coop.random_context(rng, settings.context, width)}
        x = (*of["x"], labels)
        final = fixmatch.train(start, sentences, x, tuple(of["u"]), steps_x, steps_u, rates, task.scale, threshold,
                               settings.weight, stage="fixmatch")
        text = sentences.rows(jt.array(final["ctx"])).numpy()
        return matmul(task.scale * bench.rows, text.T)
    found = {}

    def keep():
        found["fixmatch"] = fix()
        return found["fixmatch"]
    yield "4 shots: fixmatch", keep
    yield "4 shots: ensemble + fixmatch, equal weights", lambda: np.exp(
        0.5 * np.log(answers.probs + 1e-12) + 0.5 * np.log(softmax(found["fixmatch"]) + 1e-12))
    bank = Bank(bench.encoder, paths, views=10, workers=0)
    member = LastBlocks()

    def tuned():
        member.fit(task, bank)
        rows = encode_images(member.encoder(bench.encoder), bench.paths, workers=0)[0]
        found[member.name] = member.logits(rows, bench.rows)
        return found[member.name]

    def joined():
        held_out = {HEADS_TOGETHER: np.log(pipeline.held_out_probs_), member.name: member.held_out_logits()}
        ensemble = Ensemble().fit(held_out, task)
        least = Ensemble().fit({HEADS_TOGETHER: held_out[HEADS_TOGETHER]}, task)
        gain = (np.log(ensemble.held_out_probs_) - np.log(least.held_out_probs_))[np.arange(len(labels)), labels]
        print(f"held-out log-likelihood with {member.name}: {gain.mean():+.4f} ± "
              f"{gain.std() / np.sqrt(len(gain)):.4f}", file=sys.stderr)
        return ensemble.probs({HEADS_TOGETHER: np.log(answers.probs), member.name: found[member.name]})
    yield f"4 shots: {member.name}", tuned
    yield f"4 shots: ensemble + {member.name}", joined
    yield f"4 shots: ensemble + {member.name}, refined", lambda: pipeline.refine(bench.rows, joined()).probs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=demo.SEED, metavar="N", help="of the contest")
    parser.add_argument("--only", default="", metavar="LIST", help="parts of names of the rows to compute")
    parser.add_argument("--work", type=Path, default=Path("bench_nolabels"), metavar="DIR", help="drawn pictures")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.seed, given.work)
    print(f"| {'method':44} | top-1 | top-5 | seconds |\n|---|---|---|---|")
    for part in (zero_shots, four_shots):
        if given.only and part is four_shots and "4 shots" not in given.only:
            continue
        for name, answer in part(bench, given.work):
            if given.only and not any(one in name for one in given.only.split(",")):
                continue
            begun = time.perf_counter()
            logits = answer()
            best = np.argsort(-logits, axis=1, kind="stable")[:, :5] == bench.truth[:, None]
            print(f"| {name:44} | {100 * best[:, 0].mean():5.1f} | {100 * best.any(axis=1).mean():5.1f} | "
                  f"{time.perf_counter() - begun:7.1f} |", flush=True)


if __name__ == "__main__":
    main()
