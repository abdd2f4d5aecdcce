"""CoOp and CoCoOp: learned context vectors in front of a class's name.

CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", 2022 (arXiv:2109.01134). CoCoOp: Zhou et al.,
"Conditional Prompt Learning for Vision-Language Models", 2022 (arXiv:2203.05557). Settings as in their code.

    p(y = i | x) = softmax_i(exp(s) cos(g(prompt_i), f)),   prompt_i = [V]_1 … [V]_M [CLASS_i] .
    CoCoOp:  v_m(x) = v_m + h(f),   h: D → D/16 → ReLU → W

Only V (and h) train. f is frozen and comes in as rows; a step costs K sentences, so CoOp's batches are all shots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.encoders.base import ROWS
from jclip_fewshot.encoders.clip_encoder import ClipEncoder, FunctionEncoder, homogeneous, logits_of
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import NEVER
from jclip_fewshot.methods.towers.base import TowerMethod, sentence_flops
from jclip_fewshot.methods.towers.towers import CLASSIFIER, CLIP, in_batches, text_rows
from jclip_fewshot.methods.training import SGD, Arrays, Vars, cosine_by_epoch, descend, mean_cross_entropy, uniform
from jclip_fewshot.task import Fold, Task

LR, WEIGHT_DECAY, MOMENTUM = 0.002, 5e-4, 0.9  # the authors', Dassl's
STD = 0.02  # of the context's start
NET = tuple(f"meta_net.linear{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias"))  # h


class Prompts:
    """Sentences of K classes, tokens (K, L): "X … X name ." with M place holders after the start, for a context."""

    def __init__(self, model: CLIP, tokens: np.ndarray, context: int) -> None:
        ids, ends = model.cut(tokens)
        classes, length = ids.shape
        holders = np.zeros((length, context), np.float32)
        holders[1:1 + context] = np.eye(context)
        self.model, self.ends = model, jt.array(ends)
        embedded = model.token_embedding(jt.array(ids)).float32().detach()  # (K, L, W)
        self._stay = (embedded * jt.array(1 - holders.sum(axis=1, keepdims=True))).detach()
        # a one-hot matrix instead of an index: its gradient is a product, the same bits in every run
        self._chosen = jt.array(np.tile(holders, (classes, 1)))

    def embeddings(self, context: jt.Var) -> jt.Var:
        """context (M, W) -> (K, L, W)."""
        return self._stay + jt.matmul(self._chosen, context).reshape(self._stay.shape)

    def rows(self, context: jt.Var) -> jt.Var:
        """Unit text rows (K, D) of a context."""
        return unit_var(self.model.encode_embeddings(self.embeddings(context), self.ends))

    def rows_of_each(self, contexts: jt.Var) -> jt.Var:
        """contexts (B, M, W), one an image -> unit text rows (B, K, D)."""
        batch = contexts.shape[0]
        sentences = jt.concat([self.embeddings(contexts[b]) for b in range(batch)])  # (B K, L, W)
        rows = unit_var(self.model.encode_embeddings(sentences, jt.concat([self.ends] * batch)))
        return rows.reshape((batch, self._stay.shape[0], -1))


def prompts_for(encoder: ClipEncoder, names: Sequence[str], context: int) -> Prompts:
    """Return the sentences of K class names as people call them: "X X X X name ."."""
    holders = " ".join(["X"] * context)
    return Prompts(encoder.model, encoder.tokens([f"{holders} {name} ." for name in names]), context)


def random_context(rng: np.random.Generator, context: int, model: CLIP) -> Arrays:
    """V (M, W) from N(0, 0.02²)."""
    return {"ctx": (STD * rng.standard_normal((context, model.transformer.width))).astype(np.float32)}


def first_words(model: CLIP, tokens: np.ndarray, context: int) -> Arrays:
    """V (M, W), started at the embeddings of the words in front of the names."""
    return {"ctx": model.token_embedding(jt.array(tokens[0, 1:1 + context])).float32().numpy()}


def random_net(rng: np.random.Generator, width: int, text_width: int) -> Arrays:
    """h as PyTorch starts it."""
    middle = max(1, width // 16)
    shapes = ((middle, width), width), ((middle,), width), ((text_width, middle), middle), ((text_width,), middle)
    return {name: uniform(rng, shape, inputs) for name, (shape, inputs) in zip(NET, shapes)}


def shift(p: Vars, rows: jt.Var) -> jt.Var:
    """h(f): rows (B, D) -> (B, W)."""
    hidden = jt.nn.relu(product(rows, p["meta_net.linear1.weight"]) + p["meta_net.linear1.bias"])
    return product(hidden, p["meta_net.linear2.weight"]) + p["meta_net.linear2.bias"]


def logits(p: Vars, prompts: Prompts, rows: jt.Var, scale: float) -> jt.Var:
    """(B, K) of unit image rows (B, D): CoCoOp's where `p` has its net, else CoOp's."""
    if NET[0] not in p:
        return scale * product(rows, prompts.rows(p["ctx"]))
    contexts = p["ctx"].unsqueeze(0) + shift(p, rows).unsqueeze(1)  # (B, M, W)
    return scale * (prompts.rows_of_each(contexts) * rows.unsqueeze(1)).sum(2)


def logits_one_by_one(arrays: Arrays, prompts: Prompts, rows: np.ndarray, scale: float) -> np.ndarray:
    """`logits` of rows (B, D), without gradients and an image at a time: B K sentences would fill the memory."""
    p = {name: jt.array(value) for name, value in arrays.items()}
    return in_batches(lambda some: logits(p, prompts, jt.array(some), scale).numpy(), rows, 1)


def train(start: Arrays, prompts: Prompts, rows: Callable[[int], jt.Var], labels: Sequence[np.ndarray],
          rates: Sequence[float], scale: float, **told: Any) -> Arrays:
    """CoOp's or CoCoOp's training: cross-entropy, SGD. rows: step -> unit image rows (B, D); labels: of each step."""
    def loss(p: Vars, step: int) -> jt.Var:
        return mean_cross_entropy(logits(p, prompts, rows(step), scale), labels[step])
    return descend(start, loss, SGD(MOMENTUM, WEIGHT_DECAY), rates, **told)


class CoOp(TowerMethod):
    """One context for all classes, started at "a photo of a"; a step sees all shots in one of their views each.

    The classifier is the text rows, moved as the learned context moves the rows of "a photo of a bear."
    """

    name, title, paper = "coop", "CoOp", "Zhou et al. 2022"
    reads_sentences = True
    context, steps = 4, 100
    constants = ("context", "steps")

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        return self.steps * 3 * float(task.seen.sum()) * sentence_flops(tower.model, tower.class_tokens)

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        model, rng, tokens = tower.model, np.random.default_rng(self.seed), tower.class_tokens
        views, (seen, labels) = tower.at(ROWS), fit.task.seen_labels()
        numbers = [rng.integers(views.count, size=len(fit.kept)) for _ in range(self.steps)]
        trained = train(first_words(model, tokens, self.context), Prompts(model, tokens[seen], self.context),
                        lambda step: jt.array(views.take(fit.kept, numbers[step])), [labels] * self.steps,
                        cosine_by_epoch(LR, self.steps, 1), fit.task.scale, stage=stage)
        context = jt.array(trained["ctx"])
        moved = in_batches(lambda some: Prompts(model, some, self.context).rows(context).numpy(), tokens)
        return {CLASSIFIER: moved - in_batches(lambda some: text_rows(model, some).numpy(), tokens)}


class CoCoOp(TowerMethod):
    """A context that each image shifts: an answer costs K sentences through the text tower. Authors' epochs: 10."""

    name, title, paper = "cocoop", "CoCoOp", "Zhou et al. 2022"
    default = NEVER
    reads_sentences = True
    alphas, own = (1.0,), ("ctx", *NET)
    state_names = (*TowerMethod.state_names, "class_tokens_")
    context, epochs, batch = 4, 1, 1
    constants = ("context", "epochs", "batch")

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        sentence = sentence_flops(tower.model, tower.class_tokens)
        return self.epochs * len(task) * 3 * float(task.seen.sum()) * sentence

    def _fit(self, task: Task, tower: Activations) -> None:
        self.class_tokens_ = tower.class_tokens
        super()._fit(task, tower)

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        model, rng, tokens = tower.model, np.random.default_rng(self.seed), tower.class_tokens
        labels, rows = self.schedule(fit, tower, rng, self.batch, self.epochs)
        start = {**first_words(model, tokens, self.context),
                 **random_net(rng, tower.encoder.width, model.transformer.width)}
        return train(start, Prompts(model, tokens[fit.task.seen], self.context), rows, labels,
                     cosine_by_epoch(LR, self.epochs, len(labels) // self.epochs), fit.task.scale, stage=stage)

    def logits_of_fit(self, tower: Activations, task: Task, arrays: Arrays, images: np.ndarray) -> np.ndarray:
        prompts = Prompts(tower.model, tower.class_tokens, self.context)
        return logits_one_by_one(arrays, prompts, self.mean_rows(tower, arrays, images), task.scale)

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        if not self.update_:
            return base
        model, prompts = base.model, Prompts(base.model, self.class_tokens_, self.context)

        def ask(images: jt.Var) -> jt.Var:
            rows = unit_var(model.encode_image(images)).numpy()
            return homogeneous(jt.array(logits_one_by_one(self.update_, prompts, rows, float(self.scale_))))
        said = b"\0".join(self.update_[name].tobytes() for name in self.own) + self.class_tokens_.tobytes()
        return FunctionEncoder(base, self.name, said, len(self.text_) + 1, ask)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return logits_of(features)
