"""Update rules: how the gradients of one round move the perturbation.

A rule is a pair of pure functions. Its state is passed in and handed back, never kept; the gradients of the next
round are to be taken at ``state.point``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from uapray.attack.partial import PartialUpdate
from uapray.attack.projection import direction, project


@dataclass(frozen=True, slots=True)
class State:
    """Where a search stands.

    Attributes:
        v: The perturbation, float32 ``(c, h, w)``.
        point: Where the next round's gradients are to be taken; ``v`` itself for most rules.
        memory: Gradients kept from earlier rounds, float64 ``(c, h, w)``.
        inner: Rounds since ``v`` last moved.
    """

    v: Tensor
    point: Tensor
    memory: Tensor
    inner: int = 0


class Rule(NamedTuple):
    """An update rule.

    Attributes:
        start: From a first perturbation to a first state.
        step: From a state, the gradients of one round at ``state.point``, and the passes over the images done
            so far (a float) to the next state.
    """

    start: Callable[[Tensor], State]
    step: Callable[[State, PartialUpdate, float], State]


def _start(v: Tensor) -> State:
    return State(v=v, point=v, memory=torch.zeros_like(v, dtype=torch.float64))


def spgd(*, p: float, xi: float, step_size: float, step_decay: float) -> Rule:
    """Stochastic projected gradient ascent (Shafahi et al. 2020, algorithm 2).

    One step of steepest ascent in the l_p norm from the sum of a small batch's raw gradients, then projection.
    We depart from the paper in the step: nearly the whole radius at first, falling from pass to pass.

    Args:
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius of the ball, pixel units.
        step_size: Length of the first step as a share of ``xi``.
        step_decay: What the length is multiplied with from one pass to the next.
    """

    def step(state: State, update: PartialUpdate, epoch: float) -> State:
        reach = xi * step_size * step_decay ** int(epoch)
        moved = state.v + reach * direction(update.total, p=p).to(state.v.dtype)
        v = project(moved, p=p, xi=xi)
        return replace(state, v=v, point=v)

    return Rule(_start, step)


def sga(*, p: float, xi: float, step_size: float, step_decay: float, inner_rounds: int) -> Rule:
    """Stochastic gradient aggregation (Liu et al. 2023, algorithm 1).

    An inner point walks ``inner_rounds`` rounds ahead; the raw gradients met on its way are added, and their sum
    moves the perturbation by one step from where the walk began. We depart from the paper in that every image
    is visited once a pass (the authors draw each image four times) and in the step, which falls.

    Args:
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius of the ball, pixel units.
        step_size: Length of the first steps, inner and outer, as a share of ``xi``.
        step_decay: What the length is multiplied with from one pass to the next.
        inner_rounds: Rounds that the inner point walks before ``v`` moves.
    """

    def step(state: State, update: PartialUpdate, epoch: float) -> State:
        reach = xi * step_size * step_decay ** int(epoch)

        def ascend(origin: Tensor, gradient: Tensor) -> Tensor:
            return project(origin + reach * direction(gradient, p=p).to(origin.dtype), p=p, xi=xi)

        memory = state.memory + update.total
        if state.inner + 1 < inner_rounds:
            point = ascend(state.point, update.total)
            return replace(state, point=point, memory=memory, inner=state.inner + 1)
        v = ascend(state.v, memory)
        return _start(v)

    return Rule(_start, step)
