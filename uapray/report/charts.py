"""Rates as pictures that stand alone: bars, lines over a number, or a square of numbers."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from textwrap import fill, wrap
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from uapray.report.plots import COLOURS, INK, STYLE, dashed, in_percent, stroke

Form = Literal["bars", "lines", "square"]
ENDINGS = (".png", ".svg", ".pdf")
_BAR = 0.8  # of the room that a place has
_PALE = 0.75  # so that whiskers and marks are seen on a bar
_DARK = 0.55  # from there on numbers are white
_MANY = 4  # more names than that are turned
_LONG = 24  # letters of a name in one line
_MARKERS = "os^Dv<>"
_DASHES = ((0, (4, 3)), (0, (1, 2)))
_HATCHES = (None, "///", "...")
_MARKS: tuple[
    dict[str, Any], ...
] = (  # how the marks beside a rate are drawn, in the order in which a chart names them
    {"marker": "D", "markersize": 5, "markerfacecolor": "white", "markeredgecolor": INK},
    {"marker": "|", "markersize": 14, "markeredgewidth": 2, "markeredgecolor": INK},
)


@dataclass(frozen=True, slots=True)
class Point:
    """A rate.

    Attributes:
        place: Where on the axis it stands: a name, or in lines a number.
        series: What its colour says.
        value: The rate, a share.
        interval: Its limits at 95 %; None: it has none.
        marks: Shares to compare it with, by name.
    """

    place: str | float
    series: str
    value: float
    interval: tuple[float, float] | None = None
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Panel:
    """Rates that share their axes; places are in the order in which they come."""

    title: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture.

    Attributes:
        form: How it is drawn.
        title: What is shown.
        note: Of what, in small print.
        rate: Name of the rates.
        along: Name of the axis of places; empty: they say it themselves.
        across: Name of the series, for a square.
        series: All of them, in the order of their colours.
        panels: At least one.
        logarithmic: Whether the axis of places is; for lines.
    """

    form: Form
    title: str
    note: str
    rate: str
    along: str
    across: str
    series: tuple[str, ...]
    panels: tuple[Panel, ...]
    logarithmic: bool = False


def draw(chart: Chart, ending: str) -> bytes:
    """Return a chart as a file.

    Args:
        chart: What is drawn.
        ending: Of the file's name, one of `ENDINGS`.
    """
    with mpl.rc_context(STYLE):
        figure = FORMS[chart.form](chart)
        body = io.BytesIO()
        stamp = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}[ending]  # equal charts, equal files
        figure.savefig(body, format=ending[1:], dpi=120, metadata={stamp: None})
    return _in_few_colours(body) if ending == ".png" else body.getvalue()


def _in_few_colours(png: io.BytesIO) -> bytes:
    """Return a picture of few colours, which a chart is, in a third of the bytes."""
    body = io.BytesIO()
    Image.open(png).convert("RGB").quantize(128).save(body, "PNG", optimize=True)
    return body.getvalue()


def _bars(chart: Chart) -> Figure:
    marks = _marks(chart)
    rows = [len(_places(panel)) * len(_series_of(chart, panel)) for panel in chart.panels]
    figure, all_axes = _figure(chart, height=0.8 + 0.27 * max(*rows, 4), width=4.6)
    for panel, axes in zip(chart.panels, all_axes, strict=False):
        mine, places = _series_of(chart, panel), _places(panel)
        thick = _BAR / len(mine)
        for point in panel.points:
            at = places.index(point.place) - _BAR / 2 + thick * (mine.index(point.series) + 0.5)
            axes.barh(at, point.value, height=0.88 * thick, **_fill(chart, point.series))
            _whiskers(axes, point, "x", at, INK)
            for name, value in point.marks.items():
                axes.plot([value], [at], linestyle="none", **_MARKS[marks.index(name) % len(_MARKS)])
            beside: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "va": "center",
                "fontsize": 8,
                "color": INK,
            }
            axes.annotate(f"{100 * point.value:.1f}", (1.01, at), **beside)
        axes.set_yticks(range(len(places)), [fill(str(place), _LONG, break_long_words=False) for place in places])
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        in_percent(axes, "x", chart.rate, _most(chart))
        axes.grid(visible=False, axis="y")
    handles = [Patch(label=name, **_fill(chart, name)) for name in chart.series]
    styles = zip(marks, cycle(_MARKS), strict=False)
    return _with_legend(
        figure, [*handles, *(Line2D([], [], linestyle="none", label=name, **how) for name, how in styles)]
    )


def _lines(chart: Chart) -> Figure:
    marks = dict(zip(_marks(chart), cycle(_DASHES), strict=False))
    how = {name: _line_style(index) for index, name in enumerate(chart.series)}
    figure, all_axes = _figure(chart, height=3.3, width=5.2)
    for panel, axes in zip(chart.panels, all_axes, strict=False):
        for name in _series_of(chart, panel):
            points = sorted((one for one in panel.points if one.series == name), key=lambda one: float(one.place))
            axes.plot([float(one.place) for one in points], [one.value for one in points], **how[name])
            for one in points:
                _whiskers(axes, one, "y", float(one.place), how[name]["color"])
            for mark, dashes in marks.items():
                known = [(float(one.place), one.marks[mark]) for one in points if mark in one.marks]
                axes.plot(*zip(*known, strict=True), color=how[name]["color"], linestyle=dashes, linewidth=1.1)
        if chart.logarithmic:
            places = sorted(float(place) for place in _places(panel))
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{place:,.0f}" for place in places])
            axes.minorticks_off()
        else:
            axes.set_xlim(left=0)
        axes.set_xlabel(chart.along)
        in_percent(axes, "y", chart.rate, _most(chart))
    handles = [Line2D([], [], label=name, **style) for name, style in how.items()]
    handles += [
        Line2D([], [], color=INK, linestyle=dashes, linewidth=1.1, label=mark) for mark, dashes in marks.items()
    ]
    return _with_legend(figure, handles)


