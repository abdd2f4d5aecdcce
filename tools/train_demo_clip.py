"""Trains the small CLIPs of the built-in contest, weights/demo_clip*.safetensors, in Jittor.

    OMP_NUM_THREADS=1 python tools/train_demo_clip.py           2250 steps on 60,000 drawings
    python tools/train_demo_clip.py --steps 500 --out /tmp/try.safetensors
    python tools/train_demo_clip.py --tower resnet --seed 1 --minutes 20     the second one, a ModifiedResNet

Cost: about 0.25 s of one core a step and 2 ms a drawing: 12 minutes of one core in all (the checkpoint in git
took 28 minutes on a busy machine). Score: the zero-shot top-1 that it prints, on contests of other seeds, is
about 30 % after 500 steps, 50 % after 1000, 60 % at the end.

World: jclip_fewshot/data/demo.py. Pairs: a drawing of a random scene whose named combination is not held out for
contests (`free_scene`), and a sentence about it (`sentence`), a new one each time. Loss: CLIP's, the
symmetric cross-entropy over the batch. Every second batch comes from one domain alone, so that its wrong
pairs are hard ones.

Model: a ViT on 60-pixel images in 12-pixel patches, width 128, 3 blocks, 2 heads; a text tower of width 64,
3 blocks, context 32; D = 64. With --tower resnet: a ModifiedResNet on 64-pixel images, width 16, (1, 2, 2, 1)
blocks; its batch norms use the batch's statistics while it trains. The checkpoint has OpenAI's names and whole
vocabulary; tokens that no sentence uses are zero rows (training sees only the used ones, in a table of their own).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from jclip_fewshot.clip import preprocess
from jclip_fewshot.clip.checkpoint import Architecture, read_state_dict, write_safetensors
from jclip_fewshot.clip.tokenizer import token_array
from jclip_fewshot.data import demo, prompts
from jclip_fewshot.data.demo import drawing, world

VOCABULARY, START, END = 49408, 49406, 49407
CONTEXT = 32
TOWERS = {  # the image tower, as CLIP's arguments
    "vit": dict(image_resolution=60, vision_layers=3, vision_width=128, vision_patch_size=12),
    "resnet": dict(image_resolution=64, vision_layers=(1, 2, 2, 1), vision_width=16, vision_patch_size=None),
}
KEEP_STATISTICS = 0.95  # of a batch norm's running statistics, a step
SHARE = {"Beast": 0.4, "Thing": 0.2, "Dish": 0.2, "Flag": 0.2}  # of the drawings
RARE_WORDS = 0.02  # how often a word is replaced by its rare synonym

DETAILS = {  # sentences about unnamed attributes; {} of an attribute whose value is "no" says nothing
    "Beast": ("{accent} markings", "{collar} collar", "{socks} socks"),
    "Thing": ("{pattern} pattern", "{accent} markings"),
    "Dish": ("{rim} rim", "{garnish} garnish", "{amount} pieces"),
    "Flag": ("{charge} emblem", "{fringe} fringe"),
}
PARTS = {  # more names that say less than the class's own
    "Beast": ("{pattern} {colour} beast", "{species}"),
    "Thing": ("{kind}",),
    "Dish": ("{topping}",),
    "Flag": ("{layout} with {emblem} emblem",),
}


def free_scene(domain: str, rng: np.random.Generator) -> dict[str, str]:
    """A random scene that training may see."""
    while True:
        scene = world.random_scene(domain, rng)
        if not world.held_out(domain, scene):
            return scene


def sentence(domain: str, scene: dict[str, str], rng: np.random.Generator, templates: dict) -> str:
    """A sentence about a scene: a prompt template around the class's name, a part of the name, or more."""
    words = {a: world.RARE.get(w, w) if rng.random() < RARE_WORDS else w for a, w in scene.items()}
    if rng.random() < 0.7:
        form = world.DOMAINS[domain].name
    else:
        form = world.pick(rng, world.DOMAINS[domain].vague + PARTS[domain])
    name = prompts.plain_name(world.class_name(domain, form, words), domain)
    if rng.random() < 0.4:
        details = [detail.format(**words) for detail in DETAILS[domain]]
        name += " with " + world.pick(rng, [d for d in details if not d.startswith("no ")])
    chosen = templates[domain] if rng.random() < 0.75 else templates["default"]
    return prompts.fill(world.pick(rng, chosen), name)


def draw_part(job) -> None:
    """Worker: draws images begin..end of the training set into the shared file."""
    path, total, begin, end, seed, side = job
    pixels = np.memmap(path, np.uint8, "r+", shape=(total, side, side, 3))
    for i in range(begin, end):
        rng = np.random.default_rng([seed, 7, i])
        domain = domain_of(i)
        image = drawing.draw(domain, free_scene(domain, rng), rng, drawing.random_size(rng, 76, 110))
        if rng.random() < 0.3:  # a crop, as the shots' augmented views are
            width, height = image.size
            part = math.sqrt(0.55 + 0.45 * rng.random())
            w, h = int(width * part), int(height * part)
            left, top = int(rng.random() * (width - w)), int(rng.random() * (height - h))
            image = image.crop((left, top, left + w, top + h))
        pixels[i] = np.asarray(preprocess.resize_and_crop(image, side))


