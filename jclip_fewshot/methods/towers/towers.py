"""What trains in the towers, and how: rows with gradients, low-rank updates, a training of whatever moves.

CLIP-LoRA: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", 2024 (arXiv:2405.18541).

    h = W x + γ B A x,   A (r, W) Kaiming-uniform, B (W, r) = 0,   r = 2,   γ = 1/√r (their code; α/r in LoRA's paper)

Of query, key and value, in both towers or one. Dropout 0.25 on the update's input, a mask each for q, k and v. AdamW,
lr 2e-4, weight decay 1e-2, cosine by step to 1e-6. Where the text tower trains, text rows of one template again in each
step. Deviation: without dropout the update is kept next to W, where the authors' code merges it and takes it out
before the backward pass, which makes gradients of lower blocks wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import product, unit_var
from jclip_fewshot.clip.replace import part, replaced
from jclip_fewshot.methods.training import Adam, Arrays, Vars, cosine, descend, mean_cross_entropy, uniform

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP
else:
    CLIP = Any

RANK, DROPOUT, LR, LEAST_LR, WEIGHT_DECAY = 2, 0.25, 2e-4, 1e-6, 1e-2  # the authors'
SCALE = 100.0  # the authors', not the model's
QKV = ("q", "k", "v")
LOW_RANK = (".w_lora_A", ".w_lora_B")  # the authors' names
CLASSIFIER = "classifier"  # rows (K, D) that train beside the tensors of a tower

Drop = Callable[["jt.Var"], "jt.Var"]


def block_names(model: CLIP, *towers: str) -> list[str]:
    """OpenAI's names of the blocks of towers, "visual." or "" (text)."""
    return [f"{tower}transformer.resblocks.{number}" for tower in towers
            for number in range(len(part(model, tower + "transformer").resblocks))]


