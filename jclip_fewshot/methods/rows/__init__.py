"""The heads: one file a method. Features, labels and text rows in, logits out.

May import task and backend.numerics; knows no paths, images, configs, files, nor another head's answers. clip_dn, calip
and sus_x answer without shots: they are functions, not in the table.
"""

from jclip_fewshot.methods.rows.base import Head
from jclip_fewshot.methods.rows.clap import CLAP
from jclip_fewshot.methods.rows.clip_adapter import ClipAdapter
from jclip_fewshot.methods.rows.cross_modal import CrossModal
from jclip_fewshot.methods.rows.gda import GDA
from jclip_fewshot.methods.rows.jclip_adapter import JclipAdapter
from jclip_fewshot.methods.rows.linear_probe import LinearProbe
from jclip_fewshot.methods.rows.lp_plus_plus import LPPlusPlus
from jclip_fewshot.methods.rows.proker import ProKeR
from jclip_fewshot.methods.rows.text_profile import TextProfile
from jclip_fewshot.methods.rows.tip_adapter import TipAdapter
from jclip_fewshot.methods.rows.tip_adapter_f import TipAdapterF
from jclip_fewshot.methods.rows.tip_x import TipX
from jclip_fewshot.methods.rows.vicinal import Vicinal
from jclip_fewshot.methods.rows.zero_shot import ZeroShot

# in the order of the results table
HEADS: dict[str, type[Head]] = {head.name: head for head in (
    ZeroShot, LinearProbe, CrossModal, ClipAdapter, JclipAdapter, TipAdapter, TipAdapterF, TipX, GDA, ProKeR, CLAP,
    LPPlusPlus, TextProfile, Vicinal)}

# no gradient descent: seconds where the others take a minute
TRAINING_FREE = ("zero_shot", "tip_adapter", "tip_x", "gda", "proker", "text_profile")

# Beside the others these change no answer for the better and take as long as all of those (docs/ensemble.md)
LEFT_OUT = ("cross_modal", "clip_adapter", "tip_adapter_f", "lp_plus_plus")
DEFAULT = tuple(name for name in HEADS if name not in LEFT_OUT)

__all__ = ["DEFAULT", "HEADS", "LEFT_OUT", "TRAINING_FREE", "Head"]
