"""A rate as the mean of several seeds, with what images and seeds leave uncertain."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from uapray.measures import CONFIDENCE


@dataclass(frozen=True, slots=True)
class SeedMean:
    """A rate over seeds.

    Attributes:
        value: Mean of the seeds.
        variance: Of that mean: of the images (Agresti & Coull 1998, so that it is never 0) and of the seeds.
        seeds: How many.
        trial_ids: Of the seeds.
    """

    value: float
    variance: float
    seeds: int
    trial_ids: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Limits at 95 %, within [0, 1]."""
        spread = width() * sqrt(self.variance)
        return max(0.0, self.value - spread), min(1.0, self.value + spread)


def mean_over_seeds(
    rates: Sequence[float], images: int, trial_ids: Sequence[str], seeds: Sequence[int] | None = None
) -> SeedMean:
    """Return the mean over seeds; a seed with several trials, of other budgets or continued, counts once.

    Args:
        rates: In [0, 1], one a trial.
        images: On how many images the smallest was judged.
        trial_ids: One a trial.
        seeds: One a trial; None: each trial has its own.
    """
    if seeds is not None:
        each = {seed: [rate for rate, its in zip(rates, seeds, strict=True) if its == seed] for seed in seeds}
        rates = [fmean(one) for one in each.values()]
    count = len(rates)
    value = sum(rates) / count
    moved = (value * images + 2) / (images + 4)
    between = sum((one - value) ** 2 for one in rates) / (count - 1) / count if count > 1 else 0.0
    return SeedMean(value, moved * (1 - moved) / (images + 4) + between, count, tuple(trial_ids))


def width() -> float:
    """Return how many standard errors an interval at 95 % reaches to either side."""
    from scipy.stats import norm  # seconds to import

    return float(norm.ppf(0.5 + CONFIDENCE / 2))
