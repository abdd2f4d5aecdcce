"""Jittor: started on a chosen device, and the numeric operations that everything shares.

In: a device. Out: `jt`, started when first used. The only folder that imports Jittor; it may import storage,
console and errors, nothing else of the package.
"""

from jclip_fewshot.backend.runtime import jt, on_cuda, start

__all__ = ["jt", "on_cuda", "start"]
