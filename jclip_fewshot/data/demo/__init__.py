"""The built-in contest: a small drawn world in the contest's own layout, and a small CLIP to go with it."""

from jclip_fewshot.data.demo.contest import CHECKPOINT, SECOND_CHECKPOINT, SEED, make_contest, prepare, settings

__all__ = ["CHECKPOINT", "SECOND_CHECKPOINT", "SEED", "make_contest", "prepare", "settings"]
