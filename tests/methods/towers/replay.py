"""Replaying reference runs: same start, same inputs, step by step; how far apart they end.

KINDS says how a file is told by its keys, how near the port must come, and what replays it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip_fewshot import clip
from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods.towers import coop, prolip, towers
from jclip_fewshot.methods.training import batches, cosine_by_epoch
from tests.methods.towers.reference import MEASURES, Deviation, Recorder, Reference, largest  # noqa: F401
from tests.methods.unlabelled import replay_unlabelled as unlabelled


def replay_coop(reference: Reference) -> Deviation:
    """Runs of CoOp and CoCoOp with one context for all classes, in front of the names.

    Which sentences is read off `prompts0`.
    """
    worst, model, labels = Deviation(), reference.model, reference["labels"]
    rows, held = (reference.image_rows(reference[name]) for name in ("images", "held"))
    for run in [run for run in reference.runs() if not run.startswith(("middle", "front", "csc"))]:
        start, steps = reference.start(run), reference.steps(run)
        wrong = []
        for tokens in [name for name in ("tokens", "words_tokens") if name in reference]:
            prompts = coop.Prompts(model, reference[tokens], len(start["ctx"]))
            ours = prompts.embeddings(jt.array(start["ctx"])).numpy()
            if run + "prompts0" not in reference or np.abs(
                    ours - reference[run + "prompts0"][:, :ours.shape[1]]).max() < 1e-6:
                break
        else:
            wrong = [run + "prompts0"]
        rates = cosine_by_epoch(reference.lr(run), len(reference["order"]), len(steps) // len(reference["order"]))
        recorder = Recorder()
        final = coop.train(start, prompts, lambda step: jt.array(rows[steps[step]]), [labels[step] for step in steps],
                           rates, reference.scale, watch=recorder)
        found = reference.compare(run, recorder, final, rates)
        found.wrong += wrong
        for p, key in ((start, "logits_before"), (final, "logits_after")):
            found.with_logits(coop.logits_one_by_one(p, prompts, held, reference.scale), reference[run + key])
        worst = worst.worst(found)
    return worst


def replay_lora(reference: Reference) -> Deviation:
    """Runs of CLIP-LoRA: which towers and blocks train is read off the parameters; `text_features` are fixed rows."""
    worst, model = Deviation(), reference.model
    images, labels, tokens = jt.array(reference["images"]), reference["labels"], reference["tokens"]
    for run in reference.runs():
        start, steps = reference.start(run), reference.steps(run)
        fixed = jt.array(reference[run + "text_features"]) if run + "text_features" in reference else None

        def text(p):
            return towers.text_rows(model, tokens) if fixed is None else fixed

        recorder, rate = Recorder(), reference.lr(run)
        final = towers.train(start, model, lambda step: towers.image_rows(model, images[jt.array(steps[step])]), text,
                           [labels[rows] for rows in steps], lr=rate, watch=recorder)
        found = reference.compare(run, recorder, final, towers.cosine(rate, len(steps), towers.LEAST_LR))
        for p, key in ((start, "logits_before"), (final, "logits_after")):
            weights = {name: jt.array(value) for name, value in towers.merged(model, p).items()}
            with replaced(model, weights):
                ours = towers.SCALE * reference.image_rows(reference["held"]) @ text(p).numpy().T
            found.with_logits(ours, reference[run + key])
        worst = worst.worst(found)
    return worst


def replay_prolip(reference: Reference) -> Deviation:
    """Runs of ProLIP. λ is read off the parts of the loss."""
    worst, model = Deviation(), reference.model
    views, held = (reference[key] for key in ("features_before_projection", "held_before_projection"))
    text = towers.text_rows(model, reference["tokens"])
    for run in reference.runs():
        start = reference.start(run)["proj"]
        part = reference[run + "part_distance"].astype(np.float64)
        last = int(part.argmax())
        share = (reference[run + "loss"].astype(np.float64) - reference[run + "part_cross_entropy"])[last] / part[last]
        penalty = 1 / round(1 / share) if share <= 1 else share  # the authors': 1/shots or 1/shots²
        recorder = Recorder()
        order = reference["views_in_order"]
        final = prolip.train(start, views, reference["labels"], text.numpy(), penalty, reference.lr(run), towers.SCALE,
                             order, watch=recorder)
        found = reference.compare(run, recorder, {"proj": final}, prolip.cosine(reference.lr(run), len(order)))
        for p, key in ((start, "logits_before"), (final, "logits_after")):
            found.with_logits(prolip.logits(jt.array(p), jt.array(held), text, towers.SCALE).numpy(),
                              reference[run + key])
        for number, view in enumerate(reference["views"]):  # what the towers say about the pictures themselves
            ours = model.visual.unprojected(model.visual.embed(jt.array(view))).numpy()
            if np.abs(ours - views[number]).max() > 1e-4:
                found.wrong.append("features_before_projection")
        worst = worst.worst(found)
    return worst


def replay_two_stage(reference: Reference) -> Deviation:
    """Runs of 2SFS; `order` goes on from stage 1 to stage 2."""
    worst, model, tokens = Deviation(), reference.model, reference["tokens"]
    images, labels, scale = jt.array(reference["images"]), reference["labels"], reference.scale
    for run in reference.runs("first/"):
        first, second, lr = run + "first/", run + "second/", reference.lr(run + "first/")
        count, total = len(reference[first + "lr"]), len(reference[first + "lr"]) + len(reference[second + "lr"])
        steps = batches(reference["order"], 4)[:total]
        norms = towers.norm_names(towers.block_names(model, "visual.", ""))
        start = {name: reference.start(first)[name] for name in norms if name in reference.start(first)}
        recorder = Recorder()
        norms = towers.train(
            start, model, lambda step: towers.image_rows(model, images[jt.array(steps[step])]),
            lambda p: towers.text_rows(model, tokens), [labels[rows] for rows in steps[:count]], scale, lr,
            watch=recorder)
        found = reference.compare(first, recorder, norms, towers.cosine(lr, count, towers.LEAST_LR))
        with replaced(model, {name: jt.array(value) for name, value in norms.items()}):
            rows, held = jt.array(reference.image_rows(reference["images"])), reference.image_rows(reference["held"])
            text = towers.text_rows(model, tokens).numpy()
        found.logits = largest(found.logits, np.abs(text - reference.start(second)["classifier"]).max())
        recorder = Recorder()
        classifier = towers.train(reference.start(second), model, lambda step: rows[jt.array(steps[count + step])],
                                  lambda p: unit_var(p["classifier"]), [labels[rows] for rows in steps[count:]], scale,
                                  lr, watch=recorder)["classifier"]
        found = found.worst(reference.compare(second, recorder, {"classifier": classifier},
                                              towers.cosine(lr, total - count, towers.LEAST_LR)))
        ours = scale * held @ (classifier / np.linalg.norm(classifier, axis=1, keepdims=True)).T
        worst = worst.worst(found.with_logits(ours, reference[run + "logits_after"]))
    return worst


@dataclass(frozen=True)
class Kind:
    """is_it: from a file's keys; limits: of loss, gradient, update and logits."""

    name: str
    is_it: Callable[[Sequence[str]], bool]
    limits: tuple[float, float, float, float]
    replay: Callable[[Reference], Deviation]


