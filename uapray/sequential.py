"""Searches image by image, as published: a step that changes the class of one image moves the perturbation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from uapray.attack.control import random_perturbation
from uapray.attack.objective import Objective
from uapray.attack.rules import State
from uapray.attack.sequential import AT_FIRST, WORST_CASE, Visiting
from uapray.attack.steps import InnerStep, deepfool, deepfool_gradients, sign_step
from uapray.config import Search
from uapray.coordinator import Cost, Start, Task
from uapray.errors import TrialError
from uapray.pace import Pace
from uapray.replica import Batch

BATCHES_A_REQUEST = 2  # a replica that dies, or a run that is to stop, loses no more than that
GRADIENTS_A_REQUEST = 512


@dataclass(frozen=True, slots=True)
class Sequential:
    """The walk of the rules that take one step an image; a round is one image.

    Attributes:
        step: From one image towards another class.
        task: What is searched.
        settings: How.
    """

    step: InnerStep
    task: Task
    settings: Search

    @property
    def pace(self) -> Pace:
        """How a pass is divided."""
        images = len(self.task.source)
        return Pace(1, 1, images, min(self.settings.measures_per_epoch, images))

    @property
    def cost(self) -> Cost:
        """What an image costs at most, on average over a leg, with all that looking ahead throws away."""
        once = self._once
        return Cost(WORST_CASE * once.image_gradients, WORST_CASE * once.image_queries)

    def begin(self) -> tuple[Start, ...]:
        """Return the one search a trial consists of, from zero as published or from a random point of the ball."""
        task = self.task
        if self.settings.init == "random":
            v = random_perturbation(task.shape, p=task.p, xi=task.xi, seed=task.seed * 1000)
        else:
            v = torch.zeros(task.shape)
        return (Start(0, _at(v), task.objective),)

    def advance(self, start: Start, until: int, aim: Objective) -> Start:
        """Return where a start stands after that many images, counted from its beginning.

        Raises:
            TrialError: If a whole pass brought nothing: no further one would bring more.
        """
        how = self._visiting(aim)
        v, ahead = start.state.v, AT_FIRST
        gradients = queries = 0
        for batch in self._requests(start.rounds, until):
            came = self.task.members[0].pool.visit(v, batch, how, ahead)
            v, ahead = came.v, came.ahead
            gradients, queries = gradients + came.image_gradients, queries + came.image_queries
        moved = start.moved or not torch.equal(v, start.state.v)
        if not moved and until >= self.pace.rounds_an_epoch:
            raise TrialError(nothing_accepted(self.settings))
        return replace(
            start,
            state=_at(v),
            rounds=until,
            moved=moved,
            image_gradients=start.image_gradients + gradients,
            image_queries=start.image_queries + queries,
        )

    def candidate(self, start: Start) -> Tensor:
        """Return the perturbation as it stands: the published rules do not stretch it to the surface."""
        return start.state.v

    def images_seen(self, start: Start) -> int:
        """Return how many different images a start has visited."""
        return min(start.rounds, len(self.task.source))

    @property
    def _once(self) -> Cost:
        """What visiting one image costs at most where nothing is thrown away."""
        if self.settings.rule == "uap-fgsm":
            return Cost(1, 2)
        targeted, steps = self.task.objective.target is not None, self.settings.inner_steps
        return Cost(steps * deepfool_gradients(self.task.classes, targeted=targeted), steps + 1)

    def _visiting(self, aim: Objective) -> Visiting:
        task, settings = self.task, self.settings
        return Visiting(self.step, task.p, task.xi, aim.target, settings.clip, settings.batch_size)

    def _requests(self, first: int, until: int) -> Iterator[Batch]:
        """Return the images of some rounds, in the order of their passes, as many at a time as one replica is asked."""
        deck, images = self.task.source, len(self.task.source)
        most = min(BATCHES_A_REQUEST * self.settings.batch_size, GRADIENTS_A_REQUEST // self._once.image_gradients)
        while first < until:
            epoch, place = divmod(first, images)
            end = min(place + max(1, most), images, place + until - first)
            rows = deck.order(seed=self.task.seed * 1000, epoch=epoch)[place:end]
            yield Batch(deck.name, deck.rows[rows], deck.reference[rows])
            first += end - place


def step_of(settings: Search, task: Task, epsilon: float) -> InnerStep:
    """Return the inner step of a sequential rule.

    Args:
        settings: With the rule.
        task: With the ball.
        epsilon: Length of a sign step in the norm of the ball, pixel units; DeepFool finds its own.
    """
    if settings.rule == "uap-deepfool":
        return partial(deepfool, p=task.p, overshoot=settings.overshoot, max_steps=settings.inner_steps)
    return partial(sign_step, epsilon=epsilon if task.p == math.inf else epsilon / math.sqrt(math.prod(task.shape)))


def nothing_accepted(settings: Search) -> str:
    """Say that no image's step was accepted, and what may help."""
    larger = "step_size" if settings.rule == "uap-fgsm" else "overshoot or inner_steps"
    return (
        f"no step of {settings.rule} was accepted: none changed its image's class, so the perturbation never moved; "
        f"try a larger {larger}, or more budget if it ended within the first pass"
    )


def _at(v: Tensor) -> State:
    return State(v=v, point=v, memory=torch.zeros_like(v, dtype=torch.float64))
