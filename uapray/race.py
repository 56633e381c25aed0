"""Which of several perturbations is the best, found with as few predictions as will do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Scores = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A perturbation, with what is known of it.

    Attributes:
        v: The perturbation ``(c, h, w)``.
        scores: How near each source image comes to each goal, float64 ``(n, goals)``; NaN where nobody has asked.
    """

    v: Tensor
    scores: Scores

    @classmethod
    def new(cls, v: Tensor, images: int, goals: int) -> "Contender":
        """Return a perturbation of which nothing is known."""
        return cls(v, np.full((images, goals), np.nan))

    def value(self, places: Places) -> float:
        """Return the mean over some images, of the goal that it comes nearest to."""
        return float(self.scores[places].mean(0).max())


def price(contenders: int, images: int, first: int) -> int:
    """Return how many predictions a race takes, if nothing is known of any contender."""
    total, seen = 0, 0
    while True:
        until = min(max(first, 2 * seen), images)
        total, seen = total + contenders * (until - seen), until
        if seen == images or contenders == 1:
            return total
        contenders = (contenders + 1) // 2


Ask = Callable[[Sequence[Contender], Places], None]


def race(field: Sequence[Contender], order: Places, first: int, ask: Ask) -> tuple[int, Scores]:
    """Compare perturbations on common images; the worse half drops out, the others see as many images again.

    That is successive halving (Karnin et al. 2013, algorithm 1), with the images of a round kept for the next one, as
    differences on the same images are what tells. With ``first`` no less than the number of images every perturbation
    sees every image, as the published searches do.

    Args:
        field: The perturbations.
        order: Places of the images, in which order they are taken, ``(n,)``.
        first: Images of the first round.
        ask: Fills in the scores of some perturbations on some images, where they are not known.

    Returns:
        Which one won, the first of equals; and by how much each falls short of it on the images that both have seen in
        this race, ``(len(field),)``, none above 0.
    """
    images, alive, seen = len(order), list(range(len(field))), 0
    seen_by = np.zeros(len(field), dtype=np.int64)
    while True:
        until = min(max(first, 2 * seen), images)
        ask([field[one] for one in alive], order[seen:until])
        seen_by[alive] = seen = until
        means = np.array([field[one].value(order[:seen]) for one in alive])
        alive = [alive[rank] for rank in np.argsort(-means, kind="stable")]
        if seen == images or len(alive) == 1:
            break
        alive = sorted(alive[: (len(alive) + 1) // 2])
    winner = alive[0]
    best = field[winner]
    prefixes = [order[:count] for count in seen_by]
    short = [one.value(seen) - best.value(seen) for one, seen in zip(field, prefixes, strict=True)]
    return winner, np.minimum(short, 0.0)