def _line_style(index: int) -> dict[str, Any]:
    drawn = stroke(index)
    return {
        "color": drawn.colour,
        "linestyle": dashed(drawn),
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5,
    }


def _square(chart: Chart) -> Figure:
    side = len(chart.series)
    figure, all_axes = _figure(chart, height=1.2 + 0.62 * side, width=2.6 + 0.95 * side)
    for panel, axes in zip(chart.panels, all_axes, strict=False):
        rows = _series_of(chart, panel)
        columns = sorted(_places(panel), key=lambda place: (place not in rows, place in rows and rows.index(place)))
        shares = np.full((len(rows), len(columns)), np.nan)
        for point in panel.points:
            row, column = rows.index(point.series), columns.index(point.place)
            shares[row, column] = point.value
            inside: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
            inside["color"] = "white" if point.value > _DARK else INK
            axes.annotate(f"{100 * point.value:.1f}", (column, row), xytext=(0, 5), fontsize=11, **inside)
            if point.interval is not None:
                said = " to ".join(f"{100 * limit:.1f}" for limit in point.interval)
                axes.annotate(said, (column, row), xytext=(0, -9), fontsize=7, **inside)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if side > _MANY else {}
        axes.set_xticks(range(len(columns)), [str(place) for place in columns], **turned)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_xlabel(chart.along)
        axes.set_ylabel(chart.across)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.05)
        bar.outline.set_visible(False)
        in_percent(bar.ax, "y", chart.rate)
        bar.ax.grid(visible=False)
    return figure


FORMS: Mapping[Form, Callable[[Chart], Figure]] = {"bars": _bars, "lines": _lines, "square": _square}


def _figure(chart: Chart, *, height: float, width: float) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with title, note, and axes for its panels, two side by side, each of that size in inches."""
    columns = min(2, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    width = max(6.6, width * columns)
    title, note = wrap(chart.title, int(10 * width)), wrap(chart.note, int(15.5 * width))
    head = 0.22 + 0.2 * len(title) + 0.15 * len(note)
    height = rows * height + 0.5 + head
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head / height))
    figure = Figure(figsize=(width, height), layout=layout)
    corner: dict[str, Any] = {"x": 0.1 / width, "va": "top"}
    figure.text(y=1 - 0.08 / height, s="\n".join(title), fontsize=11.5, fontweight="bold", color=INK, **corner)
    below = 0.12 + 0.2 * len(title)
    figure.text(y=1 - below / height, s="\n".join(note), fontsize=8, color="#5b6670", **corner)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(all_axes, chart.panels, strict=False):
        axes.set_title(panel.title, fontsize=9.5, color=INK)
    for axes in all_axes[len(chart.panels) :]:
        axes.set_visible(False)
    return figure, all_axes


def _with_legend(figure: Figure, handles: Sequence[Any]) -> Figure:
    """Write a legend below, in one line if it fits."""
    length = sum(len(handle.get_label()) + 7 for handle in handles)
    columns = len(handles) if length < 11 * figure.get_size_inches()[0] else math.ceil(len(handles) / 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    return figure


def _whiskers(axes: Axes, point: Point, along: Literal["x", "y"], at: float, colour: str) -> None:
    if point.interval is None:
        return
    low, high = point.interval
    reach: dict[str, Any] = {f"{along}err": [[point.value - low], [high - point.value]]}
    x, y = (point.value, at) if along == "x" else (at, point.value)
    axes.errorbar(x, y, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2.5, **reach)


def _fill(chart: Chart, series: str) -> dict[str, Any]:
    """Return how the bars of a series are filled: colours first, then hatches."""
    index = chart.series.index(series)
    hatch = _HATCHES[index // len(COLOURS) % len(_HATCHES)]
    return {"facecolor": stroke(index).colour, "alpha": _PALE, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def _series_of(chart: Chart, panel: Panel) -> list[str]:
    own = {point.series for point in panel.points}
    return [name for name in chart.series if name in own]


def _places(panel: Panel) -> list[str | float]:
    return list(dict.fromkeys(point.place for point in panel.points))


def _marks(chart: Chart) -> list[str]:
    return list(dict.fromkeys(name for panel in chart.panels for point in panel.points for name in point.marks))


def _most(chart: Chart) -> float:
    """Return where the axis of rates ends: the next tenth after all that is drawn."""
    points = [point for panel in chart.panels for point in panel.points]
    highest = max(max(point.value, *(point.interval or ()), *point.marks.values(), 0.0) for point in points)
    return min(1.0, math.ceil(10 * highest + 0.2) / 10)
