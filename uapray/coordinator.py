"""The search loop: a generator of snapshots. To stop, log, save and resume is the caller's affair."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uapray.attack.control import random_perturbation
from uapray.attack.objective import Objective
from uapray.attack.projection import extend, length
from uapray.attack.rules import Rule, State
from uapray.config import Budget, Search
from uapray.errors import TrialError
from uapray.pace import Pace, pace_of
from uapray.pool import Deck, ReplicaPool, predicted

ROUNDING = 1e-9  # 0.07 passes of 100 rounds are 7 rounds, not 7.000000000000001


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that fixes a search, but for where it runs.

    Attributes:
        p: Order of the norm.
        xi: Radius in pixel units.
        objective: What is to be raised.
        shape: Of the perturbation, ``(c, h, w)``.
        classes: How many classes there are.
        source: The images that gradients are taken of.
        validation: The images that the best perturbation is chosen on.
        seed: Of the trial.
    """

    p: float
    xi: float
    objective: Objective
    shape: tuple[int, int, int]
    classes: int
    source: Deck
    validation: Deck
    seed: int


@dataclass(frozen=True, slots=True)
class Start:
    """One of the searches of a trial: where it begins, and where it aims while it is screened.

    A universal perturbation of a classifier with few classes sends all images to one class, and which one is
    decided early. So some starts of a nontargeted search aim at one class each until the screening is over.
    Until gradients have moved a start it is no more than a random draw, and not judged.
    """

    index: int
    state: State
    aim: Objective
    rounds: int = 0
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the history: a perturbation judged on the validation part."""

    start: int
    round: int
    epoch: float
    images_used: int
    image_gradients: int
    image_queries: int
    l2: float
    linf: float
    fooling_rate: float
    targeted_success_rate: float | None
    certainty: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a trial stands between two measurements.

    Attributes:
        starts: The searches still going on.
        best: The best perturbation judged so far, by its certainty on the validation part.
        best_rate: Its rate there.
        best_certainty: Its certainty there.
        image_gradients: Spent so far, all starts together.
        image_queries: Spent so far, all starts together.
        measured: What the last leg brought, one row a start.
        share_done: Of the passes allowed, in [0, 1].
    """

    starts: tuple[Start, ...]
    best: Tensor
    best_rate: float
    best_certainty: float
    image_gradients: int
    image_queries: int
    measured: tuple[Measurement, ...]
    share_done: float


