"""Figures of matplotlib as small SVG pictures that follow the reader's light or dark mode.

A figure is drawn in the colours of COLOURS, each of which stands in the SVG for a variable that the two modes set; a
reader without such modes sees the middle tones, which can be read on both. What may change here: the palette.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

WIDTH = 4.6  # inches: on a phone a picture is as wide as the screen, and its letters can still be read
# name -> (middle tone, light mode, dark mode); the series after Okabe and Ito, whom colour-blind readers tell apart
COLOURS = {
    "ink": ("#7a818a", "#24292f", "#d6dbe1"),
    "faint": ("#9aa0a8", "#8a9099", "#6e7681"),
    "grid": ("#b4b9c0", "#dfe3e8", "#343b44"),
    "blue": ("#3b8fcb", "#0072b2", "#58b4ee"),
    "orange": ("#d98a1b", "#c46a00", "#f0a840"),
    "green": ("#1f9e77", "#007f5c", "#3cc79b"),
    "pink": ("#c274a4", "#b0508a", "#e39ac6"),
}
INK, FAINT, GRID, BLUE, ORANGE, GREEN, PINK = (tones[0] for tones in COLOURS.values())
MODALITY_COLOURS = {"text": BLUE, "audio": ORANGE, "vision": GREEN}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mmsa", "text.parse_math": False, "font.size": 9, "axes.titlesize": 9,
    "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "axes.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.titlecolor": INK, "xtick.color": FAINT,
    "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False, "font.family": "DejaVu Sans", "axes.axisbelow": True, "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its title, a caption, what it shows in words, and the picture itself as a data URI."""

    title: str
    caption: str
    alt: str
    source: str


def available() -> bool:
    """Whether pictures can be drawn: matplotlib is an extra."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib in the page's style inside the block."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's own fonts draw the letters
        yield


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of the page's width and its axes (rows, columns), without a window or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False, **options)


def data_uri(made: Any) -> str:
    """The figure as a data URI."""
    return "data:image/svg+xml," + quote(svg(made), safe=" /:;,.=()'!*+-_~@?&$[]|^`{}\n")


def svg(made: Any) -> str:
    """The figure as SVG: without metadata and needless digits, its colours as variables of the two modes."""
    stream = io.StringIO()
    made.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, dpi=140)
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.S)
    text = re.sub(r"<[^>]+>", lambda tag: _tag(tag[0]), text)
    text = re.sub(r">\s*\n\s*<", "><", text).strip()
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{_modes()}</style>", text, count=1)


def _tag(tag: str) -> str:
    if "base64" not in tag:
        tag = re.sub(r"(\d+\.\d\d)\d+", r"\1", re.sub(r"\s+", " ", tag))
    tag = re.sub(r"(font: [^;'\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", tag)
    for name, tones in COLOURS.items():
        tag = tag.replace(tones[0], f"var(--{name})")
    return tag


def _modes() -> str:
    def variables(tone: int) -> str:
        return ":root{" + ";".join(f"--{name}:{tones[tone]}" for name, tones in COLOURS.items()) + "}"

    return "".join([variables(0), *(f"@media (prefers-color-scheme:{mode}){{{variables(tone)}}}"
                                    for tone, mode in ((1, "light"), (2, "dark")))])


def short(text: str, width: int = 30) -> str:
    """A label that fits beside an axis."""
    return textwrap.shorten(text, width, placeholder="…") if " " in text else (
        text if len(text) <= width else text[:width - 1] + "…")
