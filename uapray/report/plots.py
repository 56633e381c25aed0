"""Curves as SVG that stands inside a page: no outside reference, no text of users, identifiers of its own."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from uapray.report.curves import Line

# Okabe and Ito 2008, that people with any colour vision tell apart; without yellow, too light for lines.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("", "5 2", "1.5 1.5")
INK, FAINT = "#3d4650", "#e3e7eb"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "uapray",  # equal curves, equal page
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True)
class Stroke:
    """How a line is drawn, in the plot and in its legend.

    Attributes:
        colour: ``#rrggbb``.
        dashes: As in ``stroke-dasharray``; empty: whole.
    """

    colour: str
    dashes: str


def stroke(index: int) -> Stroke:
    """Return the stroke of a figure's line: colours first, then dashes."""
    return Stroke(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])


def dashed(drawn: Stroke) -> str | tuple[int, list[float]]:
    """Return a stroke's dashes as matplotlib wants them."""
    return (0, [float(length) for length in drawn.dashes.split()]) if drawn.dashes else "solid"


def curve_svg(lines: Sequence[Line], *, rate_name: str, prefix: str) -> str:
    """Draw the best rate so far against image-gradients, as an ``<svg>`` element.

    Args:
        lines: In the order of their strokes; the median as a line, lowest to highest as a band.
        rate_name: Of the rate, for the axis.
        prefix: Goes before every identifier, so that plots on one page do not get at each other's.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.9))
        axes = figure.add_axes((0.115, 0.165, 0.84, 0.8))
        for index, line in enumerate(lines):
            _draw(axes, line, stroke(index), last=max(int(other.image_gradients[-1]) for other in lines))
        _label(axes, rate_name)
        body = io.StringIO()
        figure.savefig(body, format="svg", transparent=True, metadata={"Date": None})
    return inline(body.getvalue(), prefix)


def _draw(axes: Axes, line: Line, drawn: Stroke, last: int) -> None:
    # to the end of the longest search: what was found stays found
    at = [*line.image_gradients.tolist(), last]
    median, low, high = ([*rates.tolist(), rates[-1]] for rates in (line.median, line.low, line.high))
    if line.searches > 1:
        axes.fill_between(at, low, high, step="post", color=drawn.colour, alpha=0.15, linewidth=0)
    axes.step(at, median, where="post", color=drawn.colour, linestyle=dashed(drawn), linewidth=1.6)
    axes.plot(at[:1], median[:1], "o", color=drawn.colour, markersize=3)


def _label(axes: Axes, rate_name: str) -> None:
    axes.set_xlabel("image-gradients spent (images)")
    axes.set_xlim(left=0)
    in_percent(axes, "y", f"{rate_name} (% of images)")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def in_percent(axes: Axes, which: Literal["x", "y"], name: str, most: float = 1.0) -> None:
    """Let an axis show shares from 0 to ``most`` as per cent, with a faint grid behind."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axis.set_label_text(name)
    axis.set_view_interval(0, 1.02 * most, ignore=True)
    axis.set_major_locator(MaxNLocator(5, steps=[2, 2.5, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def inline(document: str, prefix: str) -> str:
    """Cut the ``<svg>`` element out of a document and make it fit for the inside of a page.

    It takes the page's fonts and width; a style sheet would rule the whole page, and so goes.
    """
    own = document[document.index("<svg") :]
    unwanted = r'<metadata>.*?</metadata>|<style.*?</style>| font-family: [^;]*;| (?:width|height)="[^"]*pt"'
    own = re.sub(unwanted, "", own, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", tag[0]), own)
