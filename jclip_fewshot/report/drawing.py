"""How a figure becomes a picture of the page: drawn with matplotlib, once for a desktop, once for a phone.

In the page a picture is an SVG whose text is text, so it takes the page's fonts; the dark one is the light one with
its colours exchanged. Colours after Okabe and Ito, "Color Universal Design", darkened until they are legible on white.
"""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
STYLE = Path(__file__).with_name("picture.mplstyle")
COLOURS: dict[Any, str] = {"text.color": INK, "axes.titlecolor": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED,
                           "ytick.color": MUTED, "axes.edgecolor": HAIR, "grid.color": HAIR}


class Variant(NamedTuple):
    """One drawing as SVG text, and its size in CSS pixels."""

    light: str
    width: int
    height: int

    @property
    def dark(self) -> str:
        """The same drawing for a dark page."""
        return re.sub("|".join(DARK), lambda found: DARK[found.group()], self.light)


class Picture(NamedTuple):
    """A picture for both widths; `alt` says in words what it shows."""

    name: str
    alt: str
    wide: Variant
    narrow: Variant
    png: bytes


def available() -> bool:
    """Return whether matplotlib is there, and new enough."""
    try:
        import matplotlib
    except ImportError:
        return False
    return matplotlib.__version_info__[:2] >= (3, 7)


def picture(name: str, alt: str, draw: Callable[[Any, bool], float]) -> Picture:
    """Draw both widths. draw(figure, wide) fills a matplotlib figure and returns its height in CSS pixels."""
    import matplotlib
    import matplotlib.pyplot as plt
    png, variants = io.BytesIO(), []
    with warnings.catch_warnings(), matplotlib.rc_context({"backend": "Agg", **COLOURS}, STYLE):
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the PNG's font lacks
        for wide in (True, False):
            figure = plt.figure(figsize=((WIDE if wide else NARROW) / 72, 1), layout="constrained")
            figure.set_figheight(draw(figure, wide) / 72)
            if wide:
                figure.savefig(png, format="png", dpi=144, facecolor=PAPER, metadata={"Software": None})
                figure.set_layout_engine("none")  # it is laid out already
            variants.append(_variant(figure))
            plt.close(figure)
    return Picture(name, alt, variants[0], variants[1], png.getvalue())


def _variant(figure: Any) -> Variant:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    size = dict(zip(("width", "height"), (round(72 * inches) for inches in figure.get_size_inches())))
    svg = text.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub('(width|height)="[^"]*"', lambda found: f'{found[1]}="{size[found[1]]}"', svg, count=2)
    svg = svg.replace('<g id="mesh', '<g shape-rendering="crispEdges" id="mesh')  # no seams between cells
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return Variant(re.sub(r"\n\s*", "\n", svg.replace("'DejaVu Sans'", FONTS)), **size)
