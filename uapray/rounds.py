"""Searches by rounds: replicas sum the raw gradients of small batches, and each sum moves the perturbation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uapray import panel
from uapray.ascent import Ascending, Ascent
from uapray.attack.control import random_perturbation
from uapray.attack.objective import Objective
from uapray.attack.projection import extend
from uapray.attack.rules import Rule, State
from uapray.config import Search
from uapray.coordinator import Cost, Start, Task
from uapray.pace import Pace, pace_of
from uapray.pool import Deck, predicted
from uapray.replica import Batch

POWER_STEPS = 2
ROUNDS_A_REQUEST = 256  # at most; how many are made is the replica's to say


@dataclass(frozen=True, slots=True)
class Rounds:
    """The walk of the rules that take one step a round.

    Attributes:
        rule: How the gradients of a round move the perturbation.
        task: What is searched.
        settings: How.
        origin: Perturbation ``(c, h, w)`` of another radius that the search continues from; None: it begins anew.
    """

    rule: Rule
    task: Task
    settings: Search
    origin: Tensor | None = None

    @property
    def pace(self) -> Pace:
        """How a pass is divided."""
        targeted = self.task.objective.target is not None
        least = least_rounds(self.settings, self.task.classes, targeted=targeted, continues=self.origin is not None)
        return pace_of(len(self.task.source), self.settings, halved=self.leaves_out, least_rounds=least)

    @property
    def leaves_out(self) -> bool:
        """Whether images are left out that are of the class aimed at when clean."""
        targeted = self.task.objective.target is not None
        return leaves_out(self.settings, self.task.classes, targeted=targeted, continues=self.origin is not None)

    @property
    def cost(self) -> Cost:
        """What a round costs: a gradient an image and classifier, and a query where clean logits are compared."""
        images = self.pace.round_size * len(self.task.members)
        return Cost(images, images if self.task.objective.compares_logits else 0)

    def begin(self) -> tuple[Start, ...]:
        """Return the searches a trial begins with.

        Nontargeted: the first starts aim at one class each, those with the highest ceiling (the fewest images in
        them already) first; the others aim nowhere. A universal perturbation of a classifier with few classes
        sends all images to one class, and which one is decided early. All begin where ``init`` says. A search that
        continues has one start, at the point of the new surface that the perturbation points to; if it leaves out
        images it goes on to where that one leads.
        """
        task, settings = self.task, self.settings
        if self.origin is not None:
            there = extend(self.origin, p=task.p, xi=task.xi)
            start = replace(self._begin_at(0, task.objective, there), moved=True)
            return (start if task.objective.target is not None or not self.leaves_out else self._aimed(start),)
        count, directed = how_many_starts(settings, task.classes, targeted=task.objective.target is not None)
        share = np.bincount(task.source.reference, minlength=task.classes)
        order = np.argsort(share, kind="stable")
        return tuple(
            self._begin(
                index, replace(task.objective, target=int(order[index])) if index < directed else task.objective
            )
            for index in range(count)
        )

    def advance(self, start: Start, until: int, aim: Objective) -> Start:
        """Return where a start stands after that many rounds, counted from its beginning."""
        aim = start.aim if self.leaves_out else aim
        asked, state, made = list(self._asked(start, start.rounds, until)), start.state, 0
        while made < len(asked):
            first = start.rounds + made
            if self._in_one_place:
                came = self._ascend(state, asked[made : made + ROUNDS_A_REQUEST], first, aim)
                state, made = came.state, made + came.rounds
            else:
                update = panel.gradient(self.task.members, partial(self._batches, asked[made]), state.point, aim)
                state, made = self.rule.step(state, update, first / self.pace.rounds_an_epoch), made + 1
        return replace(
            start,
            state=state,
            rounds=until,
            moved=start.moved or not torch.equal(state.v, start.state.v),
            image_gradients=start.image_gradients + made * self.cost.image_gradients,
            image_queries=start.image_queries + made * self.cost.image_queries,
        )

    @property
    def _in_one_place(self) -> bool:
        """Whether one replica may make a round as quickly as several would."""
        members = self.task.members
        return len(members) == 1 and (self.pace.batches_a_round == 1 or members[0].pool.share == 1)

    def _ascend(self, state: State, asked: Sequence[NDArray[np.int64]], first: int, aim: Objective) -> Ascent:
        deck, pace = self.task.source, self.pace
        (images,) = deck.dealt(np.concatenate(asked), len(asked) * pace.round_size)
        return self.task.members[0].pool.ascend(state, images, first, Ascending(self.rule.step, aim, pace))

    def candidate(self, start: Start) -> Tensor:
        """Return the surface point that a start points to."""
        return extend(start.state.v, p=self.task.p, xi=self.task.xi)

    def images_seen(self, start: Start) -> int:
        """Return how many different images a start has taken gradients of."""
        seen = np.zeros(len(self.task.source), dtype=bool)
        for places in self._asked(start, 0, start.rounds):
            seen[places] = True
        return int(seen.sum())

    def _asked(self, start: Start, first: int, until: int) -> Iterator[NDArray[np.int64]]:
        """Yield for each of some rounds the places of its images; a start visits them in an order of its own."""
        source, size = self.task.source, self.pace.round_size
        wanted = self._wanted(start.aim)
        lap = int(wanted.sum()) // size
        for visit in range(first // lap, math.ceil(until / lap)):
            order = source.order(seed=self.task.seed * 1000 + start.index, epoch=visit)
            order = order[wanted[order]]
            for number in range(max(first - visit * lap, 0), min(until - visit * lap, lap)):
                yield order[number * size : (number + 1) * size]

    def _wanted(self, aim: Objective) -> NDArray[np.bool_]:
        """Return which images are asked: all, or those that a classifier does not take for the class aimed at."""
        every = np.ones(len(self.task.source), dtype=bool)
        if not self.leaves_out:
            return every
        others = np.any([member.source.reference != aim.target for member in self.task.members], axis=0)
        return others if others.sum() >= self.pace.round_size else every

    def _batches(self, places: NDArray[np.int64], deck: Deck) -> list[Batch]:
        """Return the batches of a round; the same images for each classifier."""
        return deck.dealt(places, self.pace.batch_size)

    def _begin(self, index: int, aim: Objective) -> Start:
        if self.settings.init == "zero":
            return self._begin_at(index, aim, torch.zeros(self.task.shape))
        if self.settings.init == "random":
            return self._begin_at(index, aim, self._draw(index))
        rounds = max(1, self.pace.rounds_a_leg // (1 + POWER_STEPS))
        v = leading_direction(self, Start(index, self.rule.start(torch.zeros(self.task.shape)), aim), rounds)
        spent = (1 + POWER_STEPS) * rounds
        return replace(
            self._begin_at(index, aim, v),
            image_gradients=spent * self.cost.image_gradients,
            image_queries=spent * self.cost.image_queries,
        )

    def _begin_at(self, index: int, aim: Objective, v: Tensor) -> Start:
        return Start(index, self.rule.start(v), aim)

    def _aimed(self, start: Start) -> Start:
        """Return a start that aims where it leads already: at the class that gains validation images by it.

        If none gains any, it aims at the rarer one, as a search does that begins anew.
        """
        members = self.task.members
        said = [predicted(one.pool.logits(start.state.v, one.validation.in_turn())) for one in members]
        clean = [one.validation.reference for one in members]
        now, before = (np.bincount(np.concatenate(each), minlength=self.task.classes) for each in (said, clean))
        aim = replace(
            start.aim, target=max(range(self.task.classes), key=lambda one: (now[one] - before[one], -before[one]))
        )
        return replace(start, aim=aim, image_queries=start.image_queries + self.task.validation_queries)

    def _draw(self, index: int) -> Tensor:
        task = self.task
        return random_perturbation(task.shape, p=task.p, xi=task.xi, seed=task.seed * 1000 + index)


def how_many_starts(settings: Search, classes: int, *, targeted: bool) -> tuple[int, int]:
    """Return how many starts a search has, and how many of them aim at one class each while they are screened.

    A targeted search has one start: where it begins makes no difference. A nontargeted one has one a class, and one
    that aims nowhere; of two classes that would find nothing new, since a perturbation goes one way or the other.
    """
    if targeted or settings.starts == 1:
        return 1, 0
    if classes == 2:
        return 2, 2
    directed = min(classes, settings.starts - 1)
    return directed + 1, directed


def screened_on(settings: Search, classes: int, *, targeted: bool, continues: bool = False) -> int:
    """Return on how many source images starts are compared at most; 0 where there are no heats."""
    starts, _ = how_many_starts(settings, classes, targeted=targeted)
    return settings.screen_images if starts > settings.survivors and not continues else 0


def leaves_out(settings: Search, classes: int, *, targeted: bool, continues: bool = False) -> bool:
    """Return whether a search leaves out images: of two classes, where each of its starts has an aim or finds one."""
    _, directed = how_many_starts(settings, classes, targeted=targeted)
    return settings.leave_out and classes == 2 and (targeted or continues or directed > 0)


def least_rounds(settings: Search, classes: int, *, targeted: bool, continues: bool = False) -> int:
    """Return how many rounds the image-gradients allowed are to make; 0: as many as they make.

    Where all images that are asked go one way, as towards one of two classes, a few of them say where, and small rounds
    make many steps of few image-gradients. Starts are not compared after so few images.
    """
    limited = settings.budget.max_image_gradients is not None
    one_way = targeted and leaves_out(settings, classes, targeted=targeted, continues=continues)
    return settings.least_rounds if limited and one_way else 0


def leading_direction(walk: Rounds, start: Start, rounds: int) -> Tensor:
    """Return the surface point along the leading direction of the images' gradients at zero.

    That is the first right singular vector of the matrix with one gradient a row, by power iteration from the mean
    gradient (Khrulkov & Oseledets 2018 have the idea, for hidden layers); its sign is the one that raises the gain.

    Args:
        walk: The search.
        start: Whose images and aim are taken.
        rounds: How many rounds' images; each is asked ``1 + POWER_STEPS`` times.
    """
    task, zero = walk.task, torch.zeros(walk.task.shape)
    asked_of = list(walk._asked(start, 0, rounds))

    def asked(along: Tensor | None) -> Tensor:
        parts = [
            panel.gradient(task.members, partial(walk._batches, places), zero, start.aim, along) for places in asked_of
        ]
        total: Tensor = sum((part.total for part in parts[1:]), parts[0].total)
        return total

    mean = asked(None)
    direction = mean
    for _ in range(POWER_STEPS):
        length = torch.linalg.vector_norm(direction)
        if length == 0 or not math.isfinite(length):
            break
        direction = asked((direction / length).float())
    return extend((direction * torch.sign((direction * mean).sum())).float(), p=task.p, xi=task.xi)
