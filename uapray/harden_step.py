"""One round of hardening: perturbations against a classifier, a training with them, a fresh perturbation afterwards."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uapray.arena import Arena, radius
from uapray.attack.projection import order
from uapray.data.images import ImageSet, class_index
from uapray.judgement import judge
from uapray.measures import Outcome
from uapray.models.card import Classifier
from uapray.models.disturbance import Ascent, Disturbance
from uapray.models.scores import Scores
from uapray.models.training import EpochReport
from uapray.models.weights import make_classifier
from uapray.pool import ReplicaPool
from uapray.resources import Held, Resources, open_pool
from uapray.stoppable import StoppablePool
from uapray.train_step import fit_classifier
from uapray.trial import Found, find
from uapray.victims import HardenStep


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What a round of hardening gave.

    Attributes:
        classifier: Hardened.
        undefended_sha256: Weights of the classifier before the first round.
        scores: Its clean metrics by split.
        before: Predictions under a perturbation made on the classifier before, by split.
        after: Predictions under one made on the classifier now, with the same settings and seed.
        known: Predictions of the classifier now under the perturbations that it was trained with.
        target: Index of the class that perturbations pull towards; None: nontargeted.
        xi: Their radius, pixel units.
        image_gradients: Spent by its searches; those of the training are not among them.
        image_queries: Spent by its searches.
    """

    classifier: Classifier
    undefended_sha256: str
    scores: Mapping[str, Scores]
    before: Mapping[str, Outcome]
    after: Mapping[str, Outcome]
    known: Mapping[str, tuple[Outcome, ...]]
    target: int | None
    xi: float
    image_gradients: int
    image_queries: int


def harden_classifier(
    step: HardenStep,
    base: Classifier,
    held: Held,
    judged: Sequence[str],
    resources: Resources,
    *,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
    on_search: Callable[[float], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
    counted: Callable[[ReplicaPool], AbstractContextManager[object]] = nullcontext,
) -> Round:
    """Make one round; the classifier that it begins with stays as it is.

    Args:
        step: Which round of what.
        base: The classifier that it begins with.
        held: The splits; trained on ``train``, the validation part held out of it, or ``val`` if there is one.
        judged: Splits on which rates are measured.
        resources: Of replicas and training workers.
        on_epoch: Called after each epoch of the training.
        on_search: Called with the share of the round's searches that are done.
        check: Called often; it may raise to end the round.
        counted: Inside its block the replicas are counted among those of a run.
    """
    settings, names = step.settings, held.images["train"].class_names
    target, decks = class_index(names, settings.target), held.select({"train", *judged})
    count = settings.perturbations if settings.method == "retraining" else 0
    done = itertools.count(1)

    def search(arena: Arena, number: int) -> Found:
        found = find(arena, step.threat, settings.rule, seed=seed_of(step, number))
        on_search(next(done) / (count + 2))
        return found

    with open_pool(base, decks, resources, check) as pool, counted(pool):
        arena = Arena(StoppablePool(pool, check), decks.images)
        with ThreadPoolExecutor(resources.trials_at_once(pool.size)) as threads:
            *made, fresh = threads.map(lambda number: search(arena, number), range(count + 1))
        xi = radius(arena, "train", step.threat)
        before = _outcomes(arena, judged, fresh.perturbation, target)
    trained = fit_classifier(
        copy.deepcopy(base.module),
        held.without(step.source.foreign).images,
        settings.recipe,
        seed=seed_of(step, -1),
        resources=resources,
        disturbance=_disturbance(step, [one.perturbation for one in made], held.images["train"], xi, target),
        on_epoch=on_epoch,
        while_waiting=check,
    )
    said, first = base.card.recipe, step.round == 1
    undefended = base.sha256 if first else said["undefended_sha256"]
    card = base.card.model_copy(
        update={
            "recipe": {
                "hardening": settings.model_dump(mode="json"),
                "round": step.round,
                "undefended": said if first else said["undefended"],
                "undefended_sha256": undefended,
            },
            "data": step.source.name,
            "data_sha256": step.source.data.sha256,
            "metrics": {split: scores.plain() for split, scores in trained.scores.items()},
        }
    )
    classifier = make_classifier(trained.module, card)
    assert trained.perturbations is not None
    with open_pool(classifier, decks, resources, check) as pool, counted(pool):
        arena = Arena(StoppablePool(pool, check), decks.images)
        again = search(arena, count)
        after = _outcomes(arena, judged, again.perturbation, target)
        met = [_outcomes(arena, judged, one, target) for one in trained.perturbations]
    spent = (*made, fresh, again)
    return Round(
        classifier=classifier,
        undefended_sha256=undefended,
        scores=trained.scores,
        before=before,
        after=after,
        known={split: tuple(one[split] for one in met) for split in judged},
        target=target,
        xi=xi,
        image_gradients=sum(one.image_gradients for one in spent),
        image_queries=sum(one.image_queries for one in spent),
    )


def seed_of(step: HardenStep, number: int) -> int:
    """Return the seed of one of a round's searches, or of its training (-1); no two rounds share any."""
    drawn = np.random.SeedSequence([step.settings.seed, step.round, number + 1])
    return int(drawn.generate_state(1)[0])


def _outcomes(arena: Arena, splits: Sequence[str], perturbation: Tensor, target: int | None) -> dict[str, Outcome]:
    return {split: judge(arena, split, perturbation, target=target).outcome for split in splits}


def _disturbance(
    step: HardenStep, perturbations: Sequence[Tensor], train: ImageSet, xi: float, target: int | None
) -> Disturbance:
    """Return what a round trains with: the perturbations made, or one that begins at zero and rises."""
    settings = step.settings
    if perturbations:
        return Disturbance(torch.stack(list(perturbations)), settings.perturbed_share)
    rising = torch.zeros(1, train.channels, *train.size)
    return Disturbance(
        rising, settings.perturbed_share, Ascent(order(settings.norm), xi, settings.step_share * xi, target)
    )
