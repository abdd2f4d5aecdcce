"""LaFTer: a classifier from sentences alone, then prompts, norms and classifier on unlabelled images.

Mirza et al., "LaFTer: Label-Free Tuning of Zero-Shot Classifier Using Language and Unlabeled Image Collections",
NeurIPS 2023 (arXiv:2305.18287). Settings as in their code.

    stage 1   min_φ  Σ CE_0.1(φ (e + n), y),   n ~ N(0, 0.1²)          e sentence rows, φ (K, D), no bias, no scale
    stage 2   min_{P, norms, φ}  CE_0.1(φ u(strong(x); P), c(x)),      c(x) = argmax φ₀ f(weak(x))

P: visual prompts between class token and patches. The teacher is φ₀, as stage 1 left it, on unit rows of the same tower
without prompts: its norms move with the student's, whose rows u are not normalised. AdamW, constant rate.

Deviations: the last epoch counts, where the authors report the best one on the test set. For a dozen images a class: 10
epochs and 16 prompts instead of 50, 400 steps of stage 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, product, unit_rows
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.methods.base import Given, Unlabelled
from jclip_fewshot.methods.towers import visual_prompts
from jclip_fewshot.methods.towers.base import image_flops
from jclip_fewshot.methods.towers.towers import CLIP, block_names, image_rows, in_batches, norm_names, values_of
from jclip_fewshot.methods.training import Adam, Arrays, Vars, as_vars, batches, descend, mean_cross_entropy
from jclip_fewshot.methods.unlabelled.base import LabelFree, LabelFreeByImages, pixels_of, scale_to, tensors_of
from jclip_fewshot.methods.unlabelled.views import strong_views
from jclip_fewshot.task import Task, class_sums

SMOOTHING, NOISE, WEIGHT_DECAY = 0.1, 0.1, 0.01  # the authors'
ADAPTER, PROMPTS = "adapter", "prompt_embeddings"


def train_text(start: np.ndarray, rows: np.ndarray, labels: np.ndarray, noise: Callable[[int], np.ndarray],
               rates: Sequence[float], **told: Any) -> np.ndarray:
    """Stage 1: φ (K, D) from `start`. rows (E, D): the sentences'; labels (E,): whose they are; noise(step): (E, D)."""
    def loss(p: Vars, step: int) -> jt.Var:
        moved = jt.array((rows + noise(step)).astype(np.float32))
        return mean_cross_entropy(product(moved, p[ADAPTER]), labels, SMOOTHING)
    return descend({ADAPTER: start}, loss, Adam(WEIGHT_DECAY), rates, **told)[ADAPTER]


def start_of(model: CLIP, adapter: np.ndarray, prompts: int, seed: int = 0) -> Arrays:
    """Stage 2's parameters before training: every norm of the image tower among them."""
    before, behind = ([f"visual.{norm}.{kind}" for kind in ("weight", "bias")] for norm in ("ln_pre", "ln_post"))
    norms = before + norm_names(block_names(model, "visual.")) + behind
    drawn = visual_prompts.random_prompts(np.random.default_rng(seed), prompts, model.visual.proj.shape[0])
    return {ADAPTER: adapter, PROMPTS: drawn, **values_of(model, norms)}


def student_logits(p: Vars, model: CLIP, images: jt.Var) -> jt.Var:
    """φ u(x; P) (B, K), with the norms of `p` in place."""
    with replaced(model, tensors_of(p)):
        rows = visual_prompts.unprojected(model, model.visual.embed(images), p[PROMPTS])
        return product(jt.matmul(rows, model.visual.proj), p[ADAPTER])


def adapt(start: Arrays, model: CLIP, views: Callable[[int], tuple[jt.Var, jt.Var]], rates: Sequence[float],
          **told: Any) -> Arrays:
    """Stage 2. views(step): weak and strong views (B, 3, R, R) of the same images."""
    teacher = jt.array(start[ADAPTER])

    def loss(p: Vars, step: int) -> jt.Var:
        weak, strong = views(step)
        with replaced(model, tensors_of(p)):
            labels = product(image_rows(model, weak), teacher).numpy().argmax(axis=1)
        return mean_cross_entropy(student_logits(p, model, strong), labels, SMOOTHING)
    return descend(start, loss, Adam(WEIGHT_DECAY, decays=lambda name: "bias" not in name), rates, **told)


class LafterText(LabelFree):
    """Stage 1 alone: a classifier trained on the sentences, brought to CLIP's scale on the unlabelled images."""

    name, title, paper = "lafter_text", "LaFTer, sentences", "Mirza et al. 2023"
    trains = True
    text_steps, lr = 400, 5e-4

    def text_classifier(self, task: Task, unlabelled: Unlabelled) -> np.ndarray:
        """Stage 1 on what is said of the classes: φ (K, D), from the class means; the authors start at random."""
        rows = np.concatenate(unlabelled.sentences)
        labels = np.repeat(np.arange(task.num_classes), [len(one) for one in unlabelled.sentences])

        def noise(step: int) -> np.ndarray:
            return NOISE * np.random.default_rng([self.seed, step]).standard_normal(rows.shape, np.float32)
        return train_text(unit_rows(class_sums(rows, labels, task.num_classes)), rows, labels, noise,
                          [self.lr] * self.text_steps, stage="lafter, sentences")

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        adapter = self.text_classifier(task, unlabelled)
        spread = scale_to(matmul(unlabelled.rows, adapter.T), task.zero_shot(unlabelled.rows))
        return {"adapter": adapter, "spread": spread}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.learned_["spread"] * features, self.learned_["adapter"].T)


class Lafter(LabelFreeByImages, LafterText):
    """Both stages. epochs, batch: of stage 2. prompts: P."""

    name, title = "lafter", "LaFTer"
    epochs, batch, prompts = 10, 50, 16

    def flops(self, task: Task, given: Given) -> float:
        # weak images forward, strong ones there and back
        return 4 * self.epochs * given.images * image_flops(given.tower.model, self.prompts)

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        encoder, pixels, rng = unlabelled.encoder, pixels_of(unlabelled, self.name), np.random.default_rng(self.seed)
        adapter = self.text_classifier(task, unlabelled)
        steps = batches(np.stack([rng.permutation(len(pixels)) for _ in range(self.epochs)]), self.batch)

        def views(step: int) -> tuple[jt.Var, jt.Var]:
            weak = pixels[steps[step]]
            strong = strong_views(weak, np.random.default_rng([self.seed, step]))
            return encoder.prepared(weak), encoder.prepared(strong)
        learned = adapt(start_of(encoder.model, adapter, self.prompts, self.seed), encoder.model, views,
                        [self.lr] * len(steps), stage="lafter, images")
        p = as_vars(learned)
        found = in_batches(lambda some: student_logits(p, encoder.model, encoder.prepared(some)).numpy(), pixels)
        return {**learned, "spread": scale_to(found, task.zero_shot(unlabelled.rows))}

    def ask(self, model: CLIP, p: Vars, images: jt.Var) -> jt.Var:
        return p["spread"] * student_logits(p, model, images)