def domain_of(i: int) -> str:
    """Domain of training image i: the shares, in a fixed round of ten."""
    rounds = [d for d, share in SHARE.items() for _ in range(round(share * 10))]
    return rounds[i % len(rounds)]


def scene_of(i: int, seed: int) -> dict[str, str]:
    """The scene that `draw_part` drew as image i."""
    return free_scene(domain_of(i), np.random.default_rng([seed, 7, i]))


def draw_all(folder: Path, total: int, seed: int, workers: int, side: int) -> np.ndarray:
    """The training images, (total, side, side, 3) uint8; those of an earlier run are used again."""
    finished = folder / f"demo_world_{side}_{total}_{seed}.u8"
    if finished.exists():
        return np.memmap(finished, np.uint8, "r", shape=(total, side, side, 3))
    path = finished.with_suffix(".part")
    np.memmap(path, np.uint8, "w+", shape=(total, side, side, 3))
    step = 500
    jobs = [(path, total, i, min(i + step, total), seed, side) for i in range(0, total, step)]
    begun = time.time()
    with get_context("fork").Pool(workers) as pool:
        for n, _ in enumerate(pool.imap_unordered(draw_part, jobs), 1):
            if n % 20 == 0:
                print(f"drawn {n * step} of {total}: {time.time() - begun:.0f} s", flush=True)
    os.replace(path, finished)
    return np.memmap(finished, np.uint8, "r", shape=(total, side, side, 3))


class Vocabulary:
    """The tokens in use, numbered afresh in the same order (so that the end token stays the highest)."""

    def __init__(self, sentences):
        self.used = np.unique(np.append(token_array(sentences, CONTEXT), [0, START, END]))

    def tokens(self, sentences) -> np.ndarray:
        return np.searchsorted(self.used, token_array(sentences, CONTEXT)).astype(np.int32)

    def full_table(self, rows: np.ndarray) -> np.ndarray:
        table = np.zeros((VOCABULARY, rows.shape[1]), rows.dtype)
        table[self.used] = rows
        return table


def all_sentences(templates: dict):
    """Enough sentences to hold every word that `sentence` can say."""
    words = set(world.RARE.values()) | set(world.RARE)
    for domain, one in world.DOMAINS.items():
        for values in {**one.named, **one.unnamed}.values():
            words |= set(values)
        for form in (one.name,) + one.vague + DETAILS[domain] + PARTS[domain]:
            words |= set("".join(c if c.isalpha() else " " for c in form).split())
    every = [t.replace("{}", w) for ts in templates.values() for t in ts[:1] for w in sorted(words)]
    return every + [prompts.fill(t, n) for ts in templates.values() for t in ts for n in ("thing", "orange")]


def batch_norms(model) -> list:
    """Makes the norms of a ModifiedResNet use the batch's statistics while their `training_` is True; returns them."""
    from jclip_fewshot.backend import jt
    from jclip_fewshot.clip.modified_resnet import BatchNorm

    class TrainedNorm(BatchNorm):
        training_ = True

        def execute(self, x):
            if not self.training_:
                return super().execute(x)
            mean = x.mean(dims=(0, 2, 3), keepdims=True)
            y = x - mean
            var = (y * y).mean(dims=(0, 2, 3), keepdims=True)
            for kept, now in ((self.running_mean, mean), (self.running_var, var)):
                now = now.reshape((-1,)).stop_grad()
                kept.update(KEEP_STATISTICS * kept + (1 - KEEP_STATISTICS) * now)
            shape = (1, -1, 1, 1)
            return y / jt.sqrt(var + 1e-5) * self.weight.reshape(shape) + self.bias.reshape(shape)

    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.__class__ = TrainedNorm
    return norms


