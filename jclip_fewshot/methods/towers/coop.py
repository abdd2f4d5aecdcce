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
from jclip_fewshot.encoders.base import ROWS
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.encoders.function import FunctionEncoder, homogeneous, logits_of
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import NEVER, Given
from jclip_fewshot.methods.towers.base import CLASSIFIER, TowerMethod, sentence_flops, steps_of
from jclip_fewshot.methods.towers.towers import in_parts, text_rows
from jclip_fewshot.methods.training import SGD, Arrays, Vars, Watch, cosine_by_epoch, descend, mean_cross_entropy
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

POSITIONS = ("end", "middle", "front")
LR, WEIGHT_DECAY, MOMENTUM = 0.002, 5e-4, 0.9  # the authors', Dassl's
STD = 0.02  # of the context's start
PLACE_HOLDER = "X"
NET = tuple(f"meta_net.linear{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias"))  # h


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
    """h, each layer uniform within 1/√inputs, as PyTorch starts it."""
    middle = max(1, width // 16)

    def uniform(shape: Sequence[int], inputs: int) -> np.ndarray:
        return (rng.uniform(-1, 1, shape) / np.sqrt(inputs)).astype(np.float32)
    shapes = {NET[0]: (middle, width), NET[1]: (middle,), NET[2]: (text_width, middle), NET[3]: (text_width,)}
    return {name: uniform(shape, width if name in NET[:2] else middle) for name, shape in shapes.items()}


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
    constants = ("context", "steps")

    def flops(self, task: Task, given: Given) -> float:
        activations = given.tower
        sentence = sentence_flops(activations.encoder.model, activations.class_tokens)
        return (len(task.folds()) + 1) * self.steps * 3 * float(task.seen.sum()) * sentence

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, views, rng = activations.encoder.model, activations.at(ROWS), np.random.default_rng(self.seed)
        start = {"ctx": first_words(model, activations.class_tokens, self.context)}
        seen = np.flatnonzero(task.seen)
        rows = np.concatenate([views.take(kept, np.full(len(kept), view)) for view in range(views.count)])
        steps = [np.arange(len(kept)) + len(kept) * rng.integers(views.count, size=len(kept))
                 for _ in range(self.steps)]
        trained = train(start, Prompts(model, activations.class_tokens[seen], self.context), rows,
                        np.tile(np.searchsorted(seen, task.labels), views.count), steps,
                        cosine_by_epoch(LR, self.steps, 1), task.scale, stage=stage)
        context = jt.array(trained["ctx"])
        moved = in_parts(lambda tokens: Prompts(model, tokens, self.context).rows(context), activations.class_tokens)
        return {CLASSIFIER: moved - in_parts(partial(text_rows, model), activations.class_tokens)}


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

    def flops(self, task: Task, given: Given) -> float:
        sentence = sentence_flops(given.tower.encoder.model, given.tower.class_tokens)
        return (len(task.folds()) + 1) * self.epochs * len(task) * 3 * float(task.seen.sum()) * sentence

    def fit(self, task: Task, tower: Activations) -> CoCoOp:
        super().fit(task, tower)
        self.class_tokens_ = tower.class_tokens
        return self

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        model, views, rng = activations.encoder.model, activations.at(ROWS), np.random.default_rng(self.seed)
        seen = np.flatnonzero(task.seen)
        rows = np.concatenate([views.take(kept, np.full(len(kept), view)) for view in range(views.count)])
        chosen, numbers = steps_of(rng, np.arange(len(kept)), views.count, self.batch, self.epochs)
        start = {"ctx": first_words(model, activations.class_tokens, self.context),
                 **random_net(rng, rows.shape[1], model.transformer.width)}
        return train(start, Prompts(model, activations.class_tokens[seen], self.context), rows,
                     np.tile(np.searchsorted(seen, task.labels), views.count),
                     [one + len(kept) * view for one, view in zip(chosen, numbers)],
                     cosine_by_epoch(LR, self.epochs, len(chosen) // self.epochs), task.scale, stage=stage)

    def logits_of_fit(self, activations: Activations, task: Task, arrays: Arrays, images: np.ndarray) -> np.ndarray:
        prompts = Prompts(activations.encoder.model, activations.class_tokens, self.context)
        rows = jt.array(self.mean_rows(activations, arrays, images))
        return logits_one_by_one(arrays, prompts, rows, task.scale).numpy()

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        if not self.update_:
            return base
        prompts = Prompts(base.model, self.class_tokens_, self.context)
        said = b"\0".join(self.update_[name].tobytes() for name in self.own) + self.class_tokens_.tobytes()
        return FunctionEncoder(base, self.name, said, len(self.text_) + 1, lambda images: homogeneous(
            logits_one_by_one(self.update_, prompts, unit_var(base.model.encode_image(images)), float(self.scale_))))

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        return logits_of(rows)
