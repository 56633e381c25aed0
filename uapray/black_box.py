"""Searches that ask the classifier for its answers only: no gradient, no weights."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from uapray.ask_tell import Points, searcher
from uapray.asking import BudgetEnded, Desk
from uapray.attack.basis import decode
from uapray.attack.projection import extend, length, project
from uapray.attack.rules import State
from uapray.config import Search
from uapray.coordinator import Snapshot, Start, Task, judge_point, share_done
from uapray.errors import ConfigError
from uapray.race import Contender

GROWTH = 1.1  # a perturbation is judged again when this many times as many predictions have been spent


def search_black_box(task: Task, settings: Search, *, step_size: float) -> Iterator[Snapshot]:
    """Look for the perturbation by the classifier's answers alone; yield after each judgement on the validation part.

    Judged is the surface point that the search points to, each time that the predictions spent have grown by a tenth,
    and at the end. A pass is as many predictions of source images as there are source images.

    Args:
        task: What is searched.
        settings: How.
        step_size: Length of a step as a share of xi; of a meta-heuristic the spread of its first generation.

    Raises:
        ConfigError: If there is more than one classifier.
    """
    if len(task.members) > 1:
        raise ConfigError(f"{settings.rule}: expected one classifier, got {len(task.members)}; name another rule")
    budget, begun = settings.budget, time.monotonic()
    spent = len(task.source) + len(task.members[0].validation)  # on the clean predictions, and on judgements
    passes = settings.max_epochs * len(task.source)
    queries = math.inf if budget.max_image_queries is None else budget.max_image_queries
    desk = Desk.opened(task, settings)
    desk.most = min(passes, queries - spent - task.validation_queries)
    now = Snapshot((), torch.zeros(task.shape), 0.0, -1.0, 0, spent + desk.image_queries, (), 0.0)
    judged = 0

    def judge(start: Start) -> Snapshot:
        nonlocal spent, judged
        asked = replace(now, starts=(start,), image_queries=spent + desk.image_queries)
        candidate = extend(start.state.v, p=task.p, xi=task.xi)
        passes_made = desk.image_queries / len(task.source)
        judged_now, row = judge_point(task, asked, start, candidate, passes_made, len(desk.seen))
        spent, judged = spent + task.validation_queries, judged_now.image_queries
        desk.most = min(passes, queries - spent - task.validation_queries)
        done = share_done(budget, judged_now, desk.image_queries / passes, time.monotonic() - begun)
        return replace(judged_now, measured=(row,), share_done=done)

    start: Start | None = None
    for start in (_climb if settings.rule == "hill-climb" else _breed)(desk, step_size):
        late = budget.max_seconds is not None and time.monotonic() - begun >= budget.max_seconds
        so_far = spent + desk.image_queries
        if not late and (so_far < GROWTH * judged or so_far + 2 * task.validation_queries > queries):
            continue
        now = judge(start)
        yield now
        if late or (budget.stop_rate is not None and now.best_rate >= budget.stop_rate):
            return
    if start is not None and not any(start is one for one in now.starts):
        yield judge(start)


def _climb(desk: Desk, step_size: float) -> Iterator[Start]:
    """Walk by single waves (Koga & Takemoto 2022): a step along or against the next one, if that is better.

    Compared are the surface points that the ways lead to, which are what is judged and handed out in the end, unless
    the settings want the published comparison where they stand.

    Yields where the walk stands after each comparison, until the budget ends.
    """
    task, settings = desk.task, desk.settings
    shown = partial(extend, p=task.p, xi=task.xi) if settings.placed == "surface" else Tensor.clone
    at, stands, rounds, moved = torch.zeros(task.shape), desk.new(torch.zeros(task.shape)), 0, False
    for wave in waves(task.shape, settings.frequencies, task.seed):
        step = wave * (step_size * task.xi / length(wave, p=task.p))
        ways = [project(at + way, p=task.p, xi=task.xi) for way in (-step, step)]
        # of equals the first wins: without scores a plateau is to be left
        field = [*(desk.new(shown(way)) for way in ways), stands]
        try:
            winner, short = desk.race(field)
        except BudgetEnded:
            return
        if winner < len(ways):
            at, rounds, moved = ways[winner], rounds + 1, moved or bool(short.any())
        stands = field[winner]
        yield _start(desk, at, rounds, moved=moved)


def _breed(desk: Desk, step_size: float) -> Iterator[Start]:
    """Let a meta-heuristic look among the coefficients of low frequencies.

    The values that it is told of a generation are differences on common images. To make those of several generations
    comparable, as all but ``cma-es`` need them, the best so far runs along in each race and keeps its value.
    Yields what the search stands for after each generation, until the budget ends.
    """
    task, settings = desk.task, desk.settings
    space = _Space(task, settings.frequencies)
    seeker = searcher(
        settings.rule,
        space.dimension,
        population=settings.population,
        spread=step_size,
        seed=task.seed,
    )
    best: Contender | None = None
    value, moved = 0.0, False
    for generation in itertools.count(1):
        points = seeker.ask()
        field = [desk.new(space.perturbation(point)) for point in points]
        runs_along = [best] if best is not None and settings.rule != "cma-es" else []
        try:
            winner, short = desk.race([*runs_along, *field])
        except BudgetEnded:
            return
        values = short + (value - short[0] if runs_along else 0.0)
        seeker.tell(values[len(runs_along) :])
        best, value, moved = [*runs_along, *field][winner], float(values[winner]), moved or bool(short.any())
        v = space.perturbation(seeker.favourite) if settings.rule == "cma-es" else best.v
        yield _start(desk, v, generation, moved=moved)


@dataclass(frozen=True, slots=True)
class _Space:
    """The points that a meta-heuristic moves among: coefficients of the lowest frequencies."""

    task: Task
    frequencies: int

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = self.task.shape
        return channels, min(self.frequencies, height), min(self.frequencies, width)

    @property
    def dimension(self) -> int:
        """How many coefficients there are."""
        return math.prod(self._shape)

    def perturbation(self, point: Points) -> Tensor:
        """Return the surface point in the direction of the picture that some coefficients stand for."""
        _, height, width = self.task.shape
        picture = decode(torch.from_numpy(point).reshape(self._shape), (height, width))
        return extend(picture, p=self.task.p, xi=self.task.xi)


def waves(shape: tuple[int, int, int], frequencies: int, seed: int) -> Iterator[Tensor]:
    """Yield single waves of the cosine basis without end: the lowest frequencies in random order, then ring by ring."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    while True:
        for side in range(min(frequencies, max(height, width)), max(height, width) + 1):
            ring = [
                (channel, down, across)
                for channel in range(channels)
                for down in range(min(side, height))
                for across in range(min(side, width))
                if side <= frequencies or max(down, across) == side - 1
            ]
            for place in rng.permutation(len(ring)):
                channel, down, across = ring[place]
                coefficients = torch.zeros(channels, down + 1, across + 1)
                coefficients[channel, down, across] = 1
                yield decode(coefficients, (height, width))


def _start(desk: Desk, v: Tensor, rounds: int, *, moved: bool) -> Start:
    return Start(
        index=0,
        state=State(v=v, point=v, memory=torch.empty(0)),
        aim=desk.task.objective,
        rounds=rounds,
        moved=moved,
        image_queries=desk.image_queries,
    )
