"""How numbers are written on the page; a number and its unit are never torn apart."""

import math

_NO_BREAK = "\N{NO-BREAK SPACE}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as per cent with its sign, a dash for none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}{_NO_BREAK}%"


def between(low: float | None, high: float | None) -> str:
    """Return two shares as a range of per cent, without the sign."""
    if low is None or high is None or math.isnan(low + high):
        return "–"
    return f"{100 * low:.1f}–{100 * high:.1f}"


def change(difference: float | None) -> str:
    """Return a difference of shares in per cent with its sign, a dash for none."""
    return "–" if difference is None or math.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def css(share: float | None) -> str:
    """Return a share, kept within [0, 1], as a length in a style sheet."""
    return "0%" if share is None or math.isnan(share) else f"{100 * min(1.0, max(0.0, share)):.2f}%"


def count(number: float) -> str:
    """Return a count with thousands set apart."""
    return f"{number:,.0f}"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,}{_NO_BREAK}{noun if number == 1 else nouns or noun + 's'}"


def grey_levels(number: float) -> str:
    """Return a length in grey levels, three digits of it."""
    digits = f"{number:.3g}" if number < 1000 else f"{number:,.0f}"
    return f"{digits}{_NO_BREAK}grey{_NO_BREAK}levels"


def radius(zeta: float | None, xi_grey: float) -> str:
    """Return the radius of a ball: as a share of the mean norm if it was given so, and in grey levels."""
    grey = grey_levels(xi_grey)
    return grey if zeta is None else f"ζ{_NO_BREAK}{100 * zeta:g}{_NO_BREAK}% ({grey})"
