"""Vicinal: a cosine classifier that starts at the text rows and is trained in the shots' vicinity; the project's own.

After vicinal risk minimisation (Chapelle et al., NIPS 2000) with CLAP's text anchor (Silva-Rodríguez et al., CVPR 2024)
and a linear map that all classes share.

    logits = 100 x w_cᵀ / ‖w_c‖,   w_c = t_c + t_c M + δ_c
    loss   = mean_s CE(logits(x̃_s), y_s) + λ/K Σ_c ‖δ_c‖² + λ_M ‖M‖²
    x̃_s    = unit(f_s ± r + σ ε / √D)

r: what another shot of the same domain differs by from its class's mean, drawn in every step with a random sign. ε:
standard normal. M (D, D): learned by all shots. δ_c: what the shots say about class c alone. λ: how strongly a class is
held to its text row. All L values of λ are trained, with the same draws; for each domain they are averaged with weights
softmax_λ(-(held-out log-loss of the domain's shots, in nats, summed)). Only classes with a shot take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import label_losses
from jclip_fewshot.backend.numerics import log_softmax, matmul, product, softmax, unit_rows, unit_var
from jclip_fewshot.methods.base import DOMAIN_SHOTS, Method, held_out_scores
from jclip_fewshot.methods.rows.trained import fits_of, residuals
from jclip_fewshot.methods.training import Adam, Vars, as_vars, cosine, descend
from jclip_fewshot.task import Fold, Task

FIXED_LAMBDA = 100.0  # where nothing can be left out
NOISE_ROWS = 4  # of ε kept, a shot
MAP_RATE = 0.1  # of the learning rate: each entry of M moves all classes


def vicinity(task: Task, residual: float, sigma: float, seed: int) -> Callable[[], np.ndarray]:
    """Return a function that draws x̃ (S, D), other rows at each call."""
    rng, spread, (S, D) = np.random.default_rng(seed), residuals(task), task.features.shape
    # drawn once: a step takes its rows in another order and with other signs
    noise = np.float32(sigma) / np.float32(np.sqrt(D)) * rng.standard_normal((NOISE_ROWS * S, D), np.float32)
    domain = task.domains[task.labels]
    groups = [(domain == d, np.flatnonzero((domain == d) & task.can_be_left_out)) for d in np.unique(domain)]

    def signs(count: int) -> np.ndarray:
        return rng.choice(np.array([-1, 1], np.float32), count)[:, None]

    def draw() -> np.ndarray:
        x = task.features.copy()
        for rows, lenders in groups:
            if residual and len(lenders):
                sign, lent = signs(rows.sum()), spread[rng.choice(lenders, rows.sum())]
                x[rows] += np.float32(residual) * sign * lent
        if sigma:
            x += signs(S) * noise[rng.permutation(len(noise))[:S]]
        return unit_rows(x)
    return draw


class Vicinal(Method):
    """lambdas: λ, weighed by held-out log-loss. map_lambda: λ_M. residual: length of r against what was seen. sigma:
    length of the noise against a feature row. epochs, lr: full-batch Adam, cosine schedule."""

    name, title, paper = "vicinal", "Vicinal", "ours, after Chapelle et al. 2000"
    trains = True
    state_names = ("W_",)
    lambdas: Sequence[float] = (10.0, 30.0, 100.0)
    map_lambda, residual, sigma, epochs, lr = 0.1, 1.0, 0.5, 40, 3e-3

    def _fit(self, task: Task) -> None:
        columns, labels = task.seen_labels()
        inner = Task(task.features, labels, task.text[columns], task.domains[columns], task.scale)
        fits, lambdas = fits_of(inner), self.lambdas
        if len(fits) == 1:
            lambdas = (min(lambdas, key=lambda value: abs(np.log(value / FIXED_LAMBDA))),)
        W = [self._train(fit, lambdas, self.seed + j, f"{self.name} {j + 1}/{len(fits)}")
             for j, fit in enumerate(fits)]  # each (L, K, D)
        weights = self._weights(fits[:-1], W, inner)
        # the mean over λ of each class's rows: so are the logits averaged
        mixed = [np.einsum("lkd,kl->kd", w, weights).astype(np.float32) for w in W]
        self.W_ = task.text.copy()
        self.W_[columns] = mixed[-1]

        self.fold_logits_ = task.zero_shot(task.features)
        for fit, w in zip(fits[:-1], mixed):
            self.fold_logits_[np.ix_(fit.left_out, columns)] = matmul(self.scale_ * inner.features[fit.left_out], w.T)
        chosen = {int(d): [round(float(v), 3) for v in weights[inner.domains == d][0]]
                  for d in np.unique(inner.domains)}
        self.settings_ = {"lambdas": list(lambdas), "weights": chosen if len(chosen) > 1 else chosen.popitem()[1],
                          "map_lambda": self.map_lambda, "residual": self.residual, "sigma": self.sigma,
                          "chosen_by": "fixed: one shot a class leaves nothing to leave out"}
        rows = np.concatenate([fit.left_out for fit in fits])
        if len(rows):
            self.settings_.update(held_out_scores(self.fold_logits_[np.ix_(rows, columns)], inner.labels[rows]),
                                  chosen_by="leave-one-shot-out log-loss")

    def _weights(self, folds: Sequence[Fold], W: Sequence[np.ndarray], task: Task) -> np.ndarray:
        """Each class's weights of the λ, (K, L), by its domain's held-out log-loss."""
        weights = np.full((task.num_classes, len(W[0])), 1 / len(W[0]), np.float32)
        if not folds or len(W[0]) == 1:
            return weights
        log_probs = log_softmax(np.concatenate(
            [np.stack([matmul(self.scale_ * task.features[fold.left_out], w.T) for w in of_fit])
             for fold, of_fit in zip(folds, W)], axis=1))  # (L, held out, K)
        labels = task.labels[np.concatenate([fold.left_out for fold in folds])]
        losses = -log_probs[:, np.arange(len(labels)), labels]  # (L, held out)
        for d in np.unique(task.domains):
            own = losses[:, task.domains[labels] == d]
            summed = (own if own.shape[1] >= DOMAIN_SHOTS else losses).sum(axis=1, dtype=float)
            weights[task.domains == d] = softmax(-summed)
        return weights

    def _train(self, fit: Fold, lambdas: Sequence[float], seed: int, stage: str) -> np.ndarray:
        """Unit rows (L, K, D) of one fit under every λ."""
        task = fit.task
        (K, D), L = task.text.shape, len(lambdas)
        draw, text = vicinity(task, self.residual, self.sigma, seed), jt.array(task.text)
        at_every_lambda = jt.array(np.repeat(task.labels, L).astype(np.int32))  # (S L,)
        anchor = jt.array(np.asarray(lambdas, np.float32)).reshape(L, 1, 1) / K
        maps = [f"map {number}" for number in range(L)]
        said: list[jt.Var] = []  # a step's loss without its penalties, and its hits

        def rows(p: Vars) -> jt.Var:
            return unit_var(p["delta"] + jt.stack([text + jt.matmul(text, p[name]) for name in maps]))

        def loss(p: Vars, step: int) -> jt.Var:
            cosines = product(jt.array(draw()), rows(p).reshape(L * K, D))
            own = label_losses(cosines.reshape(len(task) * L, K), at_every_lambda, self.scale_)
            right = cosines.detach().reshape(-1, K).argmax(1)[0] == at_every_lambda
            said[:] = [own.mean().detach(), right.detach()]
            total = own.sum() / float(len(task)) + (anchor * p["delta"] * p["delta"]).sum()
            for name in maps:
                total = total + self.map_lambda * (p[name] * p[name]).sum()
            return total

        def watch(step: int, objective: jt.Var, gradients: Vars, values: Vars) -> None:
            if not len(fit.left_out):  # the fit on all shots
                self.history_.append({"epoch": step + 1, "loss": said[0].item(),
                                      "train_top1": float(100 * said[1].numpy().mean())})
        start = {"delta": np.zeros((L, K, D), np.float32), **{name: np.zeros((D, D), np.float32) for name in maps}}
        optimiser = Adam(lr_factors=dict.fromkeys(maps, MAP_RATE), betas=(0.9, 0.99))
        trained = descend(start, loss, optimiser, cosine(self.lr, self.epochs), watch, stage)
        return rows(as_vars(trained)).numpy()

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.scale_ * features, self.W_.T)
