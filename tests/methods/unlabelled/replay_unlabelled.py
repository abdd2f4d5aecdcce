"""Replays of the methods that learn without labels: LaFTer, UPL, FixMatch, CLIP-PR, SuS-X. See `replay`."""

from unittest import mock

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.methods.rows import sus_x, tip_adapter, tip_x
from jclip_fewshot.methods.towers import coop, towers
from jclip_fewshot.methods.training import as_vars, cosine, cosine_by_epoch, mean_cross_entropy
from jclip_fewshot.methods.unlabelled import clip_pr, fixmatch, lafter, upl
from jclip_fewshot.task import zero_shot_logits
from tests.methods.towers.reference import Deviation, Recorder, Reference, largest


def replay_lafter(reference: Reference) -> Deviation:
    """Both stages of every run; pseudo-labels must be equal."""
    worst, model = Deviation(), reference.model
    weak, strong, held = (jt.array(reference[name]) for name in ("weak", "strong", "held"))
    noise, labels = reference["noise"], reference["text_labels"]
    for run in reference.runs("text/"):
        text, second = run + "text/", run + "adapt/"
        rows = towers.text_rows(model, reference["text_tokens"]).numpy()
        recorder = Recorder()
        adapter = lafter.train_text(reference.start(text)["adapter"], rows, labels, lambda step: noise[step],
                                    reference[text + "lr"], watch=recorder)
        found = reference.compare(text, recorder, {"adapter": adapter}, reference[text + "lr"])
        found.with_logits(rows, reference[run + "text_features"])
        found.with_logits(towers.image_rows(model, held).numpy() @ adapter.T, reference[run + "held_logits_text"])

        start, steps = reference.start(second), reference.steps(second)
        found.with_logits(lafter.student_logits(as_vars(start), model, held).numpy(),
                          reference[run + "held_logits_prompted"])
        told: list[np.ndarray] = []
        recorder = Recorder()

        def noted(logits, labels, smoothing):
            told.append(labels)
            return mean_cross_entropy(logits, labels, smoothing)

        with mock.patch.object(lafter, "mean_cross_entropy", noted):
            final = lafter.adapt(start, model, lambda step: tuple(views[jt.array(steps[step])]
                                                                  for views in (weak, strong)),
                                 reference[second + "lr"], watch=recorder)
        found = found.worst(reference.compare(second, recorder, final, reference[second + "lr"]))
        if set(start) != set(lafter.start_of(model, start["adapter"], 6)):
            found.wrong.append(run + "parameters")
        if not np.array_equal(np.array(told), reference[run + "pseudo_labels"]):
            found.wrong.append(run + "pseudo_labels")
        found.with_logits(lafter.student_logits(as_vars(final), model, held).numpy(),
                          reference[run + "held_logits_adapted"])
        worst = worst.worst(found)
    return worst


