"""The search loop: a generator of snapshots. To stop, log, save and resume is the caller's affair."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from uapray.attack.objective import Objective
from uapray.attack.projection import norms
from uapray.attack.rules import State
from uapray.config import Budget, Search
from uapray.pace import Pace
from uapray.panel import Member, at_once, verdict
from uapray.pool import Deck

HEAT = 4  # one of so many starts goes on after a heat
LEAST_HEAT = 2  # rounds of each start
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
        members: The classifiers, with the images that gradients are taken of and those to choose the best on.
        seed: Of the trial.
        screen_images: Source images at most on which, with the validation part, the starts of a heat are compared by
            their rate; 0: by their certainty on the validation part alone.
    """

    p: float
    xi: float
    objective: Objective
    shape: tuple[int, int, int]
    classes: int
    members: tuple[Member, ...]
    seed: int
    screen_images: int = 0

    @property
    def source(self) -> Deck:
        """The images that gradients are taken of, as the first classifier sees them."""
        return self.members[0].source

    @property
    def validation_queries(self) -> int:
        """Forward passes of one judgement."""
        return sum(len(member.validation) for member in self.members)

    @property
    def screeners(self) -> tuple[Member, ...]:
        """The classifiers, to be asked about source images instead of the validation part."""
        return tuple(replace(one, validation=one.source.spread(self.screen_images)) for one in self.members)

    @property
    def screening_queries(self) -> int:
        """Forward passes with which a start is compared with others, besides a judgement."""
        return sum(len(member.validation) for member in self.screeners) if self.screen_images else 0


@dataclass(frozen=True, slots=True)
class Start:
    """One of the searches of a trial: where it stands, and where it aims while it is screened.

    Until the classifier's answers have moved a start it is no more than a random draw, and not judged.

    Attributes:
        index: Which of the trial's starts.
        state: Where it stands.
        aim: What it raises until the screening is over.
        rounds: Rounds made.
        moved: Whether answers have moved it.
        image_gradients: Spent by this start.
        image_queries: Spent by this start.
    """

    index: int
    state: State
    aim: Objective
    rounds: int = 0
    moved: bool = False
    image_gradients: int = 0
    image_queries: int = 0


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
        best: The best perturbation judged so far, by its certainty on the validation part; of heats that are won by a
            rate only until the winner has gone on.
        best_rate: Its rate there.
        best_certainty: Its certainty there.
        image_gradients: Spent so far, all starts together.
        image_queries: Spent so far, all starts together.
        measured: What the last leg brought, one row a start.
        share_done: Of what the budget allows, in [0, 1].
        begun_with: Starts that the search began with.
        seconds: Wall time spent so far, that before an interruption included.
    """

    starts: tuple[Start, ...]
    best: Tensor
    best_rate: float
    best_certainty: float
    image_gradients: int
    image_queries: int
    measured: tuple[Measurement, ...]
    share_done: float
    begun_with: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one round of one start costs at most."""

    image_gradients: int
    image_queries: int


class Walk(Protocol):
    """How a start goes on from one measurement to the next; what a kind of update rule consists of."""

    @property
    def pace(self) -> Pace:
        """How a pass is divided."""
        ...

    @property
    def cost(self) -> Cost:
        """What a round costs at most."""
        ...

    def begin(self) -> tuple[Start, ...]:
        """Return the searches a trial begins with."""
        ...

    def advance(self, start: Start, until: int, aim: Objective) -> Start:
        """Return where a start stands after that many rounds, counted from its beginning."""
        ...

    def candidate(self, start: Start) -> Tensor:
        """Return the perturbation to be judged, where a start stands."""
        ...

    def images_seen(self, start: Start) -> int:
        """Return how many different images a start has been moved by."""
        ...


