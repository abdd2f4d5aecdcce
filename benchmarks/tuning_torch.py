"""PyTorch's side of benchmarks/tuning.py: seconds of a training step in OpenAI's model, on the CPU.

    PYTHON_WITH_TORCH benchmarks/tuning_torch.py last_block|prolip|coop|two_stage|clip_lora SIZES STEPS

SIZES: JSON with classes, shots, batch, sentences, tokens. The same steps as the methods of those names take, on a
ViT-B/32 with random weights: same ranks, same trained tensors, same optimiser, sentences cut at the same length. What
differs is the model: OpenAI's computes the last block at every token.

B images or sentences · L tokens · W width · D feature width
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from encode import ARCHITECTURES, torch_clip
from torch import Tensor
from torch.nn import functional

FEATURES, WIDTH, TEXT_WIDTH, TOKENS = 512, 768, 512, 50  # ViT-B/32
SCALE, DROPOUT = 100.0, 0.25


class LowRank(torch.nn.Module):
    """γ B A x for query, key and value."""

    def __init__(self, width: int, rank: int, drop: float) -> None:
        super().__init__()
        self.down = torch.nn.ParameterList([torch.randn(rank, width) / width ** 0.5 for _ in range(3)])
        self.up = torch.nn.ParameterList([torch.zeros(width, rank) for _ in range(3)])
        self.drop, self.scale = drop, rank ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.cat([
            functional.linear(functional.linear(functional.dropout(x, self.drop), down), up)
            for down, up in zip(self.down, self.up)], dim=-1)


def through_block(block, x: Tensor, lora: LowRank | None, causal: bool) -> Tensor:
    """(B, L, W) -> (B, L, W)"""
    batch, length, width = x.shape
    y = block.ln_1(x)
    projected = functional.linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias)
    projected = projected if lora is None else projected + lora(y)
    q, k, v = (part.view(batch, length, -1, 64).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    answer = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    x = x + block.attn.out_proj(answer.transpose(1, 2).reshape(batch, length, width))
    return x + block.mlp(block.ln_2(x))


def loss_of(rows: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    logits = SCALE * functional.normalize(rows, dim=-1) @ functional.normalize(text, dim=-1).T
    return functional.cross_entropy(logits, labels)


def last_block(model, sizes: dict[str, int]) -> "tuple[list[Tensor], Callable[[], Tensor]]":
    """(what trains, the loss of a step)"""
    visual, block = model.visual, model.visual.transformer.resblocks[-1]
    lora = LowRank(WIDTH, 8, 0.0)
    moved = torch.zeros(sizes["classes"], FEATURES, requires_grad=True)
    norms = [block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias, visual.ln_post.weight,
             visual.ln_post.bias]
    x, text = torch.randn(sizes["batch"], TOKENS, WIDTH), torch.randn(sizes["classes"], FEATURES)
    labels = torch.randint(sizes["classes"], (sizes["batch"],))

    def loss() -> Tensor:
        out = through_block(block, x, lora, False)
        return loss_of(visual.ln_post(out[:, 0]) @ visual.proj, functional.normalize(text, dim=-1) + moved, labels)
    return [*lora.parameters(), *norms, moved], loss


def clip_lora(model, sizes: dict[str, int]) -> "tuple[list[Tensor], Callable[[], Tensor]]":
    """(what trains, the loss of a step)"""
    image_loras = [LowRank(WIDTH, 2, DROPOUT) for _ in model.visual.transformer.resblocks]
    text_loras = [LowRank(TEXT_WIDTH, 2, DROPOUT) for _ in model.transformer.resblocks]
    return ([value for lora in image_loras + text_loras for value in lora.parameters()],
            both_towers(model, sizes, image_loras, text_loras))


def two_stage(model, sizes: dict[str, int]) -> "tuple[list[Tensor], Callable[[], Tensor]]":
    """(what trains, the loss of a step) of the first stage: the norms of both towers"""
    blocks = [*model.visual.transformer.resblocks, *model.transformer.resblocks]
    nothing = [None] * len(model.transformer.resblocks)
    return ([value for block in blocks for norm in (block.ln_1, block.ln_2) for value in norm.parameters()],
            both_towers(model, sizes, nothing, nothing))


def both_towers(model, sizes: dict[str, int], image_loras: Sequence, text_loras: Sequence) -> Callable[[], Tensor]:
    visual = model.visual
    images = torch.randn(sizes["batch"], TOKENS, WIDTH)
    sentences = torch.randn(sizes["sentences"], sizes["tokens"], TEXT_WIDTH)
    labels = torch.randint(sizes["sentences"], (sizes["batch"],))

    def loss() -> Tensor:
        x = images
        for block, lora in zip(visual.transformer.resblocks, image_loras):
            x = through_block(block, x, lora, False)
        return loss_of(visual.ln_post(x[:, 0]) @ visual.proj, text_rows(model, sentences, text_loras), labels)
    return loss


def text_rows(model, x: Tensor, loras: Sequence) -> Tensor:
    for block, lora in zip(model.transformer.resblocks, loras):
        x = through_block(block, x, lora, True)
    return model.ln_final(x[:, -1]) @ model.text_projection


def coop(model, sizes: dict[str, int]) -> "tuple[list[Tensor], Callable[[], Tensor]]":
    """(what trains, the loss of a step): four context vectors, all sentences in a step"""
    context = torch.randn(4, TEXT_WIDTH) * 0.02
    sentences = torch.randn(sizes["sentences"], sizes["tokens"], TEXT_WIDTH)
    rows = torch.randn(4 * sizes["sentences"], FEATURES)
    labels = torch.arange(len(rows)) % sizes["sentences"]
    nothing = [None] * len(model.transformer.resblocks)

    def loss() -> Tensor:
        x = torch.cat([sentences[:, :1], context.expand(len(sentences), -1, -1), sentences[:, 5:]], dim=1)
        return loss_of(rows, text_rows(model, x, nothing), labels)
    return [context], loss


def prolip(model, sizes: dict[str, int]) -> "tuple[list[Tensor], Callable[[], Tensor]]":
    """(what trains, the loss of a step)"""
    start = torch.randn(WIDTH, FEATURES) * WIDTH ** -0.5
    proj = start.clone().requires_grad_()
    x, text = torch.randn(sizes["shots"], WIDTH), torch.randn(sizes["classes"], FEATURES)
    labels = torch.randint(sizes["classes"], (sizes["shots"],))

    def loss() -> Tensor:
        return loss_of(x @ proj, text, labels) + ((proj - start) ** 2).sum() / 16
    return [proj], loss


def seconds_of_steps(parameters: list[Tensor], loss: Callable[[], Tensor], steps: int) -> Iterator[float]:
    optimiser = torch.optim.AdamW(parameters, 1e-4)
    for _ in range(steps):
        begun = time.perf_counter()
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        yield time.perf_counter() - begun


def main(method: str, sizes: str, steps: str) -> int | None:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    model = torch_clip(torch, ARCHITECTURES["ViT-B/32"])
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.02)
        value.requires_grad_(False)
    methods = {"last_block": last_block, "prolip": prolip, "coop": coop, "two_stage": two_stage, "clip_lora": clip_lora}
    parameters, loss = methods[method](model, json.loads(sizes))
    for value in parameters:
        value.requires_grad_()
    times = list(seconds_of_steps(parameters, loss, int(steps) + 2))
    print(statistics.median(times[2:]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
