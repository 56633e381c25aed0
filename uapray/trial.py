"""One step of a plan: a search or a judgement, on whatever pool of replicas it is given."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uapray.attack.control import random_perturbation
from uapray.attack.objective import Objective
from uapray.attack.projection import length, mean_norm, order
from uapray.attack.rules import Rule, cosine_uap, df_uap, sga, spgd
from uapray.black_box import search_black_box
from uapray.config import BLACK_BOX, SEQUENTIAL, Search, Threat
from uapray.coordinator import LEAST_HEAT, Measurement, Snapshot, Task, Walk, search
from uapray.data.images import ImageSet, class_index, held_out
from uapray.errors import ConfigError, DataError, TrialError
from uapray.measures import Outcome, Visibility, spread, visibility
from uapray.pace import pace_of
from uapray.panel import Member, rate
from uapray.pool import Deck, ReplicaPool, in_turn, predicted
from uapray.rendering import Rendering
from uapray.rounds import Rounds, leaves_out, screened_on
from uapray.saved import Progress
from uapray.sequential import Sequential, nothing_accepted, step_of
from uapray.steady import one_thread

LIKENESS_IMAGES = 256  # PSNR and SSIM are the mean of so many at most, evenly spread
LIKENESS_BATCH = 8  # SSIM keeps some twenty copies of a batch


@dataclass(frozen=True, slots=True)
class Arena:
    """A classifier on replicas, with the image arrays that they hold.

    Attributes:
        pool: Replicas of the classifier.
        images: The image sets by the name the replicas know them under, which is their split.
        weight: Voice of the classifier in a search on several.
    """

    pool: ReplicaPool
    images: Mapping[str, ImageSet]
    weight: float = 1.0
    _clean: dict[tuple[str, Rendering | None, bytes | None], NDArray[np.float32]] = field(default_factory=dict)
    _norms: dict[tuple[str, str, int | None], float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def clean(
        self, split: str, rendering: Rendering | None = None, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return the classes predicted for the clean images, rendered or as they are; as ``clean_logits``."""
        return predicted(self.clean_logits(split, rendering, among))

    def clean_logits(
        self, split: str, rendering: Rendering | None = None, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits ``(n, k)`` of the clean images, rendered or as they are; the replicas are asked once.

        Args:
            split: Name of the split.
            rendering: What the images go through before.
            among: Of these alone, int64 ``(n,)``; last bits depend on the company, so no others may come along.
        """
        if not len(self.images[split]):
            raise DataError(f"{split}: expected images, got none")
        key = split, rendering, None if among is None else among.tobytes()
        with self._lock:
            if key not in self._clean:
                rows = np.arange(len(self.images[split])) if among is None else among
                self._clean[key] = self.pool.logits(None, in_turn(split, rows), rendering)
            return self._clean[key]

    def mean_norm(
        self, split: str, norm: str, *, channels: int | None = None, rows: NDArray[np.int64] | None = None
    ) -> float:
        """Return the mean norm of a split's images, pixel units; that of all is computed once.

        Args:
            split: Name of the split.
            norm: ``l2`` or ``linf``.
            channels: The first so many alone; None: all.
            rows: Of the images that count, int64 ``(n,)``; None: all.
        """
        images = self.images[split].images[..., :channels]
        if not len(images):
            raise DataError(f"{split}: expected images, got none")
        if rows is not None:
            return _mean_norm(images, rows, order(norm))
        key = split, norm, channels
        with self._lock:
            if key not in self._norms:
                self._norms[key] = _mean_norm(images, np.arange(len(images)), order(norm))
            return self._norms[key]

    def deck(self, split: str, rows: NDArray[np.int64], among: NDArray[np.int64] | None = None) -> Deck:
        """Return some images of a split with their clean predictions; ``among`` has them all (``clean_logits``)."""
        clean = self.clean(split, among=among)
        return Deck(split, rows, clean[rows if among is None else np.searchsorted(among, rows)])


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


@dataclass(frozen=True, slots=True)
class Judgement:
    """A perturbation judged on one split.

    Attributes:
        split: Name of the split.
        outcome: Predictions before and after.
        visibility: How much the images changed.
        target: Index of the class that was to be reached; None: nontargeted.
        clean_logits: Of the clean images, ``(n, k)``.
        perturbed_logits: Of the perturbed images, ``(n, k)``.
    """

    split: str
    outcome: Outcome
    visibility: Visibility
    target: int | None
    clean_logits: NDArray[np.float32]
    perturbed_logits: NDArray[np.float32]


def radius(arena: Arena, split: str, threat: Threat, rows: NDArray[np.int64] | None = None) -> float:
    """Return xi in pixel units: as given, or zeta times the mean norm of images (Hirano et al. 2021).

    Args:
        arena: Where the images are.
        split: Whose images; ``Threat.xi_from`` says which of their channels.
        threat: Norm and size.
        rows: Of the images that count, int64 ``(n,)``; None: all.
    """
    if threat.xi is not None:
        return threat.xi
    assert threat.zeta is not None
    channels = 1 if threat.xi_from == "first-channel" else None
    return threat.zeta * arena.mean_norm(split, threat.norm, channels=channels, rows=rows)


def _mean_norm(images: NDArray[np.uint8], rows: NDArray[np.int64], p: float) -> float:
    """Return the mean norm of some images, without copying them all at once."""
    parts = (torch.from_numpy(images[rows[start : start + 256]]) for start in range(0, len(rows), 256))
    return sum(len(part) * mean_norm(part, p=p) for part in parts) / len(rows)


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


def judge(arena: Arena, split: str, perturbation: Tensor, *, target: int | None) -> Judgement:
    """Measure a perturbation on a split, after clipping to valid pixels."""
    images, clean = arena.images[split], arena.clean_logits(split)
    perturbed = arena.pool.logits(perturbation, in_turn(split, np.arange(len(images))))
    outcome = Outcome(images.labels, predicted(clean), predicted(perturbed), len(images.class_names))
    some = in_turn(split, spread(len(images), LIKENESS_IMAGES), LIKENESS_BATCH)
    seen = visibility(arena.pool.likeness(perturbation, some))
    return Judgement(split, outcome, seen, target, clean, perturbed)


def judge_rendered(arena: Arena, split: str, perturbation: Tensor, rendering: Rendering) -> Outcome:
    """Measure a perturbation on a split where clean and perturbed images are rendered before they are classified."""
    return predictions(arena, split, perturbation, np.arange(len(arena.images[split])), rendering)


def predictions(
    arena: Arena, split: str, perturbation: Tensor, rows: NDArray[np.int64], rendering: Rendering | None = None
) -> Outcome:
    """Return what is predicted of some images of a split, without the perturbation and with it.

    Args:
        arena: Where the classifier and the images are.
        split: Name of the split.
        perturbation: ``(c, h, w)``, pixel units.
        rows: Of the split, int64 ``(n,)``.
        rendering: What clean and clipped perturbed images go through before they are classified.
    """
    images = arena.images[split]
    return Outcome(
        labels=images.labels[rows],
        clean=arena.clean(split, rendering)[rows],
        perturbed=predicted(arena.pool.logits(perturbation, in_turn(split, rows), rendering)),
        classes=len(images.class_names),
    )


def norms(perturbation: Tensor) -> tuple[float, float]:
    """Return the l2 and linf norm of a perturbation, pixel units."""
    return length(perturbation, p=order("l2")), length(perturbation, p=order("linf"))