def replay_upl(reference: Reference) -> Deviation:
    """The choice, then CoOp's members and the mean of their logits."""
    worst, model = Deviation(), reference.model
    rows, held = (reference.image_rows(reference[name]) for name in ("unlabelled", "held"))
    zero_shot = reference.scale * rows @ towers.text_rows(model, reference["zero_shot_tokens"]).numpy().T
    worst.with_logits(zero_shot, reference["zero_shot_logits"])
    chosen, labels, confidence = upl.confident(zero_shot + reference["offset"], 3)
    if not (np.array_equal(chosen, reference["chosen"]) and np.array_equal(labels, reference["pseudo_labels"])):
        worst.wrong.append("chosen")
        return worst
    worst.with_logits(confidence, reference["confidence"])
    # `order` indexes the chosen rows that batches of 4 take: the last, smaller batch is dropped
    prompts = coop.Prompts(model, reference["tokens"], reference["member0/init/ctx"].shape[0])
    text = []
    for run in reference.runs():
        steps = reference.steps(run)
        rates = cosine_by_epoch(reference.lr(run), len(reference["order"]), len(steps) // len(reference["order"]))
        recorder = Recorder()
        final = coop.train(reference.start(run), prompts, lambda step: jt.array(rows[chosen][steps[step]]),
                           [labels[step] for step in steps], rates, reference.scale, watch=recorder)
        found = reference.compare(run, recorder, final, rates)
        text.append(prompts.rows(jt.array(final["ctx"])).numpy())
        worst = worst.worst(found.with_logits(reference.scale * held @ text[-1].T, reference[run + "logits_after"]))
    return worst.with_logits(reference.scale * held @ np.mean(text, axis=0).T, reference["logits_ensemble"])


def replay_fixmatch(reference: Reference) -> Deviation:
    model = reference.model
    x = (*(reference.image_rows(reference[f"x_{view}"]) for view in ("weak", "strong")), reference["x_labels"])
    u = tuple(reference.image_rows(reference[f"u_{view}"]) for view in ("weak", "strong"))
    held = reference.image_rows(reference["held"])
    others: list[tuple[float, float]] = []  # of each step: the other views' loss, and the share of them that is kept
    steps_x, steps_u = (reference.steps("", reference[name]) for name in ("order_x", "order_u"))
    epochs = len(reference["order_x"])
    rates = np.repeat(cosine(reference.lr(""), epochs), len(steps_x) // epochs)
    threshold, weight = map(float, reference["threshold_weight"])
    thresholds = np.full(len(reference["tokens"]), threshold, np.float32)
    prompts = coop.Prompts(model, reference["tokens"], reference["init/ctx"].shape[0])
    recorder = Recorder()

    def noted(strong, labels, mask):
        others.append((consistency(strong, labels, mask).item(), mask[-len(steps_u[len(others)]):].mean()))
        return consistency(strong, labels, mask)

    consistency = fixmatch.consistency
    with mock.patch.object(fixmatch, "consistency", noted):
        final = fixmatch.train(reference.start(""), prompts, x, u, (steps_x, steps_u), reference.scale,
                               thresholds, weight, rates=rates, watch=recorder)
    found = reference.compare("", recorder, final, rates)
    other, kept = np.array(others).T
    for key, ours in (("part_x", recorder.losses - weight * other), ("part_u", other), ("kept_share_u", kept)):
        if np.abs(ours - reference[key]).max() > 2e-5 * np.abs(reference[key]).max():
            found.wrong.append(key)
    for p, key in ((reference.start(""), "logits_before"), (final, "logits_after")):
        ours = coop.logits(as_vars(p), prompts, jt.array(held), reference.scale).numpy()
        found.with_logits(ours, reference[key])
    return found


def replay_clip_pr(reference: Reference) -> Deviation:
    """Head, tower, head. "gathered" steps after batch 1, and after batches 2 and 3 together."""
    worst, model, weight = Deviation(), reference.model, 10.0
    images, order, prior = jt.array(reference["unlabelled"]), reference["order"], reference["prior"]
    for run in reference.runs():
        model_rows = reference.image_rows(reference["unlabelled"])
        cosines = model_rows @ towers.text_rows(model, reference["tokens"]).numpy().T
        found = Deviation().with_logits(cosines, reference[run + "zero_shot_cosines"])
        labels = (cosines + reference["offset"]).argmax(axis=1)
        if not np.array_equal(labels, reference[run + "pseudo_labels"]):
            found.wrong.append(run + "pseudo_labels")
        rates = reference[run + "lr"]
        per_epoch = len(rates) // len(order)
        batch = order.shape[1] // 3
        memory = 3 if per_epoch == 3 else 1
        groups = [[0], [1], [2]] if per_epoch == 3 else [[0], [1, 2]]
        steps = [np.concatenate([row[b * batch:(b + 1) * batch] for b in group]) for row in order for group in groups]
        start = reference.start(run)
        h = {name: value for name, value in start.items() if not name.startswith("tower.")}
        tower = {}
        objective, recorders, carried = clip_pr.Objective(prior, weight, memory), [], None

        def rows_at(first):
            return lambda step: towers.image_rows(model, images[jt.array(steps[first + step])])

        for epoch in range(3):
            first = epoch * per_epoch
            of = slice(first, first + per_epoch)
            recorder, these = Recorder(), [labels[step] for step in steps[of]]
            if epoch == 1:
                tower, carried = clip_pr.train_tower(h, model, rows_at(first), these, objective, rates[of],
                                                     watch=recorder)
            else:
                with replaced(model, as_vars(tower)):
                    h = clip_pr.train(h, rows_at(first), these, objective, rates[of], carried, watch=recorder)
            recorders.append(recorder)
        everything = Recorder()
        everything.losses = [loss for recorder in recorders for loss in recorder.losses]
        everything.gradients = recorders[0].gradients
        expected = reference[run + "loss"].astype(np.float64)
        found.loss = largest(found.loss, np.max(np.abs(np.array(everything.losses) - expected) / np.abs(expected)))
        for name, value in h.items():
            began = start[name]
            gradient, theirs = everything.gradients[name], reference[f"{run}grad0/{name}"]
            found.gradient = largest(found.gradient, np.abs(gradient - theirs).max() / np.abs(theirs).max())
            moved = np.linalg.norm((reference[f"{run}final/{name}"] - began).astype(np.float64))
            gone = np.linalg.norm((value - reference[f"{run}final/{name}"]).astype(np.float64))
            found.update = largest(found.update, gone / moved)
        with replaced(model, as_vars(tower)):
            held = reference.image_rows(reference["held"])
        found.with_logits(clip_pr.answer(h, held), reference[run + "logits_after"])
        worst = worst.worst(found)
    return worst


def authors_logits(features, support, labels, text, alpha, beta, gamma, range_of):
    """(N, K) as the authors' code has it: sums, and −M scaled to the range of x·F over the rows `range_of`."""
    values = np.eye(len(text), dtype=np.float32)[labels]
    M = tip_x.text_divergence(features, support, text, sus_x.SusX.temperature)
    cosine = matmul(range_of, support.T)
    scaled = (M - M.min()) / (M.max() - M.min()) * (cosine.max() - cosine.min()) + cosine.min()
    return (zero_shot_logits(features, text) + alpha * tip_adapter.cache_logits(features, support, values, beta)
            - gamma * matmul(scaled, values))


def replay_sus_x(reference: Reference) -> Deviation:
    """M and the logits of the authors' code: `gradient` holds M's distance, `logits` that of the logits."""
    found = Deviation()
    support, labels, text = reference["support"], reference["support_labels"], reference["text"]
    alpha, beta, gamma = map(float, reference["alpha_beta_gamma"])
    for queries, key in (("test", "M"), ("val", "M_val")):
        M = tip_x.text_divergence(reference[queries], support, text, sus_x.SusX.temperature)
        found.gradient = largest(found.gradient, np.abs(M - reference[key]).max())
    test, val = reference["test"], reference["val"]
    for rows, key in ((test, "logits_code"), (val, "logits_code_range_of_val")):
        ours = authors_logits(test, support, labels, text, alpha, beta, gamma, range_of=rows)
        found.with_logits(ours, reference[key])
    found.with_logits(authors_logits(test, support, labels, text, alpha, beta, 0.0, range_of=test),
                      reference["logits_tip"])
    return found
