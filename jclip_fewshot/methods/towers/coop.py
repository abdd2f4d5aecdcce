"""CoOp and CoCoOp: learned context vectors in front of a class's name.

CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", 2022 (arXiv:2109.01134). CoCoOp: Zhou et al.,
"Conditional Prompt Learning for Vision-Language Models", 2022 (arXiv:2203.05557). Settings as in their code.

    p(y = i | x) = softmax_i(exp(s) cos(g(prompt_i), f)),   prompt_i = [V]_1 … [V]_M [CLASS_i] .
    CoCoOp:  v_m(x) = v_m + h(f),   h: D → D/16 → ReLU → W

Only V (and h) train. The name stands behind the context ("end"), inside it ("middle") or in front of it ("front").
f is frozen and comes in as rows; a step costs K sentences through the text tower, so full batches are the default
in the contest. Deviation: sentences are cut after the longest (the same rows); float32 where the authors have half.

K classes · L tokens · M context vectors · W width of the text tower · D feature width · B images a step
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.features.bank import Bank
from jclip_fewshot.methods.base import Given
from jclip_fewshot.methods.towers.base import CLASSIFIER, TowerMethod, sentence_flops
from jclip_fewshot.methods.towers.towers import in_parts, text_rows
from jclip_fewshot.methods.towers.training import SGD, Arrays, Vars, Watch, cosine_by_epoch, descend, mean_cross_entropy
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

POSITIONS = ("end", "middle", "front")
LR, WEIGHT_DECAY, MOMENTUM = 0.002, 5e-4, 0.9  # the authors', Dassl's
STD = 0.02  # of the context's start
PLACE_HOLDER = "X"


def sources(tokens: np.ndarray, context: int, name_lengths: np.ndarray | None, position: str) -> np.ndarray:
    """Where each token's embedding comes from, (K, L): below L a token of the sentence, L + m context vector m.

    tokens (K, L): start, `context` place holders, name, the rest. name_lengths (K,): tokens of each name; "end"
    needs none.
    """
    if position not in POSITIONS:
        raise ValueError(f"position {position!r} is none of {', '.join(POSITIONS)}")
    classes, length = tokens.shape
    table = np.tile(np.arange(length), (classes, 1))
    vectors = length + np.arange(context)
    before = {"end": context, "middle": context // 2, "front": 0}[position]
    for k in range(classes):
        name = 0 if position == "end" else int(name_lengths[k])
        table[k, 1:1 + context + name] = np.r_[vectors[:before], 1 + context + np.arange(name), vectors[before:]]
    return table


class Prompts:
    """Sentences of K classes with room for a context.

    tokens (K, L): "X … X name ." with M place holders after the start. `embeddings(context)` puts a context in.
    """

    def __init__(self, model: CLIP, tokens: np.ndarray, context: int, position: str = "end",
                 name_lengths: np.ndarray | None = None) -> None:
        ids, ends = model.cut(tokens)
        self.model, self.ends = model, jt.array(ends)
        self._fixed = model.token_embedding(jt.array(ids)).float32().detach()  # (K, L, W)
        table = sources(ids, context, name_lengths, position)
        classes, length = ids.shape
        # a one-hot matrix instead of an index: its gradient is a product, the same bits in every run
        chosen = np.zeros((classes * length, context), np.float32)
        row, column = np.nonzero(table >= length)
        chosen[row * length + column, table[row, column] - length] = 1
        self._chosen = jt.array(chosen)
        stay = np.where(table < length, table, 0)
        self._stay = self._fixed[jt.array(np.arange(classes)[:, None].repeat(length, 1)), jt.array(stay)]
        self._stay = (self._stay * jt.array((table < length)[:, :, None].astype(np.float32))).detach()

    def embeddings(self, context: jt.Var) -> jt.Var:
        """context (M, W), shared, or (K, M, W), a class each -> (K, L, W)."""
        classes, length, width = self._stay.shape
        if len(context.shape) == 2:
            return self._stay + jt.matmul(self._chosen, context).reshape((classes, length, width))
        chosen = self._chosen.reshape((classes, length, -1))
        added = sum(chosen[:, :, m].unsqueeze(2) * context[:, m].unsqueeze(1) for m in range(chosen.shape[2]))
        return self._stay + added

    def rows(self, context: jt.Var) -> jt.Var:
        """Unit text rows (K, D) of a context."""
        return unit_var(self.model.encode_embeddings(self.embeddings(context), self.ends))

    def rows_of_each(self, contexts: jt.Var) -> jt.Var:
        """contexts (B, M, W), one an image -> unit text rows (B, K, D)."""
        batch = contexts.shape[0]
        classes, length, width = self._stay.shape
        sentences = jt.concat([self.embeddings(contexts[b]) for b in range(batch)])  # (B K, L, W)
        ends = jt.concat([self.ends] * batch)
        return unit_var(self.model.encode_embeddings(sentences, ends)).reshape((batch, classes, -1))


def prompts_for(encoder: ClipEncoder, names: Sequence[str], context: int) -> Prompts:
    """Return the sentences of K class names as people call them: "X X X X name ."."""
    holders = " ".join([PLACE_HOLDER] * context)
    return Prompts(encoder.model, encoder.tokens([f"{holders} {name} ." for name in names]), context)


def random_context(rng: np.random.Generator, context: int, width: int) -> np.ndarray:
    """N(0, 0.02²): (M, W)."""
    return (STD * rng.standard_normal((context, width))).astype(np.float32)


def shift(p: Vars, rows: jt.Var) -> jt.Var:
    """h(f): rows (B, D) -> (B, W)."""
    hidden = jt.nn.relu(product(rows, p["meta_net.linear1.weight"]) + p["meta_net.linear1.bias"])
    return product(hidden, p["meta_net.linear2.weight"]) + p["meta_net.linear2.bias"]


def logits(p: Vars, prompts: Prompts, rows: jt.Var, scale: float) -> jt.Var:
    """(B, K) of unit image rows (B, D): CoCoOp's where `p` has its net, else CoOp's."""
    if "meta_net.linear1.weight" not in p:
        return scale * product(rows, prompts.rows(p["ctx"]))
    contexts = p["ctx"].unsqueeze(0) + shift(p, rows).unsqueeze(1)  # (B, M, W)
    return scale * (prompts.rows_of_each(contexts) * rows.unsqueeze(1)).sum(2)


def train(start: Arrays, prompts: Prompts, rows: np.ndarray, labels: np.ndarray, steps: Sequence[np.ndarray],
          rates: Sequence[float], scale: float, watch: Watch | None = None, stage: str = "") -> Arrays:
    """CoOp's or CoCoOp's training: cross-entropy, SGD. rows (S, D) unit image rows; steps: each step's rows."""
    images, targets = jt.array(rows), np.asarray(labels, np.int32)

    def loss(p: Vars, step: int) -> jt.Var:
        chosen = steps[step]
        return mean_cross_entropy(logits(p, prompts, images[jt.array(chosen.astype(np.int32))], scale),
                                  targets[chosen])
    return descend(start, loss, SGD(MOMENTUM, WEIGHT_DECAY), rates, watch, stage)


