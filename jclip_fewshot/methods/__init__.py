"""Everything that learns from a task and answers images: one contract (base.py), one table, one file a method.

rows: methods on finished rows. towers: on encoders and activations. unlabelled: on images without labels.
"""

from jclip_fewshot.methods.base import Method
from jclip_fewshot.methods.rows.clap import CLAP
from jclip_fewshot.methods.rows.clip_adapter import ClipAdapter
from jclip_fewshot.methods.rows.cross_modal import CrossModal
from jclip_fewshot.methods.rows.gda import GDA
from jclip_fewshot.methods.rows.jclip_adapter import JclipAdapter
from jclip_fewshot.methods.rows.linear_probe import LinearProbe
from jclip_fewshot.methods.rows.lp_plus_plus import LPPlusPlus
from jclip_fewshot.methods.rows.proker import ProKeR
from jclip_fewshot.methods.rows.sus_x import SusX, SusXF
from jclip_fewshot.methods.rows.text_profile import TextProfile
from jclip_fewshot.methods.rows.tip_adapter import TipAdapter
from jclip_fewshot.methods.rows.tip_adapter_f import TipAdapterF
from jclip_fewshot.methods.rows.tip_x import TipX
from jclip_fewshot.methods.rows.vicinal import Vicinal
from jclip_fewshot.methods.rows.zero_shot import ZeroShot
from jclip_fewshot.methods.towers.coop import CoCoOp, CoOp
from jclip_fewshot.methods.towers.full_towers import ClipLora, TwoStage
from jclip_fewshot.methods.towers.last_blocks import LastBlocks
from jclip_fewshot.methods.towers.prolip import ProLIP
from jclip_fewshot.methods.towers.token_gda import TokenGDA
from jclip_fewshot.methods.towers.visual_prompts import VPT
from jclip_fewshot.methods.unlabelled.calip import CALIP
from jclip_fewshot.methods.unlabelled.clip_dn import ClipDn
from jclip_fewshot.methods.unlabelled.clip_pr import ClipPr, ClipPrTower
from jclip_fewshot.methods.unlabelled.fixmatch import FixMatch
from jclip_fewshot.methods.unlabelled.lafter import Lafter, LafterText
from jclip_fewshot.methods.unlabelled.upl import Upl

# in the order of the results table
METHODS: dict[str, type[Method]] = {method.name: method for method in (
    ZeroShot, LinearProbe, CrossModal, ClipAdapter, JclipAdapter, TipAdapter, TipAdapterF, TipX, GDA, ProKeR, CLAP,
    LPPlusPlus, TextProfile, Vicinal, SusX, SusXF,
    ClipDn, CALIP, Upl, LafterText, Lafter, ClipPr, ClipPrTower, FixMatch,
    TokenGDA, LastBlocks, ProLIP, VPT, CoOp, CoCoOp, ClipLora, TwoStage)}

__all__ = ["METHODS", "Method"]
