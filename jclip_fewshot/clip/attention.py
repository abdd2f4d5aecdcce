"""Multi-head attention between the projections: softmax(q kᵀ / √64) v, with a gradient.

Jittor's batched products run as plain loops on the CPU. There this is one operator (attention.cpp) with a gradient
of its own; elsewhere it is written in Jittor's operators. Tests hold the two to each other.

B sequences · Q queries · L tokens · W width · H heads, 64 wide each
"""

from __future__ import annotations

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import softmax_var
from jclip_fewshot.clip import cpu

HEAD = 64  # width of a head in every CLIP's transformer


def attend(q: jt.Var, kv: jt.Var, heads: int, seen: jt.Var | None = None) -> jt.Var:
    """q (B, Q, W), kv (B, L, 2W), keys first -> (B, Q, W); query i sees the first seen[b, i] keys, all where None."""
    if cpu.available() and q.shape[2] == heads * HEAD and str(q.dtype) == "float32":
        if seen is None:
            seen = jt.ones(q.shape[:2], "int32") * kv.shape[1]
        return _Attend.apply(q, kv, seen)
    return attend_plainly(q, kv, heads, seen)


def attend_plainly(q: jt.Var, kv: jt.Var, heads: int, seen: jt.Var | None = None) -> jt.Var:
    """`attend` in Jittor's own operators: on CUDA, and what tests compare with."""
    batch, queries, width = q.shape
    q, = split_heads(q, 1, heads)
    k, v = split_heads(kv, 2, heads)
    scores = jt.matmul(q * (width // heads) ** -0.5, k.transpose(0, 1, 3, 2))  # (B, H, Q, L)
    if seen is not None:
        hidden = jt.arange(k.shape[2]).reshape((1, 1, 1, -1)) >= seen.reshape((batch, 1, queries, 1))
        scores = jt.ternary(hidden.broadcast(scores.shape),
                            jt.float32(-1e4).cast(scores.dtype).broadcast(scores.shape), scores)
    return jt.matmul(softmax_var(scores), v).transpose(0, 2, 1, 3).reshape((batch, queries, width))


def split_heads(x: jt.Var, parts: int, heads: int) -> list:
    """(B, L, parts*W) -> parts times (B, H, L, W/H)."""
    batch, length, width = x.shape
    x = x.reshape((batch, length, parts, heads, width // parts // heads)).transpose(2, 0, 3, 1, 4)
    return [x[part] for part in range(parts)]


_FORWARD = """
    jclip::attend_all(in0_shape0, in0_shape2 / jclip::HEAD, in0_shape1, in1_shape1, in0_p, in1_p, in2_p,
                      out0_p, out1_p);
"""
_BACKWARD = """
    jclip::attend_back(in0_shape0, in0_shape2 / jclip::HEAD, in0_shape1, in1_shape1, in0_p, in1_p, in2_p, in3_p,
                       out0_p, out1_p);
"""


class _Attend(jt.Function):
    def execute(self, q, kv, seen):
        batch, queries, width = q.shape
        probs = (batch, width // HEAD, queries, kv.shape[1])
        out, self.probs = jt.code([q.shape, probs], ["float32", "float32"], [q, kv, seen],
                                  cpu_header=cpu.header("product.cpp", "tower.cpp", "attention.cpp"), cpu_src=_FORWARD)
        self.q, self.kv = q, kv
        return out

    def grad(self, gradient):
        dq, dkv = jt.code([self.q.shape, self.kv.shape], ["float32", "float32"],
                          [self.q, self.kv, self.probs, gradient],
                          cpu_header=cpu.header("product.cpp", "tower.cpp", "attention.cpp"), cpu_src=_BACKWARD)
        return dq, dkv, None
