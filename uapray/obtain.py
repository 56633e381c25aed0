"""How a run comes by a classifier: as given, out of the store, or made now and stored."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from uapray.data.images import ImageSet
from uapray.harden_step import harden_classifier
from uapray.models.blocks import first_blocks
from uapray.models.card import Classifier, check_fits
from uapray.models.scores import Scores, classifier_rows
from uapray.models.weights import check_can_be_saved, load_classifier, load_for, save_classifier_once
from uapray.pool import ReplicaPool
from uapray.resources import Held
from uapray.rows import hardening_row
from uapray.run import Run
from uapray.shelf import Shelf
from uapray.train_step import initial_classifier, interpolate_classifier, train_classifier
from uapray.victims import HardenStep, InterpolateStep, TrainStep, Victim

Counted = Callable[[ReplicaPool], AbstractContextManager[object]]


def sample_of(images: ImageSet) -> ImageSet:
    """Return two images that stand for all."""
    return images.select(np.arange(min(2, len(images))))


def model_key(victim: Victim) -> str:
    """Return where a classifier that a run made stands in the store."""
    return f"models/{victim.bare_key}.safetensors"


def begin_with(victim: Victim, sample: ImageSet) -> Classifier:
    """Return the classifier as given, or the one that its training begins with.

    Raises:
        ClassifierError: If there is none, or it does not fit the images, or it is to be hardened and cannot be saved.
        ConfigError: If it has fewer blocks than are to be frozen.
    """
    if victim.train is not None:
        classifier = initial_classifier(victim.train, sample)
    else:
        assert victim.reference is not None
        classifier = load_for(victim.reference, sample)
        check_fits(classifier, sample)
    if victim.hardened is not None:
        check_can_be_saved(classifier)
        first_blocks(classifier.module, victim.hardened.settings.recipe.frozen_blocks)
    return classifier


def obtain(
    run: Run,
    victim: Victim,
    held: Held,
    judged: Sequence[str],
    shelf: Shelf,
    check: Callable[[], None],
    counted: Counted = nullcontext,
) -> Classifier:
    """Return a classifier without its filter, made and stored now if it does not stand yet.

    Args:
        run: That wants it.
        victim: Its place in the plan.
        held: The splits that it is made on.
        judged: Splits on which the rounds of a hardening are judged.
        shelf: Whose groups, that want the same classifier, wait for one another.
        check: Called often; it may raise to end the making.
        counted: As in `harden_classifier`.
    """
    objects, key = run.results.objects, model_key(victim)
    with shelf.making(victim.bare_key):
        if not objects.exists(key):
            if victim.hardened is not None:
                base = obtain(run, victim.hardened.base, held, judged, shelf, check, counted)
                classifier, scores = _harden(run, victim, victim.hardened, base, held, judged, check, counted)
            elif victim.interpolated is not None:
                trained = obtain(run, victim.interpolated.base, held, judged, shelf, check, counted)
                classifier, scores = _interpolate(run, victim.interpolated, trained, held, check)
            elif victim.train is not None:
                classifier, scores = _train(run, victim, victim.train, held, check)
            else:
                return begin_with(victim, sample_of(held.images["train"]))
            if _keep(run, victim, classifier, scores):
                return classifier
        return load_classifier(f"{objects.uri}/{key}", architecture=victim.reference)


def _train(
    run: Run, victim: Victim, step: TrainStep, held: Held, check: Callable[[], None]
) -> tuple[Classifier, Mapping[str, Scores]]:
    run.watcher.to_train(victim)
    return train_classifier(
        step,
        held.without(step.source.foreign).images,
        begin_with(victim, sample_of(held.images["train"])),
        run.resources,
        lambda report: run.watcher.training(victim, report),
        check,
    )


def _interpolate(
    run: Run, step: InterpolateStep, trained: Classifier, held: Held, check: Callable[[], None]
) -> tuple[Classifier, Mapping[str, Scores]]:
    assert step.base.train is not None
    return interpolate_classifier(
        step,
        begin_with(step.base, sample_of(held.images["train"])),
        trained,
        held.without(step.base.train.source.foreign),
        run.resources,
        check,
    )


def _harden(
    run: Run,
    victim: Victim,
    step: HardenStep,
    base: Classifier,
    held: Held,
    judged: Sequence[str],
    check: Callable[[], None],
    counted: Counted,
) -> tuple[Classifier, Mapping[str, Scores]]:
    """Make a round of hardening and write its rows, which count once the classifier is kept."""
    made = harden_classifier(
        step,
        base,
        held,
        judged,
        run.resources,
        on_epoch=lambda report: run.watcher.training(victim, report),
        on_search=lambda share: run.watcher.hardening(victim, share),
        check=check,
        counted=counted,
    )
    for split in judged:
        row = hardening_row(victim, step, made, split)
        run.results.write_rows("hardening", run.plan.grid.name, f"{victim.bare_key}-{split}", [row])
    return made.classifier, made.scores


def _keep(run: Run, victim: Victim, classifier: Classifier, scores: Mapping[str, Scores]) -> bool:
    """Store a classifier and its scores; False if another run was faster.

    Where training is not exact, all trials are to go by one classifier.
    """
    objects, key = run.results.objects, model_key(victim)
    if objects.exists(key):
        return False
    for split, one in scores.items():
        rows_of = classifier_rows(classifier, one, split=split)
        run.results.write_rows("classifiers", run.plan.grid.name, f"{victim.bare_key}-{split}", rows_of)
    if not save_classifier_once(classifier, f"{objects.uri}/{key}"):
        return False
    run.watcher.trained(victim, classifier)
    return True
