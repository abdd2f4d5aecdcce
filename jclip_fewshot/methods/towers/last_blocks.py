"""LoRA and norms in the last b blocks of the image tower, with a classifier anchored at the text rows.

After CLIP-LoRA (lora.py) and 2SFS (two_stage.py); what lies below the b blocks is frozen, so it is computed once and a
training costs seconds to minutes on a CPU.

    min over A, B, norms, ΔC   CE(s · cos(f, normalise(t + ΔC)), y) + κ KL(zero-shot(x) ‖ tuned(x))

t: text rows, kept as the anchor by weight decay on ΔC and by the safeguards of base.py. Classes without shots take no
part in the softmax. AdamW, cosine by step to 1e-6, float32; a random one of the stored views for each image of a step.
Settings: docs/tuning.md.

S shots · B images a step · L tokens · W width · K classes · D feature width
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.losses import softmax_kl
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.clip.replace import part, replaced
from jclip_fewshot.encoders.base import Depth
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import ALWAYS, Given
from jclip_fewshot.methods.towers.base import CLASSIFIER, TowerMethod, block_flops, steps_of
from jclip_fewshot.methods.towers.lora import LEAST_LR, WEIGHT_DECAY, attached, attention_path, random_start
from jclip_fewshot.methods.towers.towers import blocks_of, norm_names, rows_from
from jclip_fewshot.methods.training import Adam, Arrays, Vars, cosine, descend, mean_cross_entropy
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP


class LastBlocks(TowerMethod):
    """blocks: b. rank: of the updates. epochs, most_steps, batch, lr: of the training. forget: κ."""

    name, title, paper = "last_block", "Last block tuned", "after Zanella and Ben Ayed 2024"
    default = ALWAYS
    blocks, rank, epochs, most_steps, batch, lr, forget = 1, 8, 33, 1000, 32, 2e-3, 0.0
    constants = ("blocks", "rank", "epochs", "most_steps", "batch", "lr", "forget")

    def first(self, model: CLIP) -> int:
        """The lowest block that trains."""
        return max(0, len(blocks_of(model, "visual.")) - self.blocks)

    def depth(self, model: CLIP) -> Depth:
        return self.first(model)

    def _norms(self, model: CLIP) -> list:
        blocks = range(self.first(model), len(blocks_of(model, "visual.")))
        return [*norm_names(model, "visual.", list(blocks)), "visual.ln_post.weight", "visual.ln_post.bias"]

    def flops(self, task: Task, given: Given) -> float:
        activations = given.tower
        length, width = activations.encoder.model.visual.shape_at(0)
        block = block_flops(length, width)
        image = (self.blocks - 1) * block + 4.0 * length * width ** 2 + 20.0 * width ** 2  # the last at one token
        rows = min(self.epochs * len(task), self.most_steps * self.batch)
        return (len(task.folds()) + 1) * 2 * rows * image

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, rng = activations.encoder.model, np.random.default_rng(self.seed)
        first, views = self.first(model), activations.at(self.first(model))
        seen = np.flatnonzero(task.seen)  # classes without shots take no part: training would push them under
        labels, text = np.searchsorted(seen, task.labels), jt.array(task.text[seen])
        norms = self._norms(model)
        blocks = range(first, len(blocks_of(model, "visual.")))
        start = random_start(model, [attention_path("visual.", block) for block in blocks], rng, self.rank)
        start.update({name: part(model, name).float32().numpy() for name in norms})
        start[CLASSIFIER] = np.zeros((len(seen), task.text.shape[1]), np.float32)
        chosen, numbers = steps_of(rng, np.arange(len(kept)), views.count, self.batch, self.epochs)
        chosen = chosen[:self.most_steps]

        def loss(p: Vars, step: int) -> jt.Var:
            rows = chosen[step]
            x = jt.array(views.take(kept[rows], numbers[step]))
            logits = task.scale * product(self._features(model, p, x), unit_var(text + p[CLASSIFIER]))
            total = mean_cross_entropy(logits, labels[rows])
            if self.forget:
                total = total + self.forget * softmax_kl(task.scale * product(rows_from(model, x, first), text), logits)
            return total
        trained = descend(start, loss, Adam(WEIGHT_DECAY), cosine(self.lr, len(chosen), LEAST_LR), stage=stage)
        whole = np.zeros((task.num_classes, task.text.shape[1]), np.float32)
        whole[seen] = trained[CLASSIFIER]
        return {**trained, CLASSIFIER: whole}

    def _features(self, model: CLIP, p: Vars, x: jt.Var) -> jt.Var:
        """Unit rows (B, D) of the blocks' input under the parameters p."""
        with attached(model, p), replaced(model, {name: p[name] for name in self._norms(model)}):
            return rows_from(model, x, self.first(model))
