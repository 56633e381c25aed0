"""How the rate grows with zeta, and the zeta at which half is fooled."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uapray.measures import CONFIDENCE, Outcome, Rate, patients

ZETAS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08)
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Crossing:
    """The zeta at which a curve reaches a level, with its interval at 95 %.

    Attributes:
        zeta: Where it does; None if it does not within the zetas.
        low: Lower limit; the largest zeta where hardly a resample reaches the level.
        high: Upper limit; None if it lies beyond the largest zeta.
    """

    zeta: float | None
    low: float
    high: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Rates of one classifier's perturbations of growing radius, all on the same images.

    Attributes:
        zetas: Rising.
        rates: Images fooled, of all; targeted: brought to the target, of all.
        ceiling: Share of images that can be fooled: those not in the dominant class of the largest zeta when clean;
            targeted: those not in the target.
        zeta50: Where half of all images are fooled.
        zeta50_of_ceiling: Where half of those are that can be.
    """

    zetas: tuple[float, ...]
    rates: tuple[Rate, ...]
    ceiling: float
    zeta50: Crossing
    zeta50_of_ceiling: Crossing


def walk_order(zetas: Sequence[float]) -> tuple[tuple[float, float | None], ...]:
    """Return in which order the zetas of a curve are searched, each with the neighbour that it continues from.

    The one in the middle is searched in full: there the half is crossed, and its basin serves both sides.

    Args:
        zetas: Rising, at least one.
    """
    middle = len(zetas) // 2
    up = [(zetas[place], zetas[place - 1]) for place in range(middle + 1, len(zetas))]
    down = [(zetas[place], zetas[place + 1]) for place in range(middle - 1, -1, -1)]
    return ((zetas[middle], None), *up, *down)


def curve_of(
    zetas: Sequence[float],
    outcomes: Sequence[Outcome],
    groups: Sequence[str | None],
    *,
    target: int | None,
    seed: int = 0,
) -> Curve:
    """Return the curve through outcomes of the same images, its intervals by a bootstrap over patients.

    Patients are drawn with replacement, all images of one together, and the whole curve is made of each draw; the
    limits are percentiles (Efron & Tibshirani 1993, chapter 13). What the searches' own chance adds is not in them.

    Args:
        zetas: Rising, at least one.
        outcomes: Of each zeta.
        groups: Patient of each image; an image of unknown patient stands for itself.
        target: Index of the class that was to be reached; None: nontargeted.
        seed: Of the resampling.
    """
    assert len(zetas) == len(outcomes) >= 1
    assert list(zetas) == sorted(set(zetas)), "zetas rise"
    hits = np.stack([fooled(outcome, target) for outcome in outcomes], axis=1)
    can = outcomes[-1].clean != (outcomes[-1].dominant if target is None else target)
    sums = _by_group(np.column_stack([np.ones(len(hits)), can, hits]), groups)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES) @ sums
    shares, resampled = (each[:, 1:] / each[:, :1] for each in (sums.sum(0, keepdims=True), drawn))
    return Curve(
        zetas=tuple(zetas),
        rates=tuple(Rate(int(of_zeta.sum()), len(hits)) for of_zeta in hits.T),
        ceiling=float(shares[0, 0]),
        zeta50=_with_interval(zetas, shares, resampled, lambda _ceiling: 0.5),
        zeta50_of_ceiling=_with_interval(zetas, shares, resampled, lambda ceiling: ceiling / 2),
    )


def fooled(outcome: Outcome, target: int | None) -> NDArray[np.bool_]:
    """Return which images a perturbation fools, bool ``(n,)``; targeted: which it brings to the target."""
    changed: NDArray[np.bool_] = outcome.clean != outcome.perturbed
    return changed if target is None else changed & (outcome.perturbed == target)


def crossing(zetas: Sequence[float], rates: Sequence[float] | NDArray[np.float64], level: float) -> float:
    """Return the zeta at which the rate reaches a level: monotone regression, then straight lines from (0, 0).

    Args:
        zetas: Rising, positive.
        rates: Of each zeta; made monotone by the closest fit (Barlow et al. 1972: pool adjacent violators).
        level: Above 0.

    Returns:
        The zeta; infinity if the level is not reached, or is 0 because nothing can be fooled.
    """
    from scipy.optimize import isotonic_regression  # seconds to import; not on the way to a replica

    fitted = np.concatenate([[0.0], isotonic_regression(rates).x])
    at = np.concatenate([[0.0], zetas])
    if level <= 0 or fitted[-1] < level:
        return math.inf
    right = int(np.argmax(fitted >= level))
    share = (level - fitted[right - 1]) / (fitted[right] - fitted[right - 1])
    return float(at[right - 1] + share * (at[right] - at[right - 1]))


def _with_interval(
    zetas: Sequence[float],
    shares: NDArray[np.float64],
    resampled: NDArray[np.float64],
    level: Callable[[float], float],
) -> Crossing:
    """Return where a level is reached; of shares the first column is the ceiling, the others are the rates."""
    found = crossing(zetas, shares[0, 1:], level(shares[0, 0]))
    draws = [crossing(zetas, one[1:], level(one[0])) for one in resampled]
    tail = (1 - CONFIDENCE) / 2
    # one of the draws itself: between a number and infinity nothing can be interpolated
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    return Crossing(_finite(found), min(float(low), zetas[-1]), _finite(float(high)))


def _by_group(columns: NDArray[np.float64], groups: Sequence[str | None]) -> NDArray[np.float64]:
    """Return the sums of rows that share a group, ``(groups, columns)``; a row without one is its own."""
    places = patients(groups)
    sums = np.zeros((int(places.max()) + 1, columns.shape[1]))
    np.add.at(sums, places, columns)
    return sums


def _finite(zeta: float) -> float | None:
    return zeta if math.isfinite(zeta) else None
