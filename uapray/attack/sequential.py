"""Sequential rules: image by image, and a step is kept only if it alone changes that image's class.

One by one costs most of the time, so the next images are looked at together: all of them with the present
perturbation, and those not fooled yet are tried together. Up to the first step that is accepted, everything is as if
they had been visited one by one; from there it is done again.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from uapray.attack.projection import project
from uapray.attack.steps import Forward, InnerStep, classes_of, reached

WORST_CASE = 3  # times an image is computed at most, on average from the first of a visit on: see ``Ahead``


@dataclass(frozen=True, slots=True)
class Visiting:
    """How images are visited.

    Attributes:
        step: The step from one image towards another class.
        p: Order of the norm.
        xi: Radius of the ball, pixel units.
        target: Class to be reached; None: any other.
        clip: Whether the classifier sees pixels clipped to [0, 1].
        most: Images that are computed at once at most.
    """

    step: InnerStep
    p: float
    xi: float
    target: int | None
    clip: bool
    most: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """How many images are looked at, and how many steps tried, before the next answer; both change speed alone.

    Either doubles when all of that many brought nothing and is halved when one was accepted. So from 1 on an image
    is computed at most three times on average: with the potential 2 (size - 1), a failure costs 3 an image passed,
    and what an acceptance throws away was paid by the growth before.

    Attributes:
        look: Images looked at together.
        tries: Steps tried together.
    """

    look: int = 1
    tries: int = 1


AT_FIRST = Ahead()


@dataclass(frozen=True, slots=True)
class Visit:
    """What visiting some images came to.

    Attributes:
        v: The perturbation afterwards, float32 ``(c, h, w)``.
        accepted: Places of the images whose step was accepted, in order.
        image_gradients: Gradients computed, those included whose step came to nothing.
        image_queries: Images classified, likewise.
        ahead: How far to look in the next visit.
    """

    v: Tensor
    accepted: tuple[int, ...]
    image_gradients: int
    image_queries: int
    ahead: Ahead


def visit(
    forward: Forward, images: Tensor, reference: Tensor, v: Tensor, how: Visiting, ahead: Ahead = AT_FIRST
) -> Visit:
    """Visit images in their order (Moosavi-Dezfooli et al. 2017, algorithm 1; Hirano & Takemoto 2020, targeted).

    An image that is fooled already is passed by. Of another, the inner step is taken from where it stands; if that
    changes its class (targeted: reaches the target), the step is added to the perturbation, which is then projected.

    Args:
        forward: Pixels ``(n, c, h, w)`` to logits ``(n, k)``.
        images: float32 ``(n, c, h, w)``, pixel units.
        reference: Classes predicted for the clean images, int64 ``(n,)``; not used when targeted.
        v: The perturbation, float32 ``(c, h, w)``.
        how: Inner step, ball and target.
        ahead: How far to look at first.

    Raises:
        TrialError: If logits are not finite or do not depend on the pixels.
    """
    place, accepted, gradients, queries = 0, [], 0, 0
    while place < len(images):
        window = slice(place, place + ahead.look)
        shifted = images[window] + v
        classes = classes_of(forward, shifted)
        fooled = reached(classes, reference[window], how.target)
        tried = _first_accepted(forward, shifted, classes, torch.nonzero(~fooled).flatten(), how, ahead.tries)
        gradients, queries = gradients + tried.image_gradients, queries + len(shifted) + tried.image_queries
        if tried.step is None:
            place += len(shifted)
            ahead = Ahead(_grown(ahead.look, len(shifted), how.most), tried.tries)
        else:
            v = project(v + tried.step, p=how.p, xi=how.xi)
            accepted.append(place + tried.place)
            place += tried.place + 1
            ahead = Ahead(_halved(ahead.look), tried.tries)
    return Visit(v, tuple(accepted), gradients, queries, ahead)


class _Tried(NamedTuple):
    """The first accepted step of a window, if any, and what finding it took."""

    step: Tensor | None
    place: int
    image_gradients: int
    image_queries: int
    tries: int


def _first_accepted(
    forward: Forward, shifted: Tensor, classes: Tensor, waiting: Tensor, how: Visiting, tries: int
) -> _Tried:
    gradients = queries = 0
    while len(waiting):
        bunch, waiting = waiting[:tries], waiting[tries:]
        start, before = shifted[bunch], classes[bunch]
        made = how.step(forward, start, before, how.target)
        after = classes_of(forward, start + made.steps)
        gradients, queries = gradients + made.image_gradients, queries + made.image_queries + len(bunch)
        changed = torch.nonzero(reached(after, before, how.target)).flatten()
        if len(changed):
            first = int(changed[0])
            return _Tried(made.steps[first], int(bunch[first]), gradients, queries, _halved(tries))
        tries = _grown(tries, len(bunch), how.most)
    return _Tried(None, 0, gradients, queries, tries)


def _grown(size: int, used: int, most: int) -> int:
    return max(size, min(2 * used, most))


def _halved(size: int) -> int:
    return max(1, size // 2)
