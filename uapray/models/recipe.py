"""How a classifier is trained: frozen settings, and two of them by name."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from uapray.config import Settings, nearest, parse
from uapray.errors import ConfigError

_WARM_UP, _FIRST_SHARE, _LAST_SHARE = 0.3, 0.04, 1e-4  # of a one-cycle schedule (Smith & Topin 2018)


class Recipe(Settings):
    """Everything about a training but the model, the images and the seed.

    Attributes:
        optimizer: ``sgd`` or ``adamw``.
        learning_rate: At the start; of ``one-cycle``: at its peak.
        schedule: ``constant``; ``steps``: times ``gamma`` at each milestone; ``one-cycle``: up, then down to
            nothing, within ``epochs``.
        milestones: Epochs, from 0, with which a smaller rate begins.
        gamma: Factor at each milestone.
        momentum: Of ``sgd``.
        nesterov: Of ``sgd``.
        weight_decay: Of either optimizer.
        epochs: Passes at most; with ``balanced`` as many draws as there are images.
        batch_size: Images a step, all workers together.
        balanced: Draw each class equally often, images of rare ones again and again.
        rotation_degrees: Each picture is turned by up to so much, either way.
        shift_share: Each picture is moved by up to this share of its height and width, either way.
        flip: Mirror every other picture left to right. Not for anatomy that has sides.
        patience: Stop when so many epochs brought nothing better on validation; None: never.
        validation_share: Part of the training split, by group, that is held out to choose the epoch.
        selection: What "better" means on validation; ``last``: each epoch is better than the one before.
        frozen_blocks: So many blocks, counted from the pixels (`uapray.models.blocks`), stay as they begin.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["steps", "one-cycle", "constant"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(50, gt=0)
    batch_size: int = Field(32, gt=1)
    balanced: bool = True
    rotation_degrees: float = Field(5.0, ge=0, le=180)
    shift_share: float = Field(0.05, ge=0, lt=1)
    flip: bool = False
    patience: int | None = Field(10, gt=0)
    validation_share: float = Field(0.1, gt=0, lt=1)
    selection: Literal["balanced_accuracy", "accuracy", "loss", "last"] = "balanced_accuracy"
    frozen_blocks: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.milestones and self.schedule != "steps":
            raise ValueError(f"milestones: expected none with schedule {self.schedule}, got {self.milestones}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m <= 0 for m in self.milestones):
            raise ValueError(f"milestones: expected epochs above 0 that rise, got {self.milestones}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected false without momentum")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what came later where it changes nothing, so that earlier trainings keep their keys."""
        values: dict[str, Any] = usual(self)
        return {name: value for name, value in values.items() if name != "frozen_blocks" or value}


RECIPES: Mapping[str, Recipe] = {
    # Hirano et al. 2021. Theirs has no early stopping, a decay of 1e-6 a step (0.3 % in all) that is left
    # out, balances skin lesions only, and picks the epoch on the test set, which is never looked at here.
    "papers": Recipe(schedule="steps", milestones=(41, 46)),
    "quick": Recipe(
        optimizer="adamw",
        learning_rate=5e-3,
        schedule="one-cycle",
        weight_decay=0.01,
        epochs=10,
        patience=None,
    ),
    # A round of hardening: five epochs (Hirano et al. 2021) at the first rate of "papers"; theirs is not told. What is
    # learnt of perturbations shows in no clean accuracy, so no epoch is chosen by it.
    "retraining": Recipe(epochs=5, patience=None, selection="last"),
}


def recipe_of(named: str | Mapping[str, Any]) -> Recipe:
    """Return a recipe by name, or from plain data; ``base`` there names the recipe it departs from.

    Raises:
        ConfigError: Unknown name or key (with the nearest valid one), or a value out of range.
    """
    if isinstance(named, str):
        if named not in RECIPES:
            raise ConfigError(f"unknown recipe '{named}'; {nearest(named, RECIPES)}")
        return RECIPES[named]
    values = dict(named)
    base_name = values.pop("base", None)
    if base_name is not None and not isinstance(base_name, str):
        raise ConfigError(f"recipe: base: expected one of {', '.join(RECIPES)}, got {base_name!r}")
    base = {} if base_name is None else recipe_of(base_name).model_dump()
    return parse(Recipe, {**base, **values}, origin="recipe")


def learning_rate_at(recipe: Recipe, progress: float) -> float:
    """Return the learning rate after ``progress`` epochs, a fraction within the epoch included."""
    match recipe.schedule:
        case "constant":
            return recipe.learning_rate
        case "steps":
            return recipe.learning_rate * recipe.gamma ** sum(progress >= epoch for epoch in recipe.milestones)
        case "one-cycle":
            done = min(progress / recipe.epochs, 1.0)
            if done < _WARM_UP:
                return recipe.learning_rate * _between(_FIRST_SHARE, 1, done / _WARM_UP)
            return recipe.learning_rate * _between(1, _LAST_SHARE, (done - _WARM_UP) / (1 - _WARM_UP))


def _between(start: float, end: float, share: float) -> float:
    """Return the value on a half cosine wave from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