def search(walk: Walk, task: Task, settings: Search, so_far: Snapshot | None = None) -> Iterator[Snapshot]:
    """Look for the perturbation; yield where the search stands after each leg between two measurements.

    The starts of one leg run at the same time and know nothing of each other; what they bring is judged in the
    order of their index. So neither the number of replicas nor their speed can change a bit of the result.

    Args:
        walk: How a start goes on.
        task: What is searched.
        settings: How.
        so_far: A snapshot of the same search, yielded before it was interrupted: it goes on from there, to the same
            bits. None: it begins.
    """
    budget, clock = settings.budget, time.monotonic()
    if so_far is not None:
        now, clock = so_far, clock - so_far.seconds
    else:
        now = _begin(walk, task)
        if all(start.moved for start in now.starts):  # from what another search found: that is a candidate
            now = _judge(walk, task, now)
            yield now
    legs = partial(legs_of, walk.pace, settings, now.begun_with)
    walked, planned = 0, sum(leg.starts * leg.rounds for leg in legs()) if settings.max_epochs < math.inf else math.inf
    for leg in legs():
        made = now.starts[0].rounds
        if leg.until <= made:
            walked += leg.starts * leg.rounds
            continue
        judgement = task.validation_queries + (task.screening_queries if leg.heat else 0)
        until = min(leg.until, made + _affordable(budget, now, walk.cost, judgement))
        if until <= made or _enough(budget, now):
            return

        def advance(start: Start, until: int = until, aimed: bool = leg.heat) -> Start:
            return walk.advance(start, until, start.aim if aimed else task.objective)

        moved = at_once(advance, now.starts)
        pairs = list(zip(moved, now.starts, strict=True))
        walked += (until - made) * len(pairs)
        now = replace(
            now,
            starts=moved,
            image_gradients=now.image_gradients + sum(new.image_gradients - old.image_gradients for new, old in pairs),
            image_queries=now.image_queries + sum(new.image_queries - old.image_queries for new, old in pairs),
        )
        now = _judge(walk, task, now)
        if leg.heat:
            now, ranks = _compare(walk, task, now)
            now = replace(now, starts=_keep(now.starts, ranks, leg.survivors))
        now = replace(now, seconds=time.monotonic() - clock)
        now = replace(now, share_done=share_done(budget, now, walked / planned, now.seconds))
        yield now


def _begin(walk: Walk, task: Task) -> Snapshot:
    starts = walk.begin()
    clean = sum(len(member.source) + len(member.validation) for member in task.members)
    return Snapshot(
        starts=starts,
        best=torch.zeros(task.shape),
        best_rate=0.0,
        best_certainty=-1.0,
        image_gradients=sum(start.image_gradients for start in starts),
        image_queries=clean + sum(start.image_queries for start in starts),
        measured=(),
        share_done=0.0,
        begun_with=len(starts),
    )


def _enough(budget: Budget, now: Snapshot) -> bool:
    """Return whether the rate or the time that was allowed is reached."""
    rate, seconds = budget.stop_rate, budget.max_seconds
    return (rate is not None and now.best_rate >= rate) or (seconds is not None and now.seconds >= seconds)


@dataclass(frozen=True, slots=True)
class Leg:
    """The way from one measurement to the next.

    Attributes:
        until: Rounds that each start has made at its end.
        rounds: Rounds of the leg.
        starts: Starts that walk it.
        survivors: Starts that go on after it.
        heat: Whether it belongs to the screening, in which each start follows its own aim.
    """

    until: int
    rounds: int
    starts: int
    survivors: int
    heat: bool


