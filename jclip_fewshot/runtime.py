from jclip_fewshot.backend import jt  # noqa: F401  the documented way to a Jittor that starts
from jclip_fewshot.backend.runtime import on_cuda  # noqa: F401  the documented way to a Jittor that starts
from jclip_fewshot.heads.lp_plus_plus import start  # noqa: F401  the documented way to a Jittor that starts
