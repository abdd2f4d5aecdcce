"""A frozen tower on the CPU as one Jittor operator: product.cpp and tower.cpp, for ResNets resnet.cpp too.

By Jittor's own operators batched products run as plain loops, and every elementwise step goes through memory. tower.cpp
works bias, activation or the residual's sum into the products while they lie in registers, a cache-sized part of the
batch at a time. It knows no gradients; training takes the towers as model.py writes them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.cpp import source
from jclip_fewshot.backend.device import cpuinfo
from jclip_fewshot.clip.checkpoint.architecture import ACTIVATIONS

_SOURCE = """
    jclip::Tower t;
    t.batch = in0_shape0; t.channels = 3; FIELDS
    for (size_t i = 2; i < _inputs.size(); i++) t.weights.push_back(_inputs[i]->mem_ptr);
    const float* images = t.patch ? _inputs[0]->ptr<float>() : nullptr;
    const int* ids = t.patch ? nullptr : _inputs[0]->ptr<int>();
    jclip::run_all<jclip::KIND>(t, data["at_once"], images, ids, in1_p, out0_p);
"""
_RESNET_SOURCE = """
    jclip::ResNet net;
    net.resolution = in0_shape2; net.width = data["width"]; net.features = out0_shape1;
    net.blocks[0] = data["blocks1"]; net.blocks[1] = data["blocks2"];
    net.blocks[2] = data["blocks3"]; net.blocks[3] = data["blocks4"];
    for (size_t i = 1; i < _inputs.size(); i++) net.weights.push_back(_inputs[i]->mem_ptr);
    jclip::run_all<jclip::KIND>(net, in0_shape0, data["at_once"], in0_p, out0_p);
"""
_PACK_SOURCE = "jclip::pack<jclip::KIND>(in0_shape0, in0_shape1, in0_p, (jclip::KIND::Number*)out0_p);"
_KNOWN_SOURCE = """
    out0_p[0] = out0_p[1] = 0;
    #ifdef __AVX512BF16__
    out0_p[0] = 1;
    #endif
    #ifdef JCLIP_TILES
    out0_p[1] = jclip::have_tiles();
    #endif
"""
_KIND = {"float32": "Single", "bfloat16": "Half"}  # product.cpp's names
_NUMBER = {"float32": "float32", "bfloat16": "int16"}  # Jittor has no bfloat16 on the CPU
_PANEL, _LINE = 48, 32  # product.cpp's PANEL, and its LINE in numbers of 2 bytes
FEATURES, UNPROJECTED = -1, -2  # tower.cpp's: where to stop; a block's number asks for its input
_ROWS = 1600  # tokens of all sequences that go through a tower together; see benchmarks/encode.py
_NUMBERS = 8 * 112 * 112 * 64  # in the largest activation of the images that go through a ModifiedResNet together


def available() -> bool:
    """Whether Jittor runs on the CPU, for which the fused towers are written."""
    return not jt.flags.use_cuda


@cache
def _known() -> tuple[bool, bool]:
    """Whether the compiler knows AVX512_BF16, and whether Intel's tiles (AMX) can be used."""
    known = jt.code((2,), "int32", [], cpu_header=source(__file__, "product.cpp"), cpu_src=_KNOWN_SOURCE).numpy()
    return bool(known[0]), bool(known[1])


def lacks_bfloat16() -> str:
    """Why products of bfloat16 would be slow here; empty where processor and compiler know AVX512_BF16."""
    if "avx512_bf16" not in cpuinfo():
        return "this processor has no AVX512_BF16"
    return "" if _known()[0] else "the compiler does not know AVX512_BF16 (g++ does from version 10 on)"


def bfloat16_is_faster() -> bool:
    """Whether a product takes less time in bfloat16 than in float32 here, by the kind of processor.

    It does with AVX512_BF16 on AMD's processors and with Intel's AMX (docs/notes/speed.md). Not timed: a run that is
    repeated, or goes on after Ctrl-C, must choose alike.
    """
    return not lacks_bfloat16() and ("AuthenticAMD" in cpuinfo() or _known()[1])


