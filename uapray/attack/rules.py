"""Update rules: how the gradients of one round move the perturbation.

A rule is a pair of pure functions. Its state is passed in and handed back, never kept; the gradients of the next
round are to be taken at ``state.point``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uapray.attack import wiener
from uapray.attack.partial import PartialUpdate
from uapray.attack.projection import direction, project


@dataclass(frozen=True, slots=True)
class State:
    """Where a search stands.

    Attributes:
        v: The perturbation, float32 ``(c, h, w)``.
        point: Where the next round's gradients are to be taken; ``v`` itself for most rules.
        memory: Gradients kept from earlier rounds, float64 ``(c, h, w)``.
        squares: Their squares, where a rule keeps them; float64 ``(c, h, w)``.
        inner: Rounds since ``v`` last moved; rounds made, where a rule counts them.
        earlier: `wiener.spectrum` of the last round's gradient, where a rule filters; float32 with a last axis for real
            and imaginary part.
        bands: What is known of the bands of frequencies, where a rule filters; float64 (`wiener.agreement`).
    """

    v: Tensor
    point: Tensor
    memory: Tensor
    squares: Tensor | None = None
    inner: int = 0
    earlier: Tensor | None = None
    bands: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as arrays, which are written once and read where they lie in shared memory."""
        point = None if self.point is self.v else self.point
        tensors = (self.v, point, self.memory, self.squares, self.earlier, self.bands)
        return _arrived, (self.inner, *(None if one is None else one.numpy() for one in tensors))


# From a state, the gradients of one round at ``state.point``, and the passes over the images done so far to the next.
Step = Callable[[State, PartialUpdate, float], State]


class Rule(NamedTuple):
    """An update rule.

    Attributes:
        start: From a first perturbation to a first state.
        step: From a state and the gradients of one round to the next state; it can be sent to another process.
    """

    start: Callable[[Tensor], State]
    step: Step


def _start(v: Tensor) -> State:
    return State(v=v, point=v, memory=torch.zeros_like(v, dtype=torch.float64))


def _arrived(inner: int, v: NDArray[np.float32], *arrays: NDArray[Any] | None) -> State:
    at = torch.tensor(v)  # copies: shared memory is read-only to everybody
    point, memory, squares, earlier, bands = (None if one is None else torch.tensor(one) for one in arrays)
    assert memory is not None
    return State(at, at if point is None else point, memory, squares, inner, earlier, bands)


@dataclass(frozen=True, slots=True)
class _Stride:
    """How long steps are: ``step_size * xi`` at first, multiplied with ``step_decay`` from pass to pass."""

    p: float
    xi: float
    step_size: float
    step_decay: float

    def length(self, epoch: float) -> float:
        return self.xi * self.step_size * math.pow(self.step_decay, epoch)

    def ascend(self, origin: Tensor, gradient: Tensor, epoch: float) -> Tensor:
        """Return the point of the ball one step of steepest ascent away."""
        moved = origin + self.length(epoch) * direction(gradient, p=self.p).to(origin.dtype)
        return project(moved, p=self.p, xi=self.xi)


def spgd(
    *, p: float, xi: float, step_size: float, step_decay: float, momentum: float = 0.0, wiener_rounds: float = math.inf
) -> Rule:
    """Stochastic projected gradient ascent (Shafahi et al. 2020, algorithm 2).

    One step of steepest ascent in the l_p norm from the sum of a small batch's raw gradients, then projection.
    We depart from the paper in the step: nearly the whole radius at first, falling from pass to pass.
    With momentum each round's sum, brought to unit l1 length, is added to what is left of the earlier ones
    (Dong et al. 2018, eq. 6). With a Wiener filter spatial frequencies in which one round's sum does not agree with
    the next one's count less, and the less so the longer the step: what a long step takes up of one round's noise
    remains, what a short one does is averaged over many.

    Args:
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius of the ball, pixel units.
        step_size: Length of the first step as a share of ``xi``.
        step_decay: What the length is multiplied with from one pass to the next.
        momentum: Share of the earlier rounds' gradients that is kept, in [0, 1).
        wiener_rounds: Rounds over which noise is thought to be averaged while the step is longest; infinity: no filter.
    """
    return Rule(_start, partial(_spgd, _Stride(p, xi, step_size, step_decay), momentum, wiener_rounds))


