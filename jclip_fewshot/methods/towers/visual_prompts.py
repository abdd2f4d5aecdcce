"""VPT: learned tokens between class token and patches of the image tower, the visual prompts.

Jia et al., "Visual Prompt Tuning", 2022 (arXiv:2203.12119); shallow as in LaFTer (Mirza et al. 2023).

    shallow   x₀ = [class, P, patches], after ln_pre and without positions: P goes through all blocks
    deep      in front of block b the prompt tokens are replaced by P_b
    min_P     CE(scale · cos(f(x; P), t), y)

Deviations: the classifier is CLIP's text rows, which stay; AdamW at LaFTer's rate with a cosine, ten epochs.
"""

from __future__ import annotations

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.encoders.clip_encoder import ClipEncoder, FunctionEncoder
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.towers.base import TowerMethod, image_flops
from jclip_fewshot.methods.towers.towers import CLIP
from jclip_fewshot.methods.training import Adam, Arrays, Vars, as_vars, cosine, descend, mean_cross_entropy
from jclip_fewshot.task import Fold, Task

WEIGHT_DECAY = 0.01  # LaFTer's
PROMPTS = "prompts"


def random_prompts(rng: np.random.Generator, prompts: int, width: int, blocks: int = 1) -> np.ndarray:
    """P of the first blocks, (blocks, P, W): uniform in ±√(6 / (3·16² + W)), whatever the patch (LaFTer's)."""
    bound = np.sqrt(6 / (3 * 16 ** 2 + width))
    return rng.uniform(-bound, bound, (blocks, prompts, width)).astype(np.float32)


def unprojected(model: CLIP, x: jt.Var, prompts: jt.Var) -> jt.Var:
    """x (B, L, W), the input of block 0, through the tower with prompts (blocks, P, W) in its first blocks: (B, W)."""
    visual, count, last, patches = model.visual, prompts.shape[1], prompts.shape[0] - 1, x[:, 1:]
    for block in range(last + 1):
        if block:
            x = visual.transformer.part(x, block - 1, block)
            patches = x[:, 1 + count:]
        middle = prompts[block].unsqueeze(0).broadcast((x.shape[0], *prompts.shape[1:]))
        x = jt.concat([x[:, :1], middle, patches], dim=1)
    return visual.unprojected(x, last)


class VPT(TowerMethod):
    """prompts: P. deep: prompts of each block. epochs, batch, lr: of the training."""

    name, title, paper = "vpt", "VPT", "Jia et al. 2022"
    default = NEVER
    alphas, own = (1.0,), (PROMPTS,)  # there is no prompt to start from, and so none to interpolate with
    at = 0
    prompts, deep, epochs, batch, lr = 8, True, 10, 32, 5e-4
    constants = ("prompts", "deep", "epochs", "batch", "lr")

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        return 3 * self.epochs * len(task) * image_flops(tower.model, self.prompts)

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        task, model, rng = fit.task, tower.model, np.random.default_rng(self.seed)
        text = jt.array(task.text[task.seen])
        blocks = len(model.visual.transformer.resblocks) if self.deep else 1
        start = {PROMPTS: random_prompts(rng, self.prompts, model.visual.proj.shape[0], blocks)}
        labels, x = self.schedule(fit, tower, rng, self.batch, self.epochs)

        def loss(p: Vars, step: int) -> jt.Var:
            return mean_cross_entropy(task.scale * product(self.rows(model, x(step), p), text), labels[step])
        return descend(start, loss, Adam(WEIGHT_DECAY), cosine(self.lr, len(labels)), stage=stage)

    def rows(self, model: CLIP, x: jt.Var, own: Vars) -> jt.Var:
        return unit_var(jt.matmul(unprojected(model, x, own[PROMPTS]), model.visual.proj))

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        if not self.update_:
            return base
        own = as_vars(self.update_)
        return FunctionEncoder(base, self.name, self.update_[PROMPTS].tobytes(), base.width,
                               lambda images: self.rows(base.model, base.model.visual.embed(images), own))
