"""matplotlib's figures as SVG that stands in the page: its text is text, its colours are those of the page's style.

matplotlib writes style attributes, which the page's content security policy refuses, and fixed colours, which suit
either a light or a dark page: both become presentation attributes that name the style's variables.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = ("ink", "muted", "line", "paper", "band", "blue", "orange", "green", "red", "purple")
COLOURS = {name: f"#0101{k:02x}" for k, name in enumerate(_NAMES)}  # stand-ins, replaced when the SVG is done
INK, MUTED, LINE, PAPER, BAND, BLUE, ORANGE, GREEN, RED, PURPLE = COLOURS.values()
_BACK = {stand_in: f"var(--{name})" for name, stand_in in COLOURS.items()}
_SVG = "http://www.w3.org/2000/svg"
_WIDTH, _HEIGHT = 5.4, 3.2  # inches of 72 points; the page scales them, so that text stays readable on a phone
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "lorasize", "text.parse_math": False, "font.size": 11,
    "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.8, "legend.frameon": False, "legend.fontsize": 10,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "lines.linewidth": 2.0, "axes.facecolor": "none",
    "figure.facecolor": "none", "axes.formatter.use_mathtext": False, "axes.unicode_minus": True,
}  # fmt: skip


def draw(title: str, paint: Callable[[Axes], None], height: float = _HEIGHT) -> str:
    """An SVG element of one pair of axes, painted by `paint`; `title` is what a screen reader says of it."""
    stream = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is drawn by the reader's
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.subplots())
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(stream.getvalue(), title)


def _inline(document: str, title: str) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style") or not isinstance(child.tag, str):
                parent.remove(child)
    for element in root.iter():
        for name, value in _presentation(element.attrib.pop("style", "")):
            element.set(name, value)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")


def _presentation(style: str) -> list[tuple[str, str]]:
    """A style attribute as presentation attributes. Of `font`, only the size: the family is the page's."""
    attributes = []
    for part in style.split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            name, value = "font-size", size.group(1) if size else "11"
        if name and value and name != "font-family":
            attributes.append((name, _BACK.get(value, value)))
    return attributes
