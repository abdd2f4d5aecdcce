"""Visual prompts: learned tokens between class token and patches of the image tower.

Jia et al., "Visual Prompt Tuning", 2022 (arXiv:2203.12119); shallow as in LaFTer (Mirza et al. 2023).

    shallow   x₀ = [class, P, patches], after ln_pre and without positions: P goes through all blocks
    deep      in front of block b the prompt tokens are replaced by P_b

B images · P prompts · L tokens · W width · D feature width
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP


def random_prompts(rng: np.random.Generator, prompts: int, width: int, blocks: int = 0) -> np.ndarray:
    """(P, W), or (blocks, P, W) for deep prompts: uniform in ±√(6 / (3·16² + W)), whatever the patch (LaFTer's)."""
    bound = np.sqrt(6 / (3 * 16 ** 2 + width))
    shape = (blocks, prompts, width) if blocks else (prompts, width)
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def unprojected(model: CLIP, images: jt.Var, prompts: jt.Var) -> jt.Var:
    """Images (B, 3, R, R) through the image tower with prompts (P, W) or, deep, (blocks, P, W): (B, W)."""
    return unprojected_from(model, model.visual.embed(images), prompts)


def unprojected_from(model: CLIP, x: jt.Var, prompts: jt.Var) -> jt.Var:
    """As `unprojected`, from x (B, L, W), the input of block 0."""
    visual = model.visual
    if len(prompts.shape) == 2:
        return visual.unprojected(_with(x[:, :1], prompts, x[:, 1:]))
    count, last = prompts.shape[1], prompts.shape[0] - 1
    x = _with(x[:, :1], prompts[0], x[:, 1:])
    for block in range(last):
        x = visual.transformer.part(x, block, block + 1)
        x = _with(x[:, :1], prompts[block + 1], x[:, 1 + count:])
    return visual.unprojected(x, last)


def features(model: CLIP, images: jt.Var, prompts: jt.Var) -> jt.Var:
    """(B, 3, R, R) -> (B, D), not normalised."""
    return jt.matmul(unprojected(model, images, prompts), model.visual.proj)


def _with(first: jt.Var, prompts: jt.Var, rest: jt.Var) -> jt.Var:
    middle = prompts.unsqueeze(0).broadcast((first.shape[0],) + tuple(prompts.shape))
    return jt.concat([first, middle, rest], dim=1)