def norm_names(blocks: Iterable[str]) -> list[str]:
    return [f"{block}.{norm}.{kind}" for block in blocks for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")]


def values_of(model: CLIP, names: Iterable[str]) -> Arrays:
    """The model's own tensors of those names: where their training starts."""
    return {name: part(model, name).float32().numpy() for name in names}


def rows_from(model: CLIP, x: jt.Var, block: int) -> jt.Var:
    """x (B, L, W), the input of an image block -> (B, D) unit rows, with gradients."""
    return unit_var(jt.matmul(model.visual.unprojected(x, block), model.visual.proj))


def image_rows(model: CLIP, images: jt.Var) -> jt.Var:
    """(B, 3, R, R) -> (B, D) unit rows, with gradients."""
    return rows_from(model, model.visual.embed(images), 0)


def text_rows(model: CLIP, tokens: np.ndarray) -> jt.Var:
    """(B, L) ids -> (B, D) unit rows, with gradients."""
    ids, ends = model.cut(tokens)
    return unit_var(model.encode_embeddings(model.token_embedding(jt.array(ids)), jt.array(ends)))


def in_batches(ask: Callable[[np.ndarray], np.ndarray], items: np.ndarray, size: int = 64) -> np.ndarray:
    """ask(items), (N, ...), without gradients and `size` at a time."""
    with jt.no_grad():
        return np.concatenate([ask(items[i:i + size]) for i in range(0, len(items), size)])


def random_start(model: CLIP, blocks: Iterable[str], rng: np.random.Generator, rank: int = RANK) -> Arrays:
    """A and B of q, k and v of each block's attention, under the authors' names: A uniform in ±1/√W, B zero."""
    arrays = {}
    for block in blocks:
        width = part(model, f"{block}.attn").in_proj_weight.shape[0]
        for one in QKV:
            arrays[f"{block}.attn.{one}_proj.w_lora_A"] = uniform(rng, (rank, width), width)
            arrays[f"{block}.attn.{one}_proj.w_lora_B"] = np.zeros((width, rank), np.float32)
    return arrays


def places_of(names: Iterable[str]) -> list[str]:
    """The attentions that parameters of those names belong to."""
    return list(dict.fromkeys(name.rsplit(".", 2)[0] for name in names if name.endswith(LOW_RANK)))


def low_rank(p: Vars, path: str, drop: Drop | None = None) -> Callable[[jt.Var, int, int], jt.Var]:
    """What one attention's `lora` is while it trains: γ B A x, added to the frozen product."""
    downs, ups = ([p[f"{path}.{one}_proj.w_lora_{letter}"] for one in QKV] for letter in "AB")

    def updates(x: jt.Var, first: int, last: int) -> jt.Var:
        """x (B, L, W) -> (B, L, (last − first) W): the updates of q, k, v from `first` to before `last`."""
        batch, length, width = x.shape
        flat, rank = x.reshape((-1, width)), downs[0].shape[0]
        if drop is None:
            low = product(flat, jt.concat(downs[first:last]))  # (n, parts r)
        else:
            low = jt.concat([product(drop(flat), down) for down in downs[first:last]], dim=1)
        return product(low, block_diagonal(ups[first:last]) * rank ** -0.5).reshape((batch, length, -1))
    return updates


def block_diagonal(blocks: list[jt.Var]) -> jt.Var:
    """Blocks of one shape along the diagonal of a matrix of zeros, so that one product does for all of them."""
    zeros = jt.zeros(blocks[0].shape)
    return jt.concat([jt.concat([block if row == column else zeros for column in range(len(blocks))], dim=1)
                      for row, block in enumerate(blocks)])


@contextmanager
def attached(model: CLIP, p: Vars, drop: Drop | None = None) -> Iterator[None]:
    """The model as `p` trains it, while the block runs: updates beside their weights, other tensors in their stead."""
    attentions = {path: part(model, path) for path in places_of(p)}
    tensors = {name: value for name, value in p.items() if not name.endswith((*LOW_RANK, CLASSIFIER))}
    try:
        for path, attention in attentions.items():
            attention.lora = low_rank(p, path, drop)
        with replaced(model, tensors):
            yield
    finally:
        for attention in attentions.values():
            attention.lora = None


def dropout(rng: np.random.Generator, rate: float) -> Drop:
    """x -> x with a share `rate` of its numbers at zero, the rest grown by 1/(1 − rate); NumPy draws on any device."""
    def drop(x: jt.Var) -> jt.Var:
        kept = rng.random(x.shape, np.float32) >= rate
        return x * jt.array(kept.astype(np.float32) / np.float32(1 - rate))
    return drop


def merged(model: CLIP, updates: Arrays) -> Arrays:
    """W + γ B A for inference: {name of in_proj_weight: (W, 3W), the model's layout}; other arrays go through."""
    result = {name: value for name, value in updates.items() if not name.endswith(LOW_RANK)}
    for path in places_of(updates):
        weight = part(model, path).in_proj_weight.float32().numpy().copy()
        width = len(weight)
        for number, one in enumerate(QKV):
            a, b = (updates[f"{path}.{one}_proj.w_lora_{letter}"].astype(np.float64) for letter in "AB")
            weight[:, number * width:(number + 1) * width] += ((b @ a).T * len(a) ** -0.5).astype(np.float32)
        result[f"{path}.in_proj_weight"] = weight
    return result


def train(start: Arrays, model: CLIP, rows: Callable[[int], jt.Var], text: Callable[[Vars], jt.Var],
          labels: Sequence[np.ndarray], scale: float = SCALE, lr: float = LR, drop: Drop | None = None, **told: Any
          ) -> Arrays:
    """CLIP-LoRA's training, whatever trains: one step an entry of `labels`, the labels of that step's images.

    rows: step -> unit image rows (B, D); text: parameters -> unit text rows (K, D); both with the parameters attached.
    """
    def loss(p: Vars, step: int) -> jt.Var:
        with attached(model, p, drop):
            return mean_cross_entropy(scale * product(rows(step), text(p)), labels[step])
    return descend(start, loss, Adam(WEIGHT_DECAY), cosine(lr, len(labels), LEAST_LR), **told)