class CoOp(TowerMethod):
    """One context for all classes, started at "a photo of a", name at the end.

    A step sees all shots in one of their views each. The classifier is the text rows, moved as the learned context
    moves the rows of "a photo of a bear."; the image tower stays as it is.
    """

    name, title, paper = "coop", "CoOp", "Zhou et al. 2022"
    reads_sentences = True
    context, steps = 4, 100

    def depth(self, model: CLIP) -> Depth:
        return ROWS

    def constants(self) -> dict[str, float]:
        return {"context": self.context, "steps": self.steps}

    def flops(self, task: Task, given: Given) -> float:
        bank = given.tower
        sentence = sentence_flops(bank.encoder.model, bank.class_tokens)
        return (len(task.folds()) + 1) * self.steps * 3 * float(task.seen.sum()) * sentence

    def train(self, task: Task, bank: Bank, kept: np.ndarray, stage: str) -> Arrays:
        model, views, rng = bank.encoder.model, bank.at(ROWS), np.random.default_rng(self.seed)
        start = {"ctx": model.token_embedding(jt.array(bank.class_tokens[0, 1:1 + self.context])).float32().numpy()}
        seen = np.flatnonzero(task.seen)
        rows = np.concatenate([views.take(kept, np.full(len(kept), view)) for view in range(views.count)])
        steps = [np.arange(len(kept)) + len(kept) * rng.integers(views.count, size=len(kept))
                 for _ in range(self.steps)]
        trained = train(start, Prompts(model, bank.class_tokens[seen], self.context), rows,
                        np.tile(np.searchsorted(seen, task.labels), views.count), steps,
                        cosine_by_epoch(LR, self.steps, 1), task.scale, stage=stage)
        context = jt.array(trained["ctx"])
        moved = in_parts(lambda tokens: Prompts(model, tokens, self.context).rows(context), bank.class_tokens)
        return {CLASSIFIER: moved - in_parts(partial(text_rows, model), bank.class_tokens)}

    def rows(self, model: CLIP, x: jt.Var) -> jt.Var:
        return unit_var(x)
