"""A frozen tower on the CPU as one Jittor operator: tower.cpp for transformers, resnet.cpp for ResNets.

Jittor's own operators cost a tower twice: batched products fall outside oneDNN and run as plain loops,
and every elementwise step goes through memory (and through the compiler, once). tower.cpp runs a whole
tower instead: products by oneDNN's sgemm on weights that need no transposing, attention, LayerNorm and
QuickGELU in between as vector code, a cache-sized part of the batch at a time. It knows no gradients;
training takes the towers as model.py writes them, and tests hold the two to each other.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import List

from jclip_fewshot.backend import jt

_SOURCE = """
    jclip::Tower t;
    t.batch = in0_shape0; t.length = data["length"]; t.width = data["width"]; t.heads = data["heads"];
    t.layers = data["layers"]; t.features = out0_shape1; t.channels = 3;
    t.resolution = data["resolution"]; t.patch = data["patch"]; t.causal = data["causal"];
    for (size_t i = 2; i < _inputs.size(); i++) t.weights.push_back(_inputs[i]->ptr<float>());
    const float* images = t.patch ? _inputs[0]->ptr<float>() : nullptr;
    const int* ids = t.patch ? nullptr : _inputs[0]->ptr<int>();
    jclip::run_all(t, data["at_once"], images, ids, in1_p, out0_p);
"""
_RESNET_SOURCE = """
    jclip::ResNet net;
    net.resolution = in0_shape2; net.width = data["width"]; net.features = out0_shape1;
    net.blocks[0] = data["blocks1"]; net.blocks[1] = data["blocks2"];
    net.blocks[2] = data["blocks3"]; net.blocks[3] = data["blocks4"];
    for (size_t i = 1; i < _inputs.size(); i++) net.weights.push_back(_inputs[i]->ptr<float>());
    jclip::run_all(net, in0_shape0, data["at_once"], in0_p, out0_p);
"""
# Rows (tokens of all sequences) that go through a tower together; see benchmarks/encode.py.
_ROWS = 1600
# Numbers in the largest activation (112 x 112 x 64 an image in RN50) of the images that go through a
# ModifiedResNet together.
_NUMBERS = 8 * 112 * 112 * 64


@lru_cache(maxsize=None)
def header(*names: str) -> str:
    return "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


def available() -> bool:
    """Whether Jittor runs on the CPU with oneDNN, which tower.cpp multiplies with."""
    return not jt.flags.use_cuda and getattr(jt.compile_extern, "mkl_ops", None) is not None


def run(source: "jt.Var", at: "jt.Var", embedding: List["jt.Var"], transformer, readout: List["jt.Var"],
        length: int, resolution: int = 0, patch: int = 0) -> "jt.Var":
    """Features (B, D) of images (B, 3, R, R) or of token ids (B, L).

    at: (B,) int32, the token that is read out. embedding: patch embedding, positions, class token and
    norm, or token embedding and positions. readout: the last norm and the projection.
    """
    weights = list(embedding)
    for block in transformer.resblocks:
        attention, mlp = block.attn, block.mlp
        weights += [block.ln_1.weight, block.ln_1.bias, attention.in_proj_weight, attention.in_proj_bias,
                    attention.out_proj.weight, attention.out_proj.bias, block.ln_2.weight, block.ln_2.bias,
                    mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias]
    weights += readout
    data = {"length": length, "width": transformer.width, "heads": transformer.heads,
            "layers": len(transformer.resblocks), "causal": int(transformer.causal), "resolution": resolution,
            "patch": patch, "at_once": max(1, round(_ROWS / length))}
    return jt.code((source.shape[0], readout[-1].shape[1]), "float32", [source, at] + weights,
                   cpu_header=header("tower.cpp"), cpu_src=_SOURCE, data=data)


def run_resnet(images: "jt.Var", net) -> "jt.Var":
    """Features (B, D) of images (B, 3, R, R) by a ModifiedResNet (see model.py)."""
    weights = []

    def add(conv, norm) -> None:
        weights.extend((conv.weight, *norm.scale_and_shift()))

    for number in (1, 2, 3):
        add(getattr(net, f"conv{number}"), getattr(net, f"bn{number}"))
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    for stage in stages:
        for block in stage:
            for number in (1, 2, 3):
                add(getattr(block, f"conv{number}"), getattr(block, f"bn{number}"))
            if block.downsample is not None:
                add(*block.downsample.parts())
    pool = net.attnpool
    weights.append(pool.positional_embedding)
    for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        weights += [linear.weight, linear.bias]
    data = {"width": net.width, "at_once": max(1, _NUMBERS // ((net.input_resolution // 2) ** 2 * net.width))}
    data.update({f"blocks{number}": len(stage) for number, stage in enumerate(stages, start=1)})
    return jt.code((images.shape[0], net.output_dim), "float32", [images] + weights,
                   cpu_header=header("tower.cpp", "resnet.cpp"), cpu_src=_RESNET_SOURCE, data=data)
