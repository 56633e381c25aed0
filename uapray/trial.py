"""A search for one perturbation, on whatever pool of replicas it is given."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uapray.arena import Arena, radius
from uapray.attack.control import random_perturbation
from uapray.attack.objective import Objective
from uapray.attack.projection import order
from uapray.attack.rules import Rule, cosine_uap, df_uap, sga, spgd
from uapray.black_box import search_black_box
from uapray.config import BLACK_BOX, SEQUENTIAL, Search, Threat
from uapray.coordinator import LEAST_HEAT, Measurement, Snapshot, Task, Walk, search
from uapray.data.images import class_index, held_out
from uapray.errors import ConfigError, DataError, TrialError
from uapray.pace import pace_of
from uapray.panel import Member, rate
from uapray.pool import predicted
from uapray.rounds import Rounds, leaves_out, screened_on
from uapray.saved import Progress
from uapray.sequential import Sequential, nothing_accepted, step_of
from uapray.steady import one_thread


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        perturbation: float32 ``(c, h, w)``, pixel units.
        xi: Radius it was searched in, pixel units.
        epsilon: Length of the first step in the norm of the ball, pixel units; None where each step has its own,
            and for a random draw.
        history: The measurements on the validation part, in order.
        image_gradients: Spent, all starts together.
        image_queries: Spent, all starts together.
        source_images: Images that it was made from; those of the validation part are not among them.
        validation_rate: Rate of the perturbation on the validation part; None if it was not searched now.
        source_fooling_rate: Fooling rate on the images that it was made from; None of a random draw.
    """

    perturbation: Tensor
    xi: float
    epsilon: float | None
    history: tuple[Measurement, ...]
    image_gradients: int
    image_queries: int
    source_images: int
    validation_rate: float | None = None
    source_fooling_rate: float | None = None


