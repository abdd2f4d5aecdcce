"""Zero-shot CLIP. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021 (https://arxiv.org/abs/2103.00020), section 3.1.4: logits = 100 x tᵀ, t the class's text row.
"""

import numpy as np

from jclip_fewshot.methods.base import TEXT, Method
from jclip_fewshot.task import Task, zero_shot_logits


class ZeroShot(Method):
    """Duplicate text rows tie, and ties go to the lower class number."""

    name, title, paper = "zero_shot", "Zero-shot", "Radford et al. 2021"
    needs = frozenset({TEXT})
    checks = True

    def _fit(self, task: Task) -> None:
        self.fold_logits_ = task.zero_shot(task.features)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return zero_shot_logits(features, self.text_, self.scale_)
