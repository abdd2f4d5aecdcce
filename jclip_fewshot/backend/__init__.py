"""Jittor, started when first used, and what everything computes with it; the only folder that imports it."""

from jclip_fewshot.backend.runtime import exclusive, jt, on_cuda, start

__all__ = ["exclusive", "jt", "on_cuda", "start"]
