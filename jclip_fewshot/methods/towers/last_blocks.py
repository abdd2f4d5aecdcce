"""LoRA and norms in the last b blocks of the image tower, with a classifier anchored at the text rows.

After CLIP-LoRA and 2SFS (full_towers.py); what lies below the b blocks is frozen, and computed once.

    min over A, B, norms, ΔC   CE(s · cos(f, normalise(t + ΔC)), y)

t: text rows, kept as the anchor by weight decay on ΔC and by the safeguards of base.py. Classes without shots take no
part in the softmax. AdamW, cosine by step to 1e-6. Settings: docs/notes/tuning.md.
"""

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import unit_var
from jclip_fewshot.encoders.base import Depth
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import ALWAYS
from jclip_fewshot.methods.towers import towers
from jclip_fewshot.methods.towers.base import TowerMethod, block_flops
from jclip_fewshot.methods.towers.towers import CLASSIFIER, CLIP
from jclip_fewshot.methods.training import Arrays
from jclip_fewshot.task import Fold, Task


class LastBlocks(TowerMethod):
    """blocks: b. rank: of the updates. epochs, most_steps, batch, lr: of the training."""

    name, title, paper = "last_block", "Last block tuned", "after Zanella and Ben Ayed 2024"
    default = ALWAYS
    blocks, rank, epochs, most_steps, batch, lr = 1, 8, 33, 1000, 32, 2e-3
    constants = ("blocks", "rank", "epochs", "most_steps", "batch", "lr")

    def depth(self, model: CLIP) -> Depth:
        return max(0, len(model.visual.transformer.resblocks) - self.blocks)

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        length, width = tower.model.visual.shape_at(0)
        # the last block answers for one token
        image = (self.blocks - 1) * block_flops(length, width) + 4.0 * length * width ** 2 + 20.0 * width ** 2
        return 2 * min(self.epochs * len(task), self.most_steps * self.batch) * image

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        task, model, rng = fit.task, tower.model, np.random.default_rng(self.seed)
        blocks, text = towers.block_names(model, "visual.")[-self.blocks:], task.text[task.seen]
        norms = [*towers.norm_names(blocks), "visual.ln_post.weight", "visual.ln_post.bias"]
        start = {**towers.random_start(model, blocks, rng, self.rank), **towers.values_of(model, norms),
                 CLASSIFIER: np.zeros_like(text)}
        labels, x = self.schedule(fit, tower, rng, self.batch, self.epochs)
        anchor = jt.array(text)
        trained = towers.train(start, model, lambda step: self.rows(model, x(step), {}),
                               lambda p: unit_var(anchor + p[CLASSIFIER]), labels[:self.most_steps], task.scale,
                               self.lr, stage=stage)
        whole = np.zeros_like(task.text)
        whole[task.seen] = trained[CLASSIFIER]
        return {**trained, CLASSIFIER: whole}
