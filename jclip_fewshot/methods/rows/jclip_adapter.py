"""JCLIP-Adapter: residual bottleneck adapters on both sides of CLIP, images and text; the project's own method.

    f* = α A_v(f) + (1 − α) f,   t* = β A_t(t) + (1 − β) t,   both renormalised,   p = softmax(f* t*ᵀ / τ)
    A(z) = ReLU(z W₁ + b₁) W₂

Symbols: f image row (D,), t_c text row of class c; α, β residual ratios; τ temperature; W₁ (D, 2r), W₂ (2r, D).

Deviations from the contest solution, A(z) = ReLU(ReLU(z W₁) W₂) with W₁ and W₂ random and trained for 20 epochs, and
α = β = 0.2 (why: docs/methods.md): W₂ starts at zero and has no ReLU after it. W₁ is fixed, the whitening [P, −P] of
its input, P = (eigenvectors) / sqrt(eigenvalue + shrinkage). A_t sees [t_c; mean shot of c − mean of those means]; a
class without a shot shows the mean. Borrowed residuals (`trained`), and a pull towards zero-shot, κ KL(zero-shot ‖ p).
α, β in answering are chosen on held-out shots; β not above its value in training.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import softmax_kl
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.methods.rows.trained import Arrays, TrainedMethod, Vars
from jclip_fewshot.task import Task, class_means


def whitening(rows: np.ndarray, rank: int, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and P (D, r): (rows − mean) P has decorrelated columns. shrinkage: added, in mean eigenvalues."""
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean
    wide = centred.shape[0] < centred.shape[1]  # then the small Gram matrix has the same eigenvalues
    values, vectors = np.linalg.eigh((centred @ centred.T if wide else centred.T @ centred) / len(rows))
    mean_value = max(values.sum() / rows.shape[1], 1e-12)
    largest = np.argsort(values)[::-1][:max(1, min(rank, len(rows) - 1, rows.shape[1]))]
    values, vectors = np.maximum(values[largest], 0), vectors[:, largest]
    if wide:
        vectors = centred.T @ vectors / np.sqrt(np.maximum(values * len(rows), 1e-12))
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(largest))] < 0, -1, 1)
    return mean.astype(np.float32), (vectors / np.sqrt((values + shrinkage * mean_value) * len(largest))
                                     ).astype(np.float32)


class JclipAdapter(TrainedMethod):
    """alpha, beta: residual ratios in training. tau: temperature. rank: r, shrinkage: of the whitening, (image, text).
    anchor: κ, weight of the pull to zero-shot."""

    name, title, paper = "jclip_adapter", "JCLIP-Adapter", "the contest solution that this project grew from"
    augment, alpha, beta, tau, rank = 1.25, 0.1, 0.2, 0.01, (256, 512)
    anchor, shrinkage = 0.2, (0.1, 0.1)
    ratios = {"alpha": (0.0, 0.05, 0.1, 0.15), "beta": (0.1, 0.15, 0.2)}

    def start(self, task: Task, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        text, width = task.text, task.text.shape[1]
        constants = {"text": text, **{name: np.array([getattr(self, name)], np.float32)
                                      for name in ("alpha", "beta", "tau")}}
        means = class_means(task)
        described = np.concatenate([text, means - means[task.seen].mean(axis=0)], axis=1)
        described[~task.seen, width:] = 0
        layers = []
        for rows, rank, shrinkage in zip((task.features, described), self.rank, self.shrinkage):
            mean, whiten = whitening(rows, rank, shrinkage)
            into = np.concatenate([whiten, -whiten], axis=1)
            layers.append((into, -(mean @ into)[None]))
        (image_in, image_shift), (text_in, text_shift) = layers
        codes = np.maximum(described @ text_in + text_shift, 0)
        return {**constants, "image_in": image_in, "image_shift": image_shift, "codes": codes}, {
            "image_out": np.zeros((image_in.shape[1], width)), "text_out": np.zeros((codes.shape[1], width))}

    def forward(self, p: Vars, x: jt.Var) -> jt.Var:
        alpha, beta = p["alpha"], p["beta"]
        moved = jt.matmul(jt.nn.relu(jt.matmul(x, p["image_in"]) + p["image_shift"]), p["image_out"])
        named = jt.matmul(p["codes"], p["text_out"])
        f = unit_var(alpha * moved + (1 - alpha) * x)  # (B, D)
        t = unit_var(beta * named + (1 - beta) * p["text"])  # (K, D)
        return product(f, t) / p["tau"]

    def penalty(self, p: Vars, x: jt.Var, logits: jt.Var, rng: np.random.Generator) -> jt.Var | float:
        return self.anchor * softmax_kl(product(x, p["text"]) / p["tau"], logits)
