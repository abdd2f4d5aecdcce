"""LP++. Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024
(https://arxiv.org/abs/2404.02285), equations 4 to 12.

    logits_c = w_c·x + a_c (x·t_c),   loss = mean cross-entropy of the shots, full batch

Symbols: w_c (D,) visual prototype, started at the class's mean shot; a_c blending weight of the text, started at one
value for all, 250 · mean over classes of the class's mean own-text cosine (250/shots times the class sums); step
sizes from block Lipschitz bounds: lr_W = 4 S / λmax(FᵀF), lr_a = S / (4 max_c Σ_s (f_s·t_c)²); gradient descent with
momentum 0.9 on both blocks, 300 epochs, the epoch chosen on held-out shots.

Deviations: the folds train in step with the fit on all shots and stop it when their held-out soft top-1 (`trained`)
has not risen for `patience` epochs; a class without shots takes no part (`base.keep_unseen` puts it back).
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import matmul, product, var
from jclip_fewshot.methods.base import NEVER, Method, keep_unseen
from jclip_fewshot.methods.rows.trained import fits_of, scores
from jclip_fewshot.methods.training import SGD, Vars, as_vars, descend
from jclip_fewshot.task import Task, class_means

TEXT_SCALE = 250.0


def start(task: Task) -> tuple[np.ndarray, np.ndarray, float, float]:
    """W (K, D), a (1, K), lr_W, lr_a of the seen classes."""
    text_cosines = matmul(task.features, task.text.T)  # (S, K)
    own = np.bincount(task.labels, weights=text_cosines[np.arange(len(task)), task.labels],
                      minlength=task.num_classes)
    blend = TEXT_SCALE * (own / np.maximum(task.counts, 1))[task.seen].mean()
    top = np.linalg.eigvalsh(matmul(task.features.T, task.features).astype(np.float64))[-1]
    return (class_means(task), np.full((1, task.num_classes), blend, np.float32), 4 * len(task) / float(top),
            len(task) / (4 * float((text_cosines.astype(np.float64) ** 2).sum(axis=0).max())))


def loss_of(W: jt.Var, a: jt.Var, x: jt.Var, text_cosines: jt.Var, labels: jt.Var,
            class_mask: jt.Var) -> tuple[jt.Var, jt.Var]:
    """(loss, logits (S, K)) of W (K, D), a (1, K); class_mask (1, K) is −1e9 at classes without shots."""
    logits = product(x, W) + a * text_cosines + class_mask
    return cross_entropy(logits, labels), logits


class LPPlusPlus(Method):
    """epochs: at most. momentum: of both blocks. patience: epochs without a better held-out score before
    stopping. every: epochs between two scores."""

    name, title, paper = "lp_plus_plus", "LP++", "Huang et al. 2024"
    trains = True
    default = NEVER
    state_names = ("weight_", "blend_")
    epochs, momentum, patience, every = 300, 0.9, 40, 5

    def _fit(self, task: Task) -> None:
        fits, text, class_mask = fits_of(task), var(task.text), var(-1e9 * ~task.seen[None])
        data, first, rates = [], {}, {}
        for m, fit in enumerate(fits):
            first[f"{m}/W"], first[f"{m}/a"], rates[f"{m}/W"], rates[f"{m}/a"] = start(fit.task)
            x = var(fit.task.features)
            data.append((x, product(x, text), jt.array(fit.task.labels.astype(np.int32)), class_mask))
        asked = [(var(task.features[fit.left_out]), task.zero_shot(task.features[fit.left_out])) for fit in fits[:-1]]
        held = [(x, product(x, text), zero_shot) for x, zero_shot in asked]
        truth = np.concatenate([task.labels[fit.left_out] for fit in fits])
        last = f"{len(fits) - 1}/"
        said: list[jt.Var] = []  # of the fit on all shots: a step's loss, and which rows it has right

        def held_out(values: Vars) -> np.ndarray:
            return np.concatenate([
                keep_unseen((product(x, values[f"{m}/W"]) + values[f"{m}/a"] * cosines).numpy(), zero_shot, task.seen)
                for m, (x, cosines, zero_shot) in enumerate(held)]) if held else np.zeros((0, task.num_classes))

        def loss(values: Vars, step: int) -> jt.Var:
            both = [loss_of(values[f"{m}/W"], values[f"{m}/a"], *one) for m, one in enumerate(data)]
            said[:] = [both[-1][0].detach(), (jt.argmax(both[-1][1], 1)[0] == data[-1][2]).detach()]
            return sum(one for one, _ in both)

        kept, epoch = as_vars(first), 0
        answers = held_out(kept)
        self.history_ = [{"epoch": 0, **(scores(answers, truth) if held else {})}]

        def watch(step: int, objective: jt.Var, gradients: Vars, values: Vars) -> bool:
            nonlocal kept, epoch, answers
            done = step + 1
            if done % self.every and done < self.epochs:
                return False
            found = held_out(values)
            top1 = float(100 * said[1].numpy().mean())
            self.history_.append({"epoch": done, "loss": said[0].item(), "train_top1": top1,
                                  **(scores(found, truth) if held else {})})
            before = [one["held_out_soft_top1"] for one in self.history_[:-1]] if held else []
            if not held or self.history_[-1]["held_out_soft_top1"] > max(before):
                kept, epoch, answers = values, done, found
            return done - epoch >= self.patience
        descend(first, loss, SGD(self.momentum, lr_factors=rates), [1.0] * self.epochs, watch, self.name)
        self.weight_, self.blend_ = kept[last + "W"].numpy(), kept[last + "a"].numpy()
        self.fold_logits_ = task.zero_shot(task.features)
        self.settings_ = {"epoch": epoch, "chosen_by": "held-out soft top-1" if held else "fixed"}
        if held:
            self.fold_logits_[np.concatenate([fit.left_out for fit in fits])] = answers
            self.settings_.update(scores(answers, truth))

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(features, self.weight_.T) + self.blend_ * matmul(features, self.text_.T)