def legs_of(pace: Pace, settings: Search, starts: int) -> Iterator[Leg]:
    """Yield the legs of a search: heats, each won by a quarter of its starts, then the way of those that are left.

    Successive halving (Jamieson & Talwalkar 2016, figure 1), but for the share: what a start is worth shows early.
    """
    passes = settings.max_epochs
    last = 2**62 if passes == math.inf else math.ceil(passes * pace.rounds_an_epoch - ROUNDING)
    made = 0
    while starts > settings.survivors and made < last:
        survivors = max(settings.survivors, math.ceil(starts / HEAT))
        until = min(made + max(LEAST_HEAT, settings.screen_rounds // starts), last)
        yield Leg(until, until - made, starts, survivors, heat=True)
        made, starts = until, survivors
    for leg in itertools.count(1):
        until = min(pace.rounds_an_epoch * leg // pace.legs_an_epoch, last)
        if until > made:
            yield Leg(until, until - made, starts, starts, heat=False)
            made = until
        if made >= last:
            return


def judge_point(
    task: Task, now: Snapshot, start: Start, candidate: Tensor, epoch: float, images_used: int
) -> tuple[Snapshot, Measurement]:
    """Judge the perturbation that a start came to on the validation part, and keep it if it is the best so far."""
    said = verdict(task.members, candidate, task.objective)
    now = replace(now, image_queries=now.image_queries + said.image_queries)
    if said.certainty > now.best_certainty and start.moved:
        now = replace(now, best=candidate, best_rate=said.rate, best_certainty=said.certainty)
    l2, linf = norms(candidate)
    return now, Measurement(
        start=start.index,
        round=start.rounds,
        epoch=epoch,
        images_used=images_used,
        image_gradients=now.image_gradients,
        image_queries=now.image_queries,
        l2=l2,
        linf=linf,
        fooling_rate=said.fooling_rate,
        targeted_success_rate=said.targeted_success_rate,
        certainty=said.certainty,
    )


def _judge(walk: Walk, task: Task, now: Snapshot) -> Snapshot:
    rows = []
    for start in now.starts:
        epoch = start.rounds / walk.pace.rounds_an_epoch
        now, row = judge_point(task, now, start, walk.candidate(start), epoch, walk.images_seen(start))
        rows.append(row)
    return replace(now, measured=tuple(rows))


def _compare(walk: Walk, task: Task, now: Snapshot) -> tuple[Snapshot, list[float]]:
    """Return what the starts that have just been judged are ranked by.

    A class may gain more certainty in a heat than another and bring fewer images over in the end; rates tell that, but
    need more images than a validation part has. The most certain of those that are ranked by rate gives way to the
    first judgement of the winner.
    """
    if not task.screen_images:
        return now, [row.certainty for row in now.measured]
    screeners, known = task.screeners, len(task.members[0].validation)
    said = [verdict(screeners, walk.candidate(start), task.objective) for start in now.starts]
    more = len(screeners[0].validation)
    hits = [row.fooling_rate * known + one.fooling_rate * more for row, one in zip(now.measured, said, strict=True)]
    queries = now.image_queries + sum(one.image_queries for one in said)
    return replace(now, image_queries=queries, best_certainty=-1.0), hits


def _keep(starts: Sequence[Start], ranks: Sequence[float], survivors: int) -> tuple[Start, ...]:
    """Return the starts of the highest ranks, in the order of their index."""
    ranked = sorted(zip(starts, ranks, strict=True), key=lambda pair: -pair[1])
    return tuple(sorted((start for start, _ in ranked[:survivors]), key=lambda start: start.index))


def _affordable(budget: Budget, now: Snapshot, cost: Cost, judgement: int) -> int:
    """Return how many more rounds of all starts the budget allows, with a judgement of each at the end."""
    starts, rounds = len(now.starts), 2**62
    if budget.max_image_gradients is not None and cost.image_gradients:
        left = budget.max_image_gradients - now.image_gradients
        rounds = min(rounds, left // (starts * cost.image_gradients))
    if budget.max_image_queries is not None:
        left = budget.max_image_queries - now.image_queries - starts * judgement
        rounds = min(
            rounds, left // (starts * cost.image_queries) if cost.image_queries else rounds if left >= 0 else 0
        )
    return max(0, rounds)


def share_done(budget: Budget, now: Snapshot, passes: float, seconds: float) -> float:
    """Return how much of the limit that is nearest has been used."""
    used = [
        passes,
        now.image_gradients / budget.max_image_gradients if budget.max_image_gradients else 0.0,
        now.image_queries / budget.max_image_queries if budget.max_image_queries else 0.0,
        seconds / budget.max_seconds if budget.max_seconds else 0.0,
    ]
    return min(1.0, max(used))