def rule_of(
    settings: Search, threat: Threat, xi: float, images: int, classes: int, *, halved: bool = False
) -> tuple[Rule, float]:
    """Return the update rule for that many source images and classes, and the length of its first step in pixel units.

    An inner walk of `sga` is no longer than a leg or heat: what is judged at its end has moved. Where images are left
    out a pass is halved, and takes half as many image-gradients.
    """
    p = order(threat.norm)
    size, decay = settings.first_step(threat.norm), settings.decay(images // 2 if halved else images)
    match settings.rule:
        case "sga":
            inner = min(settings.inner_rounds, pace_of(images, settings, halved=halved).rounds_a_leg)
            inner = inner if settings.starts == 1 else min(inner, LEAST_HEAT)
            rule = sga(p=p, xi=xi, step_size=size, step_decay=decay, inner_rounds=inner)
        case "df-uap":
            rule = df_uap(p=p, xi=xi, step_size=size, step_decay=decay)
        case "cosine-uap":
            rule = cosine_uap(p=p, xi=xi, step_size=size, step_decay=decay)
        case _:
            kept, averaged = settings.kept(classes), settings.filtered(threat.norm) or math.inf
            rule = spgd(p=p, xi=xi, step_size=size, step_decay=decay, momentum=kept, wiener_rounds=averaged)
    return rule, size * xi


def walk_of(task: Task, settings: Search, threat: Threat, begin_at: Tensor | None = None) -> tuple[Walk, float | None]:
    """Return how the rule walks, and the length of its first step in pixel units; None: each step has its own.

    Raises:
        ConfigError: If the rule cannot work on several classifiers.
    """
    if settings.rule not in SEQUENTIAL:
        targeted, continues = task.objective.target is not None, begin_at is not None
        halved = leaves_out(settings, task.classes, targeted=targeted, continues=continues)
        rule, epsilon = rule_of(settings, threat, task.xi, len(task.source), task.classes, halved=halved)
        return Rounds(rule, task, settings, begin_at), epsilon
    if len(task.members) > 1:
        raise ConfigError(
            f"rule: {settings.rule} goes image by image through one classifier, got {len(task.members)}; "
            "take a rule by rounds, such as spgd"
        )
    epsilon = settings.first_step(threat.norm) * task.xi
    walk = Sequential(step_of(settings, task, epsilon), task, settings)
    return walk, None if settings.rule == "uap-deepfool" else epsilon


def find(
    arena: Arena,
    threat: Threat,
    settings: Search,
    *,
    seed: int,
    source: str = "train",
    rows: NDArray[np.int64] | None = None,
    measured_on: str | None = None,
    others: Sequence[Arena] = (),
    begin_at: Tensor | None = None,
    so_far: Progress | None = None,
    watch: Callable[[Snapshot], None] = lambda _: None,
) -> Found:
    """Search for a perturbation, or draw the control.

    Args:
        arena: Where the classifier and the source images are.
        threat: What the perturbation may be and is to do.
        settings: How to look for it.
        seed: Equal seeds give equal bits.
        source: Split that the perturbation is made on.
        rows: Which of its images, rising, int64 ``(n,)``; None: all.
        measured_on: Split whose mean norm makes zeta a radius, unless the threat asks for the images that it is made
            from; None: ``source``.
        others: Further classifiers that it is made on at the same time, with the same images.
        begin_at: Perturbation ``(c, h, w)`` found for another radius: it is brought to this one and refined
            (``Search.refinement``). None: the search begins anew.
        so_far: How far the same search had come before it was interrupted: it goes on from there to the same bits.
        watch: Called with each snapshot; it may raise to end the search.

    Raises:
        ConfigError: If the rule cannot work on several classifiers.
        TrialError: If the budget ended before anything could be judged, or the gradients were zero or not finite.
    """
    known = arena.images[source]
    if not len(known):
        raise DataError(f"{source}: expected images, got none")
    if begin_at is not None:
        settings = settings.refinement()
    if threat.xi_from == "source-images":
        xi = radius(arena, source, threat, rows)
    else:
        xi = radius(arena, measured_on or source, threat)
    p = order(threat.norm)
    height, width = known.size
    shape = (known.channels, height, width)
    if settings.rule == "random":
        return Found(random_perturbation(shape, p=p, xi=xi, seed=seed), xi, None, (), 0, 0, 0)

    taken = np.arange(len(known)) if rows is None else rows
    share = min(settings.validation_share, settings.max_validation_images / len(taken))
    held = held_out(known.labels[taken], [known.groups[row] for row in taken], share, seed)
    targeted, classes = threat.target is not None, len(known.class_names)
    target, loss = class_index(known.class_names, threat.target), settings.raised(targeted=targeted)
    task = Task(
        p=p,
        xi=xi,
        objective=Objective(target, loss, settings.clamp or math.inf),
        shape=shape,
        classes=classes,
        members=tuple(
            Member(one.pool, one.deck(source, taken[~held], rows), one.deck(source, taken[held], rows), one.weight)
            for one in (arena, *others)
        ),
        seed=seed,
        screen_images=screened_on(settings, classes, targeted=targeted, continues=begin_at is not None),
    )
    before = so_far or Progress()
    latest = before.snapshot
    history = list(before.history) if latest is not None else []
    with one_thread():
        snapshots, epsilon = _begin(task, threat, settings, begin_at, latest)
        for latest in snapshots:
            history.extend(latest.measured)
            watch(latest)
    if latest is None:
        raise TrialError("the budget ended before the first perturbation was judged; allow more of it")
    if not latest.best.any():
        asked = "answer" if settings.rule in BLACK_BOX else "gradient"
        raise TrialError(
            nothing_accepted(settings)
            if settings.rule in SEQUENTIAL
            else f"no {asked} ever moved the perturbation: the classifier is flat around these images, "
            "or the budget ended before the first step"
        )
    return Found(
        perturbation=latest.best,
        xi=xi,
        epsilon=epsilon,
        history=tuple(history),
        image_gradients=latest.image_gradients,
        image_queries=latest.image_queries,
        source_images=len(task.source),
        validation_rate=latest.best_rate,
        source_fooling_rate=_source_rate(task, latest.best),
    )


def _begin(
    task: Task, threat: Threat, settings: Search, begin_at: Tensor | None, so_far: Snapshot | None
) -> tuple[Iterator[Snapshot], float | None]:
    """Return the search of a rule, and the length of its step in pixel units, where it has one."""
    if settings.rule in BLACK_BOX:
        size = settings.first_step(threat.norm)
        epsilon = size * task.xi if settings.rule == "hill-climb" else None
        return search_black_box(task, settings, step_size=size), epsilon
    walk, epsilon = walk_of(task, settings, threat, begin_at)
    return search(walk, task, settings, so_far), epsilon


def _source_rate(task: Task, v: Tensor) -> float:
    """Return the fooling rate on the images that a perturbation was made from, the mean over the classifiers."""
    each = (
        rate(predicted(one.pool.logits(v, one.source.in_turn())), one.source.reference, Objective())
        for one in task.members
    )
    return float(np.mean(list(each)))
