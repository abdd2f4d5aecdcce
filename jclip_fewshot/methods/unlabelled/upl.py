"""UPL: CoOp on the images of each class that zero-shot is most confident about; no label takes part.

Huang et al., "Unsupervised Prompt Learning for Vision-Language Models", 2022 (arXiv:2204.03649).

    of each class k the n images with the largest max softmax among those whose argmax is k
    CoOp on them from different starts; logits are averaged

A class may get fewer than n, or none. Averaging the logits is averaging the text rows: one matrix (K, D) is kept.
Deviations, for a dozen images a class: n = 4 instead of 16, 4 starts of 4 vectors instead of 16 of 16, full batches.
"""

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import matmul, softmax
from jclip_fewshot.methods.base import TEXT, TOWER, UNLABELLED, Unlabelled
from jclip_fewshot.methods.towers import coop
from jclip_fewshot.methods.training import Arrays, cosine_by_epoch
from jclip_fewshot.methods.unlabelled.base import LabelFree
from jclip_fewshot.task import Task


def confident(logits: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zero-shot logits (N, K) -> (rows, pseudo-labels, confidences) of the chosen, in the order of the rows."""
    probs = softmax(logits.astype(np.float64))
    labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    rows = np.sort(np.concatenate([order[labels[order] == k][:per_class] for k in range(logits.shape[1])]))
    return rows, labels[rows], confidence[rows]


class Upl(LabelFree):
    """per_class: n, images a class. starts, epochs, lr: of CoOp's trainings. context: its vectors."""

    name, title, paper = "upl", "UPL", "Huang et al. 2022"
    needs = frozenset({TEXT, UNLABELLED, TOWER})
    trains = True
    per_class, starts, context, epochs, lr = 4, 4, 4, 50, coop.LR

    def learn(self, task: Task, unlabelled: Unlabelled) -> Arrays:
        encoder = unlabelled.encoder
        prompts = coop.prompts_for(encoder, unlabelled.names, self.context)
        chosen, labels, _ = confident(task.zero_shot(unlabelled.rows), self.per_class)
        rows = unlabelled.rows[chosen]

        def text(number: int) -> np.ndarray:
            rng = np.random.default_rng([self.seed, number])
            steps = [rng.permutation(len(chosen)) for _ in range(self.epochs)]
            trained = coop.train(coop.random_context(rng, self.context, encoder.model), prompts,
                                 lambda step: jt.array(rows[steps[step]]), [labels[step] for step in steps],
                                 cosine_by_epoch(self.lr, self.epochs, 1), task.scale,
                                 stage=f"upl {number + 1}/{self.starts}")
            return prompts.rows(jt.array(trained["ctx"])).numpy()
        return {"text": np.mean([text(number) for number in range(self.starts)], axis=0)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return matmul(self.scale_ * features, self.learned_["text"].T)
