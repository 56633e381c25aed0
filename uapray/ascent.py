"""Rounds one after another in one place: where there is nothing to add up, a sum need not travel after each of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import State, Step
from uapray.pace import Pace
from uapray.steady import one_thread

# The gradients of the images at some places, taken at a point ``(c, h, w)``.
Gradient = Callable[[Tensor, slice], PartialUpdate]


@dataclass(frozen=True, slots=True)
class Ascending:
    """How rounds follow one another.

    Attributes:
        step: How the gradients of a round move the perturbation.
        objective: What is to be raised.
        pace: How a pass is divided into rounds and batches.
    """

    step: Step
    objective: Objective
    pace: Pace


@dataclass(frozen=True, slots=True)
class Ascent:
    """What some rounds came to.

    Attributes:
        state: Where the search stands after them.
        rounds: How many were made.
    """

    state: State
    rounds: int


def ascend(gradient: Gradient, state: State, images: int, first: int, how: Ascending, seconds: float) -> Ascent:
    """Make rounds until their images are used up or the time is over, and one at least.

    How many are made in one go is a matter of speed: each depends on the one before it alone.

    Args:
        gradient: Of the images ``places`` of them, added over their batches in order.
        state: Where the search stands.
        images: How many images there are, those of the first round first.
        first: Number of the first round, counted from the beginning of the search.
        how: How they follow one another.
        seconds: After which no further round is begun.

    Raises:
        TrialError: If a gradient is not finite.
    """
    over, size, made = time.monotonic() + seconds, how.pace.round_size, 0
    for begin in range(0, images, size):
        update = gradient(state.point, slice(begin, begin + size))
        with one_thread():
            state = how.step(state, update.finite(), (first + made) / how.pace.rounds_an_epoch)
        made += 1
        if time.monotonic() >= over:
            break
    return Ascent(state, made)
