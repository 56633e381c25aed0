"""One training step: from initial weights to a classifier with its scores; or part of the way there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from uapray.arena import Arena
from uapray.data.images import ImageSet, hold_out
from uapray.models.blocks import first_blocks
from uapray.models.card import Card, Classifier
from uapray.models.disturbance import Disturbance
from uapray.models.initial import head_prefixes
from uapray.models.interpolation import interpolated
from uapray.models.norms import learnt_norms
from uapray.models.pixel import PixelModel
from uapray.models.recipe import Recipe
from uapray.models.scores import Scores, score
from uapray.models.training import EpochReport
from uapray.models.weights import make_classifier
from uapray.models.zoo import build
from uapray.on_ray.training import fit_on_ray, measure_norms_on_ray
from uapray.resources import Held, Resources, open_pool
from uapray.stoppable import StoppablePool
from uapray.victims import InterpolateStep, TrainStep


@dataclass(frozen=True, slots=True, eq=False)
class FittedClassifier:
    """A module that was trained.

    Attributes:
        module: With the weights of its best epoch.
        scores: Clean metrics by split.
        perturbations: What its training images were perturbed with at the end, ``(k, c, h, w)``; None: nothing.
    """

    module: nn.Module
    scores: dict[str, Scores]
    perturbations: Tensor | None


def train_classifier(
    step: TrainStep,
    images: Mapping[str, ImageSet],
    initial: Classifier,
    resources: Resources,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
    while_waiting: Callable[[], None] = lambda: None,
) -> tuple[Classifier, dict[str, Scores]]:
    """Train a classifier and measure it on its splits.

    The epoch is chosen on a part of the train split, held out by group, or on the split ``val`` if there is
    one; the other splits are measured once, at the end.

    Returns:
        The classifier, and its scores by split, which its card holds too.
    """
    trained = fit_classifier(
        initial.module,
        images,
        step.recipe,
        seed=step.seed,
        resources=resources,
        on_epoch=on_epoch,
        while_waiting=while_waiting,
    )
    return make_classifier(trained.module, _with_metrics(initial.card, trained.scores)), trained.scores


def fit_classifier(
    module: nn.Module,
    images: Mapping[str, ImageSet],
    recipe: Recipe,
    *,
    seed: int,
    resources: Resources,
    disturbance: Disturbance | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
    while_waiting: Callable[[], None] = lambda: None,
) -> FittedClassifier:
    """Train a module in place on the split ``train`` and measure it on all; see `train_classifier`."""
    train, validation = _parts(images, recipe, seed)
    trained = fit_on_ray(
        module,
        train,
        validation,
        recipe,
        seed=seed,
        workers=resources.workers,
        cpus=resources.cpus,
        gpus=resources.gpus,
        may_grow=resources.may_grow,
        judged=images,
        disturbance=disturbance,
        on_epoch=on_epoch,
        while_waiting=while_waiting,
    )
    module.load_state_dict(trained.fitted.state)
    names = images["train"].class_names
    scores = {name: score(one.labels, trained.probabilities[name], names) for name, one in images.items()}
    return FittedClassifier(module, scores, trained.fitted.perturbations)


def interpolate_classifier(
    step: InterpolateStep,
    initial: Classifier,
    trained: Classifier,
    held: Held,
    resources: Resources,
    check: Callable[[], None] = lambda: None,
) -> tuple[Classifier, dict[str, Scores]]:
    """Return a classifier part of the way of its training, and its scores by split; its last layer is the trained one.

    What batch norms have measured of one body is not so of another: those that trained measure again.

    Args:
        step: Which share.
        initial: The classifier that the training began with; its module is changed.
        trained: The one that it ended with.
        held: The splits that it is measured on.
        resources: Of the replicas that measure it.
        check: Called often; it may raise to end the step.
    """
    module, made = initial.module, step.base.train
    assert isinstance(module, PixelModel)
    assert made is not None
    head = tuple(f"backbone.{prefix}" for prefix in head_prefixes(module.backbone))
    module.load_state_dict(interpolated(module.state_dict(), trained.module.state_dict(), step.share, head))
    if learnt_norms(module, made.recipe):
        measure_norms_on_ray(
            module,
            _parts(held.images, made.recipe, made.seed)[0],
            made.recipe,
            seed=made.seed,
            cpus=resources.cpus,
            gpus=resources.gpus,
            may_grow=resources.may_grow,
            while_waiting=check,
        )
    card = trained.card.model_copy(update={"recipe": {**trained.card.recipe, "tuned": step.share}})
    classifier = make_classifier(module, card)
    with open_pool(classifier, held, resources, check) as pool:
        arena = Arena(StoppablePool(pool, check), held.images)
        logits = {split: torch.from_numpy(arena.clean_logits(split)) for split in held.images}
    scores = {
        split: score(images.labels, logits[split].double().softmax(1).numpy(), images.class_names)
        for split, images in held.images.items()
    }
    return replace(classifier, card=_with_metrics(card, scores)), scores


def initial_classifier(step: TrainStep, images: ImageSet) -> Classifier:
    """Build the classifier that training begins with.

    Raises:
        ClassifierError: If the architecture is unknown, too large for the images, or the weights are another's.
        ConfigError: If it has fewer blocks than are to be frozen.
    """
    module = build(
        step.architecture,
        classes=len(images.class_names),
        channels=images.channels,
        size=images.size,
        initial_weights=step.initial_weights,
        seed=step.seed,
    )
    first_blocks(module, step.recipe.frozen_blocks)
    card = Card(
        architecture=step.architecture,
        class_names=images.class_names,
        channels=images.channels,
        size=images.size,
        initial_weights=step.initial_weights,
        recipe=step.recipe.model_dump(mode="json"),
        seed=step.seed,
        data=step.source.name,
        data_sha256=step.source.data.sha256,
        mean=tuple(module.mean.flatten().tolist()),
        std=tuple(module.std.flatten().tolist()),
    )
    return make_classifier(module, card)


def _parts(images: Mapping[str, ImageSet], recipe: Recipe, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images that a training learns from, and those that it is judged on meanwhile."""
    if "val" in images:
        return images["train"], images["val"]
    return hold_out(images["train"], recipe.validation_share, seed)


def _with_metrics(card: Card, scores: Mapping[str, Scores]) -> Card:
    return card.model_copy(update={"metrics": {split: one.plain() for split, one in scores.items()}})
