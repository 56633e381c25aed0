"""How numbers are written on the page."""

import math


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as per cent with its sign, a dash for none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def between(low: float | None, high: float | None) -> str:
    """Return two shares as a range of per cent, without sign."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "–"
    return f"{100 * low:.1f}–{100 * high:.1f}"


def css(share: float | None) -> str:
    """Return a share, kept within [0, 1], as a length in a style sheet."""
    return f"{100 * min(1.0, max(0.0, share or 0.0)):.2f}%"


def count(number: float) -> str:
    """Return a count with thousands set apart."""
    return f"{number:,.0f}"


def radius(zeta: float | None, xi_grey: float) -> str:
    """Return the radius of a ball: the share of the mean norm if it is given so, and grey levels."""
    grey = f"{xi_grey:.3g} grey levels" if xi_grey < 100 else f"{xi_grey:,.0f} grey levels"
    return grey if zeta is None else f"ζ {100 * zeta:g} % = {grey}"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
