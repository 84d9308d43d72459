"""Matplotlib figures as SVG text that follows the page's colours, light or dark. No pyplot, no global state."""

from __future__ import annotations

import io
import re
from typing import Any

from ...ase_calcs.errors import require

STUDENT = "#ea7a1a"
TEACHER = "#3f83f8"
NEUTRAL = "#8a6df0"  # neither of the two
TRAIN, VALIDATION = "#8a8f98", "#1aa37a"
GUIDE = "#8a8f98"  # lines that help the eye

# Placeholders that matplotlib takes for colours and the page replaces by its own.
_INK, _GRID = "#0a0b0c", "#d0d1d2"
_RC = {
    "font.family": "sans-serif",
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.8,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
}


def matplotlib() -> Any:
    """The matplotlib package, or one sentence on how to install it."""
    module = require("matplotlib", extra="train", purpose="draw the report")
    for part in ("figure", "backends.backend_svg", "colors", "ticker"):
        require(f"matplotlib.{part}", extra="train", purpose="draw the report")
    return module


def draw(paint: Any, width: float, height: float, *, rows: int = 1, columns: int = 1, name: str, **grid: Any) -> str:
    """Draw a figure and return it as inline SVG.

    Parameters
    ----------
    paint
        Called with the array of axes (rows, columns).
    width, height
        Inches; on the page the figure scales with its column.
    name
        Prefix of the identifiers inside, unique on the page.
    grid
        To `Figure.subplots`.
    """
    mpl = matplotlib()
    with mpl.rc_context(_RC):
        figure = mpl.figure.Figure(figsize=(width, height), dpi=72, layout="constrained")
        paint(figure.subplots(rows, columns, squeeze=False, **grid))
        buffer = io.StringIO()
        mpl.backends.backend_svg.FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", dpi=150)
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Keep the <svg> element alone, scalable, in the page's colours, with identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    # The page's own font, in the sizes and weights that matplotlib chose.
    svg = re.sub(r'font: ((?:\w+ )*)([\d.]+px) [^;"]*', _font, svg)
    return svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)").strip()


def _font(found: re.Match[str]) -> str:
    weight = re.search(r"bold|\b\d{3}\b", found.group(1))
    return f"font-family: inherit; font-size: {found.group(2)}" + (f"; font-weight: {weight.group()}" if weight else "")


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return str(text).replace("$", r"\$")