def has(*endings: str) -> Callable[[Sequence[str]], bool]:
    """Whether for each ending some key has it."""
    return lambda keys: all(any(key.endswith(ending) for key in keys) for ending in endings)


KINDS = (
    Kind("cocoop", has("init/meta_net.linear1.weight"), (1e-5, 1e-4, 1e-4, 3e-4), replay_coop),
    Kind("coop", has("init/ctx", "prompts0"), (1e-5, 1e-4, 1e-4, 3e-4), replay_coop),
    Kind("clip_lora", has(".w_lora_A"), (1e-5, 1e-4, 3e-4, 3e-4), replay_lora),
    Kind("prolip", has("init/proj", "features_before_projection"), (1e-5, 1e-4, 3e-4, 5e-4), replay_prolip),
    Kind("two_stage", has("second/init/classifier"), (1e-5, 1e-4, 1e-3, 1e-4), replay_two_stage),
    Kind("lafter", has("adapt/init/adapter"), (1e-5, 1e-4, 5e-4, 1e-4), unlabelled.replay_lafter),
    Kind("upl", has("member0/init/ctx"), (1e-5, 1e-4, 1e-4, 3e-4), unlabelled.replay_upl),
    Kind("fixmatch", has("init/ctx", "threshold_weight"), (2e-5, 1e-4, 2e-4, 3e-4), unlabelled.replay_fixmatch),
    Kind("clip_pr", has("init/tower.proj", "prior"), (1e-5, 1e-4, 2e-4, 1e-5), unlabelled.replay_clip_pr),
    # no training: the distance of M stands under "gradient"
    Kind("sus_x", has("alpha_beta_gamma", "M_val"), (1e-5, 1e-5, 1e-4, 1e-4), unlabelled.replay_sus_x),
)


def read(file: Path) -> tuple[Kind, dict[str, np.ndarray]]:
    """A reference file's method and arrays.

    Raises:
        UserError: it cannot be read, or no method knows it.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # NumPy raises a dozen kinds on damaged archives
        raise UserError(f"{file}: cannot be read ({error})") from None
    for method in KINDS:
        if method.is_it(list(arrays)):
            return method, arrays
    raise UserError(f"{file}: no method's reference run; there are {', '.join(one.name for one in KINDS)}")


def replay(file: Path, checkpoint: Path) -> tuple[Kind, Deviation]:
    """Replays every run of a file from the checkpoint's weights.

    Raises:
        UserError: a file that cannot be read or lacks arrays.
    """
    method, arrays = read(file)
    model, _ = clip.load(checkpoint)
    try:
        return method, method.replay(Reference(arrays, model))
    except KeyError as error:
        raise UserError(f"{file}: {method.name} needs {error}, which it lacks") from None
    except (ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{file}: its arrays do not fit {method.name} ({error})") from None
