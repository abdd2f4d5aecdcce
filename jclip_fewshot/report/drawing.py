"""How a figure becomes a picture of the page: drawn with matplotlib, once for a desktop, once for a phone.

In the page a picture is an SVG whose text is text, so it takes the page's fonts; the dark one is the light
one with its colours exchanged. Beside the page lies a PNG of each for other uses.

Colours after Okabe and Ito, "Color Universal Design", darkened until they are legible on white; nothing is
said by colour alone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# light → dark
INK, MUTED, HAIR, PAPER = "#1c2127", "#5c6570", "#d6d8d3", "#fdfdfb"
BLUE, VERMILLION, GREEN, AMBER, PURPLE = "#0072b2", "#b84500", "#007a5c", "#8f6400", "#94487f"
DARK = {INK: "#e8eaec", MUTED: "#a4acb5", HAIR: "#3b424a", PAPER: "#16191d", BLUE: "#56b4e9",
        VERMILLION: "#ff9a63", GREEN: "#45cba0", AMBER: "#e8bf3c", PURPLE: "#dc9dc8"}
RAMP = ["#eef3f7", "#d9e6f0", "#c2d8e8", "#a9c9e0", "#8fb9d7", "#74a8cd", "#5896c1", "#3f83b3", "#2a70a3", "#185d91",
        "#0a4a7d", "#033866"]
DARK_RAMP = ["#1d242b", "#1e2d39", "#1f3748", "#204257", "#224e67", "#255a77", "#2a6788", "#33769a", "#4086ad",
             "#5399c1", "#70afd6", "#9acbee"]
DARK.update(zip(RAMP, DARK_RAMP))
DOMAIN_COLOURS = BLUE, VERMILLION, GREEN, PURPLE, AMBER
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
WIDE, NARROW = 920, 340  # CSS pixels


@dataclass(frozen=True)
class Variant:
    """One drawing as SVG text, and its size in CSS pixels."""

    light: str
    width: int
    height: int

    @property
    def dark(self) -> str:
        """The same drawing for a dark page."""
        return re.sub("|".join(DARK), lambda found: DARK[found.group()], self.light)


@dataclass(frozen=True)
class Picture:
    """A picture for both widths; `alt` says in words what it shows."""

    name: str
    alt: str
    caption: str
    wide: Variant
    narrow: Variant
    png: bytes


def available() -> bool:
    """Whether matplotlib is there, and new enough."""
    try:
        import matplotlib
    except ImportError:
        return False
    return matplotlib.__version_info__[:2] >= (3, 7)


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings while a picture is drawn."""
    import matplotlib
    with warnings.catch_warnings(), matplotlib.rc_context({
            "backend": "Agg",
            "font.family": "DejaVu Sans", "font.size": 12.5, "legend.fontsize": 12, "legend.frameon": False,
            "axes.titlesize": 13, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 12,
            "xtick.labelsize": 11.5, "ytick.labelsize": 12, "xtick.major.size": 0, "ytick.major.size": 0,
            "xtick.major.pad": 5, "ytick.major.pad": 5, "axes.facecolor": "none", "figure.facecolor": "none",
            "text.color": INK, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "xtick.color": MUTED,
            "ytick.color": MUTED, "axes.edgecolor": HAIR, "grid.color": HAIR, "grid.linewidth": 0.8,
            "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
            "axes.spines.left": False, "axes.axisbelow": True, "lines.linewidth": 1.8,
            "svg.fonttype": "none", "svg.hashsalt": "jclip_fewshot",  # the same picture makes the same bytes
            "text.parse_math": False}):  # a class name may hold a $
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the PNG's font lacks
        yield


def picture(name: str, alt: str, caption: str, draw: Callable[[bool], Any]) -> Picture:
    """Draw both widths. draw(wide) returns a matplotlib figure, whose inches are 72 CSS pixels."""
    import matplotlib.pyplot as plt
    variants: list[Variant] = []
    png = io.BytesIO()
    with style():
        for wide in (True, False):
            figure = draw(wide)
            if wide:
                figure.savefig(png, format="png", dpi=144, facecolor=PAPER, metadata={"Software": None})
                figure.set_layout_engine("none")  # it is laid out already
            variants.append(_variant(figure))
            plt.close(figure)
    return Picture(name, alt, caption, variants[0], variants[1], png.getvalue())


def _variant(figure) -> Variant:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (int(round(72 * inches)) for inches in figure.get_size_inches())
    svg = text.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', rf'<svg \1width="{width}"', svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', rf'<svg \1height="{height}"', svg, count=1)
    svg = re.sub(r'<g id="mesh', r'<g shape-rendering="crispEdges" id="mesh', svg)  # no seams between cells
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", FONTS)
    return Variant(re.sub(r"\n\s*", "\n", svg), width, height)


def new_figure(wide: bool, height: float, **layout):
    """A figure as wide as a desktop's page or a phone's; `height` in CSS pixels."""
    import matplotlib.pyplot as plt
    return plt.figure(figsize=((WIDE if wide else NARROW) / 72, height / 72), layout="constrained", **layout)
