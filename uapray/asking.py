"""What a search without gradients asks a classifier, what it takes from the answers, and what that has cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uapray.attack.objective import Objective
from uapray.config import Search
from uapray.coordinator import Task
from uapray.panel import hit
from uapray.pool import in_turn, predicted
from uapray.race import Contender, Places, Scores, price, race


class BudgetEnded(Exception):  # noqa: N818 (no error: the search ends)
    """The budget does not allow the next race."""


@dataclass(slots=True)
class Desk:
    """Where the classifier is asked about source images.

    Attributes:
        task: What is searched.
        settings: How.
        goals: What perturbations are compared by.
        before: How near the clean images are to each goal, ``(n, goals)``; zero where that does not matter.
        most: Predictions that may be asked for.
        image_queries: Predictions asked for so far.
        races: Races run so far.
        seen: Places of the source images asked about.
    """

    task: Task
    settings: Search
    goals: tuple[Objective, ...]
    before: Scores
    most: float = math.inf
    image_queries: int = 0
    races: int = 0
    seen: set[int] = field(default_factory=set)

    @classmethod
    def opened(cls, task: Task, settings: Search) -> "Desk":
        """Return a desk for a search; of several goals the clean images are asked first, once each."""
        goals, source = goals_of(task, settings), task.source
        desk = cls(task, settings, goals, np.zeros((len(source), len(goals))))
        if len(goals) > 1:
            everywhere = np.arange(len(source))
            desk.before = desk._scores(task.members[0].pool.logits(None, source.in_turn()), everywhere)
            desk.image_queries = len(source)
        return desk

    def new(self, v: Tensor) -> Contender:
        """Return a perturbation of which nothing is known."""
        return Contender.new(v, len(self.task.source), len(self.goals))

    def race(self, contenders: Sequence[Contender]) -> tuple[int, Scores]:
        """Race some perturbations on images in an order of this race's own; see ``race``.

        Raises:
            BudgetEnded: If that may take more predictions than are allowed; then nothing was asked.
        """
        source = self.task.source
        first = self.settings.race_images or len(source)
        if self.image_queries + price(len(contenders), len(source), first) > self.most:
            raise BudgetEnded
        order = source.order(seed=self.task.seed, epoch=self.races)
        self.races += 1
        return race(contenders, order, first, self._ask)

    def _ask(self, contenders: Sequence[Contender], places: Places) -> None:
        source = self.task.source
        unknown = [one for one in contenders if np.isnan(one.scores[places]).any()]
        self.image_queries += len(unknown) * len(places)
        self.seen.update(places.tolist())
        batches = in_turn(source.name, source.rows[places])
        answers = self.task.members[0].pool.population([one.v for one in unknown], batches) if unknown else []
        for one, logits in zip(unknown, answers, strict=True):
            one.scores[places] = self._scores(logits, places)

    def _scores(self, logits: NDArray[np.float32], places: Places) -> Scores:
        """Return how much nearer images are to each goal than their clean selves, ``(n, goals)``."""
        classes, reference = predicted(logits), self.task.source.reference[places]
        if self.settings.feedback == "labels":
            return hit(classes, reference, self.task.objective).astype(np.float64)[:, None]
        told, clean = torch.from_numpy(logits).double(), torch.from_numpy(reference)
        now = np.stack([goal.gain(told, clean).numpy() for goal in self.goals], 1)
        if len(self.goals) == 1:
            return now
        natives = reference[:, None] == np.arange(len(self.goals))
        return np.where(natives, 0.0, now - self.before[places])


def goals_of(task: Task, settings: Search) -> tuple[Objective, ...]:
    """Return what perturbations are compared by: the goal that they bring the images nearest to.

    Nontargeted and told scores, that is one class for all images of other classes, whichever class it is: images that
    are pulled away from the classes that they have pull in opposite directions. Told labels, or with the published
    loss, it is the share of images, or the mean probability, that is not the clean class any more.
    """
    if task.objective.target is not None or settings.feedback == "labels" or settings.loss == "probability":
        return (task.objective,)
    return tuple(replace(task.objective, target=target) for target in range(task.classes))
