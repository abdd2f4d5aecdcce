"""CoOp and CoCoOp: learned context vectors in front of a class's name.

CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", 2022 (arXiv:2109.01134). CoCoOp: Zhou et al.,
"Conditional Prompt Learning for Vision-Language Models", 2022 (arXiv:2203.05557). Settings as in their code.

    p(y = i | x) = softmax_i(exp(s) cos(g(prompt_i), f)),   prompt_i = [V]_1 … [V]_M [CLASS_i] .
    CoCoOp:  v_m(x) = v_m + h(f),   h: D → D/16 → ReLU → W

Only V (and h) train, and the name stands behind the context. f is frozen and comes in as rows; a step costs K sentences
through the text tower, so full batches are the default in the contest. Deviation: sentences are cut after the longest
(the same rows); float32 where the authors have half.

K classes · L tokens · M context vectors · W width of the text tower · D feature width · B images a step
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.encoders.base import ROWS
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.encoders.function import FunctionEncoder, homogeneous, logits_of
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.towers.base import CLASSIFIER, TowerMethod, sentence_flops, steps_of
from jclip_fewshot.methods.towers.towers import CLIP, in_parts, text_rows
from jclip_fewshot.methods.training import SGD, Arrays, Vars, cosine_by_epoch, descend, mean_cross_entropy, uniform
from jclip_fewshot.task import Task

LR, WEIGHT_DECAY, MOMENTUM = 0.002, 5e-4, 0.9  # the authors', Dassl's
STD = 0.02  # of the context's start
PLACE_HOLDER = "X"
NET = tuple(f"meta_net.linear{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias"))  # h


class Prompts:
    """Sentences of K classes with room for a context.

    tokens (K, L): "X … X name ." with M place holders after the start. table (K, L): where each token's embedding comes
    from, below L a token of the sentence, L + m context vector m; None puts the context in the place holders' stead.
    `embeddings(context)` puts a context in.
    """

    def __init__(self, model: CLIP, tokens: np.ndarray, context: int, table: np.ndarray | None = None) -> None:
        ids, ends = model.cut(tokens)
        self.model, self.ends = model, jt.array(ends)
        embedded = model.token_embedding(jt.array(ids)).float32().detach()  # (K, L, W)
        classes, length = ids.shape
        if table is None:
            table = np.tile(np.arange(length), (classes, 1))
            table[:, 1:1 + context] = length + np.arange(context)
        # a one-hot matrix instead of an index: its gradient is a product, the same bits in every run
        chosen = np.zeros((classes * length, context), np.float32)
        row, column = np.nonzero(table >= length)
        chosen[row * length + column, table[row, column] - length] = 1
        self._chosen = jt.array(chosen)
        stay = np.where(table < length, table, 0)
        self._stay = embedded[jt.array(np.arange(classes)[:, None].repeat(length, 1)), jt.array(stay)]
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


def logits_one_by_one(arrays: Arrays, prompts: Prompts, rows: jt.Var, scale: float) -> jt.Var:
    """`logits` of rows (B, D), without gradients and an image at a time: B K sentences would fill the memory."""
    p = {name: jt.array(value) for name, value in arrays.items()}
    with jt.no_grad():
        return jt.array(np.concatenate([logits(p, prompts, rows[b:b + 1], scale).numpy()
                                        for b in range(rows.shape[0])]))


def first_words(model: CLIP, tokens: np.ndarray, context: int) -> np.ndarray:
    """The embeddings (M, W) of the words in front of the names, as a context to start from."""
    return model.token_embedding(jt.array(tokens[0, 1:1 + context])).float32().numpy()


def random_net(rng: np.random.Generator, width: int, text_width: int) -> Arrays:
    """h as PyTorch starts it."""
    middle = max(1, width // 16)
    shapes = ((middle, width), width), ((middle,), width), ((text_width, middle), middle), ((text_width,), middle)
    return {name: uniform(rng, shape, inputs) for name, (shape, inputs) in zip(NET, shapes)}


def train(start: Arrays, prompts: Prompts, rows: np.ndarray, labels: np.ndarray, steps: Sequence[np.ndarray],
          rates: Sequence[float], scale: float, **told: Any) -> Arrays:
    """CoOp's or CoCoOp's training: cross-entropy, SGD. rows (S, D) unit image rows; steps: each step's rows.

    told: `descend`'s watch and stage.
    """
    images, targets = jt.array(rows), np.asarray(labels, np.int32)

    def loss(p: Vars, step: int) -> jt.Var:
        chosen = steps[step]
        return mean_cross_entropy(logits(p, prompts, images[jt.array(chosen.astype(np.int32))], scale),
                                  targets[chosen])
    return descend(start, loss, SGD(MOMENTUM, WEIGHT_DECAY), rates, **told)


def train_on_views(start: Arrays, context: int, task: Task, activations: Activations, kept: np.ndarray,
                   steps: Sequence[tuple[np.ndarray, np.ndarray]], epochs: int, stage: str) -> Arrays:
    """`train` on the shots `kept`, whose `task` it is; steps: each step's shots, as numbers among them, and views."""
    views, (seen, labels) = activations.at(ROWS), task.seen_labels()
    rows = np.concatenate([views.take(kept, np.full(len(kept), view)) for view in range(views.count)])
    return train(start, Prompts(activations.model, activations.class_tokens[seen], context), rows,
                 np.tile(labels, views.count), [shots + len(kept) * view for shots, view in steps],
                 cosine_by_epoch(LR, epochs, len(steps) // epochs), task.scale, stage=stage)


class CoOp(TowerMethod):
    """One context for all classes, started at "a photo of a", name at the end.

    A step sees all shots in one of their views each. The classifier is the text rows, moved as the learned context
    moves the rows of "a photo of a bear."; the image tower stays as it is.
    """

    name, title, paper = "coop", "CoOp", "Zhou et al. 2022"
    reads_sentences = True
    context, steps = 4, 100
    constants = ("context", "steps")

    def flops_of_fit(self, task: Task, activations: Activations) -> float:
        sentence = sentence_flops(activations.model, activations.class_tokens)
        return self.steps * 3 * float(task.seen.sum()) * sentence

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, rng, tokens = activations.model, np.random.default_rng(self.seed), activations.class_tokens
        views, count = activations.at(ROWS).count, len(kept)
        steps = [(np.arange(count), rng.integers(views, size=count)) for _ in range(self.steps)]
        trained = train_on_views({"ctx": first_words(model, tokens, self.context)}, self.context, task, activations,
                                 kept, steps, self.steps, stage)
        context = jt.array(trained["ctx"])
        moved = in_parts(lambda tokens: Prompts(model, tokens, self.context).rows(context), tokens)
        return {CLASSIFIER: moved - in_parts(partial(text_rows, model), tokens)}


class CoCoOp(TowerMethod):
    """A context that each image shifts: an image's answer costs K sentences through the text tower.

    The authors' start, rates and batch of one image; epochs: ten in their code, which takes ten times as long.
    """

    name, title, paper = "cocoop", "CoCoOp", "Zhou et al. 2022"
    default = NEVER
    reads_sentences = True
    alphas, own = (1.0,), ("ctx", *NET)
    state_names = (*TowerMethod.state_names, "class_tokens_")
    context, epochs, batch = 4, 1, 1
    constants = ("context", "epochs", "batch")

    def flops_of_fit(self, task: Task, activations: Activations) -> float:
        sentence = sentence_flops(activations.model, activations.class_tokens)
        return self.epochs * len(task) * 3 * float(task.seen.sum()) * sentence

    def _fit(self, task: Task, tower: Activations) -> None:
        self.class_tokens_ = tower.class_tokens
        super()._fit(task, tower)

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, rng = activations.model, np.random.default_rng(self.seed)
        steps = list(zip(*steps_of(rng, len(kept), activations.at(ROWS).count, self.batch, self.epochs)))
        start = {"ctx": first_words(model, activations.class_tokens, self.context),
                 **random_net(rng, activations.encoder.width, model.transformer.width)}
        return train_on_views(start, self.context, task, activations, kept, steps, self.epochs, stage)

    def logits_of_fit(self, activations: Activations, task: Task, arrays: Arrays, images: np.ndarray) -> np.ndarray:
        prompts = Prompts(activations.model, activations.class_tokens, self.context)
        rows = jt.array(self.mean_rows(activations, arrays, images))
        return logits_one_by_one(arrays, prompts, rows, task.scale).numpy()

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        if not self.update_:
            return base
        prompts = Prompts(base.model, self.class_tokens_, self.context)
        said = b"\0".join(self.update_[name].tobytes() for name in self.own) + self.class_tokens_.tobytes()
        return FunctionEncoder(base, self.name, said, len(self.text_) + 1, lambda images: homogeneous(
            logits_one_by_one(self.update_, prompts, unit_var(base.model.encode_image(images)), float(self.scale_))))

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return logits_of(features)