def how_many_starts(settings: Search, classes: int, *, targeted: bool) -> tuple[int, int]:
    """Return how many starts a search has, and how many of them aim at one class each while they are screened.

    At most half of a nontargeted search's starts aim at a class. Where these reach every class, the others would
    find nothing new and are left out: of a classifier of two classes a perturbation goes one way or the other.
    """
    directed = 0 if targeted else min(classes, settings.starts // 2)
    return (directed if directed == classes else settings.starts), directed


def first_starts(task: Task, settings: Search, rule: Rule) -> tuple[Start, ...]:
    """Return the searches a trial begins with.

    Nontargeted: the first starts aim at one class each, those with the highest ceiling (the fewest images in
    them already) first; the others aim nowhere. The first undirected start begins at zero, the others at random
    points of the ball.
    """
    count, directed = how_many_starts(settings, task.classes, targeted=task.objective.target is not None)
    share = np.bincount(task.source.reference, minlength=task.classes)
    order = np.argsort(share, kind="stable")
    starts = []
    for index in range(count):
        aim = Objective(int(order[index])) if index < directed else task.objective
        still = index <= directed
        v = (
            torch.zeros(task.shape)
            if still
            else random_perturbation(task.shape, p=task.p, xi=task.xi, seed=task.seed * 1000 + index)
        )
        starts.append(Start(index, rule.start(v), aim))
    return tuple(starts)


def search(pool: ReplicaPool, rule: Rule, task: Task, settings: Search) -> Iterator[Snapshot]:
    """Look for the perturbation; yield where the search stands after each leg between two measurements.

    The starts of one leg run at the same time and know nothing of each other; what they bring is judged in the
    order of their index. So neither the number of replicas nor their speed can change a bit of the result.
    """
    budget = settings.budget
    begun = time.monotonic()
    pace = pace_of(len(task.source), settings)
    rounds_an_epoch, per_round = pace.rounds_an_epoch, pace.batches_a_round
    screening = max(1, round(settings.screen_epochs * pace.legs_an_epoch))
    legs = max(screening, math.ceil(budget.max_epochs * pace.legs_an_epoch - ROUNDING))

    now = Snapshot(
        starts=first_starts(task, settings, rule),
        best=torch.zeros(task.shape),
        best_rate=0.0,
        best_certainty=-1.0,
        image_gradients=0,
        image_queries=len(task.source) + len(task.validation),
        measured=(),
        share_done=0.0,
    )
    survivors = min(settings.survivors, len(now.starts))
    planned = screening * len(now.starts) + (legs - screening) * survivors
    done = 0
    for leg in range(legs):
        until = min(
            rounds_an_epoch * (leg + 1) // pace.legs_an_epoch,
            math.ceil(budget.max_epochs * rounds_an_epoch - ROUNDING),
            now.starts[0].rounds + _affordable(budget, now, len(now.starts) * pace.round_size),
        )
        if until <= now.starts[0].rounds or not _can_judge(budget, now, len(task.validation)):
            return
        screened = leg < screening

        def walk(start: Start, until: int = until, screened: bool = screened) -> Start:
            aim = start.aim if screened else task.objective
            state = start.state
            for epoch in range(start.rounds // rounds_an_epoch, math.ceil(until / rounds_an_epoch)):
                batches = task.source.shuffled(batch_size=pace.batch_size, seed=_order_seed(task, start), epoch=epoch)
                first = epoch * rounds_an_epoch
                for number in range(max(start.rounds, first), min(until, first + rounds_an_epoch)):
                    mine = (number - first) * per_round
                    update = pool.gradient(state.point, batches[mine : mine + per_round], aim)
                    if not torch.isfinite(update.total).all():
                        raise TrialError("the gradients are not finite; does the classifier overflow?")
                    state = rule.step(state, update, number / rounds_an_epoch)
            moved = start.moved or not torch.equal(state.v, start.state.v)
            return replace(start, state=state, rounds=until, moved=moved)

        with ThreadPoolExecutor(len(now.starts)) as threads:
            walked = tuple(threads.map(walk, now.starts))
        spent = sum(s.rounds - old.rounds for s, old in zip(walked, now.starts, strict=True)) * pace.round_size
        now = replace(now, starts=walked, image_gradients=now.image_gradients + spent)
        done += len(walked)
        now = _judge(pool, task, now, pace)
        if leg + 1 == screening:
            now = replace(now, starts=_keep(now, survivors))
        now = replace(now, share_done=done / planned)
        yield now
        if budget.stop_rate is not None and now.best_rate >= budget.stop_rate:
            return
        if budget.max_seconds is not None and time.monotonic() - begun >= budget.max_seconds:
            return


def rate(predictions: NDArray[np.int64], clean: NDArray[np.int64], objective: Objective) -> float:
    """Return what the search maximises on the validation part: fooling rate, or targeted success rate."""
    hit = predictions != clean if objective.target is None else predictions == objective.target
    return float(np.mean(hit))


def _judge(pool: ReplicaPool, task: Task, now: Snapshot, pace: Pace) -> Snapshot:
    """Measure the surface point of each start on the validation part and keep the best of all so far."""
    rows = []
    for start in now.starts:
        candidate = extend(start.state.v, p=task.p, xi=task.xi)
        logits = pool.logits(candidate, task.validation.in_turn())
        predictions, clean = predicted(logits), task.validation.reference
        reached = rate(predictions, clean, task.objective)
        certainty = task.objective.certainty(torch.from_numpy(logits), torch.from_numpy(clean))
        now = replace(now, image_queries=now.image_queries + len(clean))
        if certainty > now.best_certainty and start.moved:
            now = replace(now, best=candidate, best_rate=reached, best_certainty=certainty)
        rows.append(
            Measurement(
                start=start.index,
                round=start.rounds,
                epoch=start.rounds / pace.rounds_an_epoch,
                images_used=_images_seen(task, start, pace),
                image_gradients=now.image_gradients,
                image_queries=now.image_queries,
                l2=length(candidate, p=2),
                linf=length(candidate, p=math.inf),
                fooling_rate=rate(predictions, clean, Objective()),
                targeted_success_rate=None if task.objective.target is None else reached,
                certainty=certainty,
            )
        )
    return replace(now, measured=tuple(rows))


def _order_seed(task: Task, start: Start) -> int:
    return task.seed * 1000 + start.index


def _images_seen(task: Task, start: Start, pace: Pace) -> int:
    """Return how many different images a start has taken gradients of."""
    passes, left = divmod(start.rounds, pace.rounds_an_epoch)
    seen: set[int] = set()
    for number in range(passes + 1):
        order = task.source.order(seed=_order_seed(task, start), epoch=number)
        rounds = pace.rounds_an_epoch if number < passes else left
        seen.update(order[: rounds * pace.round_size].tolist())
    return len(seen)


def _keep(now: Snapshot, survivors: int) -> tuple[Start, ...]:
    """Return the starts that did best in the leg just judged, in the order of their index."""
    ranked = sorted(zip(now.starts, now.measured, strict=True), key=lambda pair: -pair[1].certainty)
    return tuple(sorted((start for start, _ in ranked[:survivors]), key=lambda start: start.index))


def _affordable(budget: Budget, now: Snapshot, gradients_a_round: int) -> int:
    """Return how many more rounds of all starts the budget of image-gradients allows."""
    if budget.max_image_gradients is None:
        return 2**62
    return max(0, budget.max_image_gradients - now.image_gradients) // gradients_a_round


def _can_judge(budget: Budget, now: Snapshot, images: int) -> bool:
    queries = now.image_queries + len(now.starts) * images
    return budget.max_image_queries is None or queries <= budget.max_image_queries
