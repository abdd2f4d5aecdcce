"""CLIP's two transformers in NumPy and float64, written from the definition: what tests hold the fast ones to."""

import math

import numpy as np

from jclip_fewshot.clip.checkpoint import Architecture


def activated(x, activation):
    if activation == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if activation == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class NumpyClip:
    """Rows of images (B, 3, R, R) and of token ids (B, L), (B, D)."""

    def __init__(self, weights: dict, sizes: Architecture) -> None:
        self.w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
        self.sizes, self.how = sizes, sizes.conventions

    def norm(self, x, name, eps):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def blocks(self, x, prefix, count, tower, causal):
        batch, length, width = x.shape
        split = lambda y: y.reshape(batch, length, -1, tower.head_width).transpose(0, 2, 1, 3)  # noqa: E731
        for number in range(count):
            at = f"{prefix}transformer.resblocks.{number}."
            y = self.norm(x, at + "ln_1", tower.eps)
            q, k, v = map(split, np.split(y @ self.w[at + "attn.in_proj_weight"].T + self.w[at + "attn.in_proj_bias"],
                                          3, axis=-1))
            scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(tower.head_width)
            if causal:
                scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
            mixed = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)
            x = x + self.linear(mixed, at + "attn.out_proj")
            y = activated(self.linear(self.norm(x, at + "ln_2", tower.eps), at + "mlp.c_fc"), tower.activation)
            x = x + self.linear(y, at + "mlp.c_proj")
        return x

    def image(self, images):
        tower, patch = self.how.image, self.sizes.vision_patch_size
        batch, side = len(images), self.sizes.image_resolution // patch
        patches = images.reshape(batch, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
        kernel = self.w["visual.conv1.weight"].reshape(self.sizes.vision_width, -1)
        x = patches.reshape(batch, side * side, -1) @ kernel.T
        first = np.broadcast_to(self.w["visual.class_embedding"], (batch, 1, x.shape[-1]))
        x = np.concatenate([first, x], axis=1) + self.w["visual.positional_embedding"]
        if self.sizes.norm_before:
            x = self.norm(x, "visual.ln_pre", tower.eps)
        x = self.blocks(x, "visual.", self.sizes.vision_layers, tower, causal=False)
        x = x[:, 0] if self.how.pool == "class" else x[:, 1:].mean(axis=1)
        return self.norm(x, "visual.ln_post", tower.eps) @ self.w["visual.proj"]

    def text(self, ids):
        x = self.w["token_embedding.weight"][ids] + self.w["positional_embedding"][:ids.shape[1]]
        x = self.blocks(x, "", self.sizes.transformer_layers, self.how.text, self.how.causal)
        ends = {"highest": ids.argmax(1), "end": (ids == self.how.end).argmax(1),
                "last": np.full(len(ids), ids.shape[1] - 1)}[self.how.text_pool]
        x = self.norm(x[np.arange(len(ids)), ends], "ln_final", self.how.text.eps) @ self.w["text_projection"]
        return x + self.w.get("text_projection_bias", 0)