def _spgd(
    stride: _Stride, momentum: float, wiener_rounds: float, state: State, update: PartialUpdate, epoch: float
) -> State:
    unit, bands, waves = _unit_l1(update.total), state.bands, None
    if wiener_rounds < math.inf:
        waves, shape = wiener.spectrum(unit), unit.shape
        if state.earlier is not None:
            bands = wiener.remembered(bands, wiener.agreement(waves, torch.view_as_complex(state.earlier), shape))
        if bands is not None:
            by_band = wiener.weights(bands, wiener_rounds / stride.step_decay**epoch)
            unit = _unit_l1(wiener.weighted(waves, by_band, shape))
    memory = momentum * state.memory + unit if momentum else unit
    v = stride.ascend(state.v, memory, epoch)
    earlier = None if waves is None else torch.view_as_real(waves)  # complex numbers cannot be saved
    return replace(state, v=v, point=v, memory=memory, earlier=earlier, bands=bands)


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
    return Rule(_start, partial(_sga, _Stride(p, xi, step_size, step_decay), inner_rounds))


def _sga(stride: _Stride, inner_rounds: int, state: State, update: PartialUpdate, epoch: float) -> State:
    memory = state.memory + update.total
    if state.inner + 1 < inner_rounds:
        point = stride.ascend(state.point, update.total, epoch)
        return replace(state, point=point, memory=memory, inner=state.inner + 1)
    return _start(stride.ascend(state.v, memory, epoch))


def df_uap(*, p: float, xi: float, step_size: float, step_decay: float) -> Rule:
    """Dominant-feature perturbation (Zhang et al. 2020): Adam on the perturbation, clamped margin loss.

    Each round takes one step of Adam (Kingma & Ba 2015, algorithm 1, the authors' constants) from the mean gradient,
    then projection. We depart from the paper in the images: it takes proxy images, we take what the user gives.

    Args:
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius of the ball, pixel units.
        step_size: Adam's learning rate as a share of ``xi``.
        step_decay: What it is multiplied with from one pass to the next.
    """
    return Rule(_start, partial(_adam, _Stride(p, xi, step_size, step_decay)))


def _adam(stride: _Stride, state: State, update: PartialUpdate, epoch: float) -> State:
    keep, keep_squares, tiny = 0.9, 0.999, 1e-8
    gradient = update.total / update.count
    count = state.inner + 1
    memory = keep * state.memory + (1 - keep) * gradient
    before = torch.zeros_like(gradient) if state.squares is None else state.squares
    squares = keep_squares * before + (1 - keep_squares) * gradient**2
    mean, spread = memory / (1 - keep**count), (squares / (1 - keep_squares**count)).sqrt()
    moved = state.v + stride.length(epoch) * (mean / (spread + tiny)).to(state.v.dtype)
    v = project(moved, p=stride.p, xi=stride.xi)
    return State(v=v, point=v, memory=memory, squares=squares, inner=count)


def cosine_uap(*, p: float, xi: float, step_size: float, step_decay: float) -> Rule:
    """Cosine perturbation (Zhang et al. 2021): as ``df_uap``, with the cosine loss.

    The paper's own settings are not published with it; those of the same authors' earlier work are taken.

    Args:
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius of the ball, pixel units.
        step_size: Adam's learning rate as a share of ``xi``.
        step_decay: What it is multiplied with from one pass to the next.
    """
    return df_uap(p=p, xi=xi, step_size=step_size, step_decay=step_decay)


def _unit_l1(gradient: Tensor) -> Tensor:
    length = gradient.abs().sum()
    return gradient / length if length > 0 else gradient