def validation(model, vocabulary, templates, seeds=(101, 102), images=3) -> dict[str, float]:
    """Zero-shot top-1 in % per domain, over drawn contests of other seeds (held-out combinations)."""
    from jclip_fewshot.backend import jt
    hits = {domain: [] for domain in world.DOMAINS}
    for seed in seeds:
        classes = world.contest_classes(seed)
        rng = np.random.default_rng([seed, 9])
        text = []
        for c in classes:
            filled = [prompts.fill(t, prompts.plain_name(c.name, c.domain)) for t in templates[c.domain]]
            rows = model.encode_text(vocabulary.tokens(filled)).numpy()
            text.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0))
        text = np.array(text) / np.linalg.norm(text, axis=1, keepdims=True)
        drawn = [preprocess.image_array(drawing.draw(c.domain, c.scene, rng, drawing.random_size(rng)),
                                        model.visual.input_resolution)
                 for c in classes for _ in range(images)]
        rows = np.concatenate([model.encode_image(jt.array(np.stack(drawn[i:i + 108]))).numpy()
                               for i in range(0, len(drawn), 108)])
        best = (rows @ text.T).argmax(1)
        for n, found in enumerate(best):
            hits[classes[n // images].domain].append(found == n // images)
    score = {domain: 100 * float(np.mean(h)) for domain, h in hits.items()}
    score["all"] = 100 * float(np.mean([h for hs in hits.values() for h in hs]))
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tower", choices=tuple(TOWERS), default="vit", help="of images")
    parser.add_argument("--steps", type=int, default=2250)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--scale", type=float, default=100, help="of the cosines; OpenAI's ended at 100")
    parser.add_argument("--minutes", type=float, default=0, help="for so long, rather than --steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the drawings are kept, 11 kB each")
    parser.add_argument("--go-on", type=Path, help="start from this checkpoint, of the same tower and --seed")
    parser.add_argument("--out", type=Path, help="[the checkpoint in weights/ of that tower]")
    args = parser.parse_args()
    out = args.out or {"vit": demo.CHECKPOINT, "resnet": demo.SECOND_CHECKPOINT}[args.tower]
    tower = TOWERS[args.tower]

    templates = prompts.load().templates
    templates = {domain: templates[domain] for domain in (*world.DOMAINS, "default")}
    pixels = draw_all(args.scratch, args.images, args.seed, args.workers, tower["image_resolution"])
    scenes = [scene_of(i, args.seed) for i in range(args.images)]
    domains = np.array([domain_of(i) for i in range(args.images)])
    by_domain = {domain: np.flatnonzero(domains == domain) for domain in world.DOMAINS}
    vocabulary = Vocabulary(all_sentences(templates))
    print(f"{len(vocabulary.used)} tokens in use", flush=True)

    from jclip_fewshot.backend import jt
    from jclip_fewshot.backend.numerics import unit_var
    from jclip_fewshot.clip.model import CLIP, numpy_state_dict
    jt.set_global_seed(args.seed)
    model = CLIP(Architecture(embed_dim=64, **tower, context_length=CONTEXT, vocab_size=len(vocabulary.used),
                              transformer_width=64, transformer_layers=3))
    if args.go_on:
        state = read_state_dict(args.go_on)
        state["token_embedding.weight"] = state["token_embedding.weight"][vocabulary.used]
        model.load_parameters(state)
    model.train()
    norms = batch_norms(model)
    model.logit_scale.assign(jt.array(np.array([math.log(args.scale)], np.float32))).stop_grad()
    optimizer = jt.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.02)
    rng = np.random.default_rng([args.seed, 8])

    def save() -> None:
        state = numpy_state_dict(model)
        state["token_embedding.weight"] = vocabulary.full_table(state["token_embedding.weight"])
        write_safetensors(out, {name: value.astype(np.float16) for name, value in state.items()})

    begun, recent, step, done = time.time(), [], 0, 0.0
    while done < 1:
        done = (time.time() - begun) / (60 * args.minutes) if args.minutes else step / args.steps
        warm = min(1.0, (step + 1) / 200)
        optimizer.lr = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        domain = world.pick(rng, [d for d in world.DOMAINS for _ in range(round(SHARE[d] * 10))])
        pool = by_domain[domain] if step % 2 else np.arange(args.images)
        chosen = np.sort(rng.choice(pool, args.batch, replace=False))
        batch = pixels[chosen]
        flipped = rng.random(args.batch) < 0.5
        batch[flipped] = batch[flipped, :, ::-1]
        images = preprocess.normalize(batch)
        tokens = vocabulary.tokens([sentence(domains[i], scenes[i], rng, templates) for i in chosen])

        x = unit_var(model.encode_image(jt.array(np.ascontiguousarray(images))))
        t = unit_var(model.encode_text(tokens))
        logits = args.scale * jt.nn.matmul_transpose(x, t)
        target = jt.arange(args.batch)
        loss = (jt.nn.cross_entropy_loss(logits, target)
                + jt.nn.cross_entropy_loss(logits.transpose(1, 0), target)) / 2
        optimizer.backward(loss)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        recent.append(float(loss.numpy()[0]))
        step += 1
        if step in (2, 5, 10) or step % 100 == 0:
            print(f"step {step} ({100 * done:.0f} %) loss {np.mean(recent):.3f} {time.time() - begun:.0f} s",
                  flush=True)
            recent = []
            jt.sync_all()
            jt.gc()
        if step in (50, 200) or step % 500 == 0 or done >= 1:
            for norm in norms:
                norm.training_ = False
            score = validation(model, vocabulary, templates)
            for norm in norms:
                norm.training_ = True
            print("zero-shot " + " ".join(f"{k} {v:.1f}" for k, v in score.items()), flush=True)
            save()


if __name__ == "__main__":
    main()
