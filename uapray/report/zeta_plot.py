"""Curves over zeta as pictures, with the zeta marked at which half is fooled."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uapray.curves import Curve
from uapray.report.plots import FAINT, STYLE, Stroke, dashed, in_percent, inline, stroke


def zeta_png(curve: Curve, title: str) -> bytes:
    """Draw one curve with the Wilson intervals of its rates and the interval of zeta50."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        drawn = stroke(0)
        rates = [rate.share for rate in curve.rates]
        limits = [rate.interval for rate in curve.rates]
        axes.fill_between(
            curve.zetas, [low for low, _ in limits], [high for _, high in limits], color=drawn.colour, alpha=0.15
        )
        draw_curve(axes, curve.zetas, rates, curve.zeta50.zeta, drawn)
        if curve.zeta50.zeta is not None:
            high = curve.zetas[-1] if curve.zeta50.high is None else curve.zeta50.high
            axes.plot([curve.zeta50.low, high], [0.5, 0.5], color=drawn.colour, linewidth=3, alpha=0.4)
        axes.axhline(curve.ceiling, color="#3d4650", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate("ceiling", (0, curve.ceiling), xytext=(3, 3), textcoords="offset points")
        axes.set_title(title, fontsize=9)
        label(axes)
        body = io.BytesIO()
        figure.savefig(body, format="png", dpi=150)
    return body.getvalue()


def zeta_svg(curves: Sequence[tuple[Sequence[float], Sequence[float], float | None]], *, prefix: str) -> str:
    """Draw curves as an ``<svg>`` element: zetas, rates and zeta50 of each, in the order of their strokes.

    Args:
        curves: At least one.
        prefix: Goes before every identifier, as in ``curve_svg``.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.9))
        axes = figure.add_axes((0.115, 0.165, 0.84, 0.8))
        for index, (zetas, rates, zeta50) in enumerate(curves):
            draw_curve(axes, zetas, rates, zeta50, stroke(index))
        label(axes)
        body = io.StringIO()
        figure.savefig(body, format="svg", transparent=True, metadata={"Date": None})
    return inline(body.getvalue(), prefix)


def draw_curve(axes: Axes, zetas: Sequence[float], rates: Sequence[float], zeta50: float | None, drawn: Stroke) -> None:
    """Draw the rates from (0, 0) on, and a mark where half is fooled."""
    axes.plot([0, *zetas], [0, *rates], color=drawn.colour, linestyle=dashed(drawn), linewidth=1.6)
    axes.plot(zetas, rates, "o", color=drawn.colour, markersize=3)
    if zeta50 is not None:
        axes.plot([zeta50, zeta50], [0, 0.5], color=drawn.colour, linewidth=1, linestyle=(0, (1, 1)))
        axes.plot([zeta50], [0.5], "D", color=drawn.colour, markersize=5)


def label(axes: Axes) -> None:
    """Name the axes and mark one half."""
    axes.axhline(0.5, color=FAINT, linewidth=1.4)
    axes.set_xlabel("zeta (share of the mean norm of the source images)")
    axes.set_xlim(left=0)
    in_percent(axes, "y", "fooled (% of images)")
