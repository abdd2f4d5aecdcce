"""LP++. Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024
(https://arxiv.org/abs/2404.02285), equations 4 to 12.

    logits_c = w_c·x + a_c (x·t_c),   loss = mean cross-entropy of the shots, full batch

Symbols: w_c (D,) visual prototype, started at the class's mean shot; a_c blending weight of the text, started at one
value for all, 250 · mean over classes of the class's mean own-text cosine (250/shots times the class sums); step
sizes from block Lipschitz bounds: lr_W = 4 S / λmax(FᵀF), lr_a = S / (4 max_c Σ_s (f_s·t_c)²); gradient descent with
momentum 0.9 on both blocks, 300 epochs, the epoch chosen on held-out shots.

Deviations: the folds train in step with the fit on all shots and stop it when their held-out soft top-1 (`training`)
has not risen for `patience` epochs; a class without shots takes no part (`base.keep_unseen` puts it back).
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import cross_entropy
from jclip_fewshot.backend.numerics import matmul, product, var
from jclip_fewshot.console import progress
from jclip_fewshot.methods.base import NEVER, Method, keep_unseen
from jclip_fewshot.methods.rows.training import fits_of, scores
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


def gradients(W: jt.Var, a: jt.Var, x: jt.Var, text_cosines: jt.Var, labels: jt.Var,
              closed: jt.Var) -> tuple[jt.Var, jt.Var, jt.Var, jt.Var]:
    """(loss, ∂W (K, D), ∂a (1, K), logits (S, K)); closed (1, K) is −1e9 at classes without shots."""
    logits = product(x, W) + a * text_cosines + closed
    loss = cross_entropy(logits, labels)
    return (loss, *jt.grad(loss, [W, a]), logits)


class LPPlusPlus(Method):
    """epochs: at most. momentum: of both blocks. patience: epochs without a better held-out score before
    stopping. every: epochs between two scores."""

    name, title, paper = "lp_plus_plus", "LP++", "Huang et al. 2024"
    trains = True
    default = NEVER
    state_names = ("weight_", "blend_")

    def __init__(self, epochs: int = 300, momentum: float = 0.9, patience: int = 40, every: int = 5):
        self.epochs, self.momentum, self.patience, self.every = epochs, momentum, patience, every

    def _fit(self, task: Task) -> None:
        fits = fits_of(task)
        closed = var(-1e9 * ~task.seen[None])
        text = var(task.text)
        data, state, rates = [], [], []
        for fit in fits:
            W, a, rate_w, rate_a = start(fit.task)
            x = var(fit.task.features)
            labels = jt.array(fit.task.labels.astype(np.int32))
            data.append((x, product(x, text), labels, closed))
            state.append([var(W), var(a), var(np.zeros_like(W)), var(np.zeros_like(a))])
            rates.append((rate_w, rate_a))
        held = [(fit, var(task.features[fit.left_out]), task.zero_shot(task.features[fit.left_out]))
                for fit in fits[:-1]]
        held = [(fit, x, product(x, text), zero_shot) for fit, x, zero_shot in held]
        truth = np.concatenate([task.labels[fit.left_out] for fit in fits])

        def score() -> tuple[dict, np.ndarray]:
            if not held:
                return {}, np.zeros((0, task.num_classes), np.float32)
            logits = np.concatenate([
                keep_unseen((product(x, state[m][0]) + state[m][1] * cosines).numpy(), zero_shot, task.seen)
                for m, (fit, x, cosines, zero_shot) in enumerate(held)])
            return scores(logits, truth), logits

        now, answers = score()
        self.history_ = [{"epoch": 0, **now}]
        kept, epoch = (state[-1][0], state[-1][1], answers), 0
        for e in progress(range(1, self.epochs + 1), stage=self.name, unit="epochs"):
            for m, (rate_w, rate_a) in enumerate(rates):
                W, a, moved_w, moved_a = state[m]
                loss, dw, da, logits = gradients(W, a, *data[m])
                moved_w, moved_a = self.momentum * moved_w + dw, self.momentum * moved_a + da
                # Detached, or Jittor keeps the graph of every epoch: gigabytes on a large suite.
                state[m] = [v.detach() for v in (W - rate_w * moved_w, a - rate_a * moved_a, moved_w, moved_a)]
            jt.sync([v for four in state for v in four] + [loss])
            if e % self.every and e < self.epochs:
                continue
            hits = jt.argmax(logits.detach(), 1)[0] == labels
            now, answers = score()
            self.history_.append({"epoch": e, "loss": float(loss.item()),
                                  "train_top1": float(100 * hits.numpy().mean()), **now})
            if not held or now["held_out_soft_top1"] > max(h["held_out_soft_top1"] for h in self.history_[:-1]):
                kept, epoch = (state[-1][0], state[-1][1], answers), e
            elif e - epoch >= self.patience:
                break
        self.weight_, self.blend_, answers = kept[0].numpy(), kept[1].numpy(), kept[2]
        self._trained_held_out = task.zero_shot(task.features)
        self.settings_ = {"epoch": epoch, "chosen_by": "held-out soft top-1" if held else "fixed"}
        if held:
            self._trained_held_out[np.concatenate([fit.left_out for fit in fits])] = answers
            self.settings_.update(scores(answers, truth))
        jt.sync_all()
        jt.gc()

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(features, self.weight_.T) + self.blend_ * matmul(features, self.text_.T)

    def _held_out_logits(self, task: Task) -> np.ndarray:
        return self._trained_held_out