class Matrices:
    """A model's weight matrices as the fused towers take them, in "float32" or "bfloat16".

    Each is packed at its first use, and again once the parameter was assigned to or updated (not through `.data`).
    """

    def __init__(self, precision: str = "float32") -> None:
        self.precision = precision
        self._packed: dict[int, tuple[jt.Var, int, jt.Var]] = {}

    def __call__(self, parameter: jt.Var) -> jt.Var:
        """(K, N) float32 -> its panels, flat (see product.cpp)."""
        known = self._packed.get(id(parameter))
        if known is None or known[0] is not parameter or known[1] != parameter.id:
            inputs, outputs = parameter.shape
            size = -(-outputs // _PANEL) * _PANEL * (inputs + inputs % 2) + _LINE
            packed = jt.code((size,), _NUMBER[self.precision], [parameter.float32()],
                             cpu_header=source(__file__, "product.cpp"),
                             cpu_src=_PACK_SOURCE.replace("KIND", _KIND[self.precision])).stop_grad()
            known = self._packed[id(parameter)] = parameter, parameter.id, packed
        return known[2]


def run(inputs: jt.Var, at: jt.Var, embedding: list[jt.Var], transformer: Any, readout: list[jt.Var],
        matrices: Matrices, patch: int = 0, stop: int = FEATURES) -> jt.Var:
    """Features (B, D) of images (B, 3, R, R), in patches of `patch` pixels, or of token ids (B, L).

    at: (B,) int32, the token that is read out. embedding: patch embedding, positions, class token and, where it has
    one, the norm in front of the blocks; or token embedding and positions. readout: the last norm and the projection.
    stop: UNPROJECTED gives (B, W), what the projection would take; a block's number its input, (B, L, W).
    """
    weights = [matrices(embedding[0])] + embedding[1:] if patch else list(embedding)
    for layer in transformer.resblocks:
        attention, mlp = layer.attn, layer.mlp
        weights += [layer.ln_1.weight, layer.ln_1.bias, matrices(attention.in_proj_weight), attention.in_proj_bias,
                    matrices(attention.out_proj.weight), attention.out_proj.bias, layer.ln_2.weight, layer.ln_2.bias,
                    matrices(mlp.c_fc.weight), mlp.c_fc.bias, matrices(mlp.c_proj.weight), mlp.c_proj.bias]
    weights += readout[:2] + [matrices(readout[2])]
    batch, width, features = inputs.shape[0], transformer.width, readout[2].shape[1]
    length = embedding[1].shape[0] if patch else inputs.shape[1]
    shape = {FEATURES: (batch, features), UNPROJECTED: (batch, width)}.get(stop, (batch, length, width))
    data = {"length": length, "width": width, "heads": transformer.heads, "features": features, "stop": stop,
            "hidden": transformer.resblocks[0].mlp.c_fc.bias.shape[0], "norm_before": int(len(embedding) > 3),
            "activation": ACTIVATIONS.index(transformer.how.activation), "eps": transformer.how.eps,
            "layers": len(transformer.resblocks), "causal": int(transformer.causal),
            "resolution": inputs.shape[2] if patch else 0, "patch": patch}
    code = _SOURCE.replace("FIELDS", " ".join(f't.{name} = data["{name}"];' for name in data))
    return jt.code(shape, "float32", [inputs, at] + weights, cpu_header=source(__file__, "product.cpp", "tower.cpp"),
                   cpu_src=code.replace("KIND", _KIND[matrices.precision]),
                   data={**data, "at_once": max(1, round(_ROWS / length))})


def run_resnet(images: jt.Var, net: Any, matrices: Matrices) -> jt.Var:
    """Features (B, D) of images (B, 3, R, R) by a ModifiedResNet (modified_resnet.py)."""
    stages, pool = [net.layer1, net.layer2, net.layer3, net.layer4], net.attnpool
    convolutions: list[tuple[Any, Any]] = []  # and the norm behind each
    for part in (net, *(block for stage in stages for block in stage)):
        convolutions += [(part.conv1, part.bn1), (part.conv2, part.bn2), (part.conv3, part.bn3)]
        if part is not net and part.downsample is not None:
            convolutions.append(tuple(part.downsample))
    weights = [one for conv, norm in convolutions for one in (matrices(conv.weight), *norm.scale_and_shift())]
    weights.append(pool.positional_embedding)
    for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        weights += [matrices(linear.weight), linear.bias]
    data = {"width": net.width, "at_once": max(1, _NUMBERS // ((net.input_resolution // 2) ** 2 * net.width))}
    data.update({f"blocks{number}": len(stage) for number, stage in enumerate(stages, start=1)})
    return jt.code((images.shape[0], net.output_dim), "float32", [images] + weights,
                   cpu_header=source(__file__, "product.cpp", "tower.cpp", "resnet.cpp"),
                   cpu_src=_RESNET_SOURCE.replace("KIND", _KIND[matrices.precision]), data=data)
