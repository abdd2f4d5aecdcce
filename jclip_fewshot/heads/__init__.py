"""The heads: one file a method. Features, labels and text rows in, logits out."""

from typing import Dict, Type

from jclip_fewshot.heads.base import Head, Shots
from jclip_fewshot.heads.gda import GDA
from jclip_fewshot.heads.proker import ProKeR
from jclip_fewshot.heads.text_profile import TextProfile
from jclip_fewshot.heads.tip_adapter import TipAdapter
from jclip_fewshot.heads.tip_x import TipX
from jclip_fewshot.heads.zero_shot import ZeroShot

# in the order of the results table
HEADS: Dict[str, Type[Head]] = {head.name: head for head in (
    ZeroShot, TipAdapter, TipX, GDA, ProKeR, TextProfile)}

__all__ = ["HEADS", "Head", "Shots"]
