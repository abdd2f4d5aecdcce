"""Jittor: started on a chosen device, and the numeric operations that everything shares.

In: a device. Out: `jt`, started when first used. The only folder that imports Jittor; it may import storage,
console and errors, nothing else of the package.
"""

from jclip_fewshot.backend.runtime import exclusive, jt, on_cuda, start

__all__ = ["exclusive", "jt", "on_cuda", "start"]
