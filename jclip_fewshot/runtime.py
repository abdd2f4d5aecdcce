from jclip_fewshot.backend import jt  # noqa: F401  the documented way to a Jittor that starts
