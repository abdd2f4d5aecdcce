"""The losses that training descends: cross-entropy and the divergence of two softmaxes, of N rows and K classes.

On the CPU each is one operator (losses.cpp), on CUDA several of Jittor's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jclip_fewshot.backend import jt
from jclip_fewshot.backend.cpp import source
from jclip_fewshot.backend.numerics import fused, log_softmax_var


def cross_entropy(logits: jt.Var, labels: jt.Var) -> jt.Var:
    """Return the mean −log softmax(logits)[label] of (N, K) logits, in nats; labels (N,) int32."""
    return label_losses(logits, labels).sum() / float(logits.shape[0])


def label_losses(logits: jt.Var, labels: jt.Var, scale: float = 1.0) -> jt.Var:
    """Return −log softmax(scale · logits)[label] of each row, (N,) in nats; logits (N, K), labels (N,) int32."""
    if fused(logits):
        call = 'jclip::label_losses(in0_shape0, in0_shape1, data["scale"], in0_p, in1_p, out0_p, out1_p);'
        return _losses(logits, [logits, labels], call, scale=float(scale))
    at_label = (jt.index(logits.shape, 1) == labels.unsqueeze(1)).float32()
    return -(log_softmax_var(scale * logits) * at_label).sum(1)


def softmax_kl(target: jt.Var, logits: jt.Var) -> jt.Var:
    """Return the mean KL(softmax(target) ‖ softmax(logits)) of two (N, K), in nats; target is not trained."""
    target = target.stop_grad()
    if fused(logits):
        call = "jclip::divergences(in0_shape0, in0_shape1, in0_p, in1_p, out0_p, out1_p);"
        return _losses(logits, [target, logits], call).sum() / float(logits.shape[0])
    log_p = log_softmax_var(target)
    return (jt.exp(log_p) * (log_p - log_softmax_var(logits))).sum(1).mean()


def _losses(logits: jt.Var, inputs: list[jt.Var], call: str, **data: float) -> jt.Var:
    """Losses (N,) by an operator that also computes their gradients by the logits (N, K)."""
    outputs = jt.code([logits.shape[:1], logits.shape], ["float32", "float32"], inputs,
                      cpu_header=source(__file__, "losses.cpp"), data=data, cpu_src=call)
    return _with_gradient().apply(logits, *outputs)


@cache  # a class of Jittor's: not before Jittor runs
def _with_gradient() -> Any:
    """apply(logits, losses, errors): the losses (N,), whose gradients by the logits are the errors (N, K)."""

    class WithGradient(jt.Function):
        def execute(self, logits, losses, errors):  # noqa: ARG002  whose gradient it is
            self.errors = errors
            return losses.clone()

        def grad(self, gradient):
            return gradient.unsqueeze(1) * self.errors, None, None

    return WithGradient
