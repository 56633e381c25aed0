"""What a replica sends home."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PartialUpdate:
    """Raw gradients of some images, summed: a replica sends one sum, not one gradient an image.

    Raw means: neither their sign nor their direction. Signs of single images cancel between classes and end at
    a fifth of the fooling rate that raw sums reach.

    Attributes:
        total: Sum of the gradients, float64 ``(c, h, w)``.
        count: How many images it is made of.
    """

    total: Tensor
    count: int

    def __add__(self, other: "PartialUpdate") -> "PartialUpdate":
        return PartialUpdate(self.total + other.total, self.count + other.count)


def add_in_order(parts: Iterable[PartialUpdate]) -> PartialUpdate:
    """Add partial updates from first to last, so that the bits depend on their order alone."""
    return reduce(PartialUpdate.__add__, parts)
