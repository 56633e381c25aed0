"""How a classifier is hardened against universal perturbations: frozen settings."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from uapray.config import BLACK_BOX, Norm, Search, Seed, Settings
from uapray.models.recipe import RECIPES, Recipe, recipe_of

Method = Literal["retraining", "universal-training"]

# What a method is published with, where that differs from the defaults of ``Hardening``.
_USUAL: Mapping[str, Mapping[str, Any]] = {"universal-training": {"rounds": 1, "perturbed_share": 1.0}}


class Hardening(Settings):
    """Everything about a hardening but the classifier and the images.

    Attributes:
        method: ``retraining`` (Hirano et al. 2021): each round makes perturbations against the classifier as it is, and
            trains it on with a part of the images perturbed. ``universal-training`` (Shafahi et al. 2020): one
            perturbation rises while the weights fall, a step each a batch.
        norm: Of the perturbations.
        zeta: Their radius as a share of the mean norm of the training images.
        target: Class that they pull towards; None: away from what is predicted.
        rule: That makes them, by name or with what differs from its defaults; ``universal-training`` only judges by it.
        rounds: How often; each begins where the last one ended.
        perturbations: How many ``retraining`` makes a round.
        perturbed_share: Of the training images that are perturbed.
        step_share: ``universal-training`` only: length of the perturbation's step as a share of its radius.
        recipe: Of the training in a round, by name or with what differs from ``retraining``.
        seed: Of everything drawn at random.
        name: How results call the classifier; None: after it and the method.
    """

    method: Method = "retraining"
    norm: Norm = "linf"
    zeta: float = Field(0.04, gt=0, le=1)
    target: str | None = None
    rule: Search = Search()
    rounds: int = Field(5, gt=0)
    perturbations: int = Field(10, gt=0)
    perturbed_share: float = Field(0.5, gt=0, le=1)
    step_share: float = Field(0.1, gt=0)
    recipe: Recipe = RECIPES["retraining"]
    seed: Seed = 0
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        method = values.get("method", cls.model_fields["method"].default)
        return {**_USUAL.get(method, {}), **values} if isinstance(method, str) else values

    @field_validator("rule", mode="before")
    @classmethod
    def _rule_named(cls, value: Any) -> Any:
        return {"rule": value} if isinstance(value, str) else value

    @field_validator("rule")
    @classmethod
    def _rule_searches(cls, value: Search) -> Search:
        if value.rule == "random" or value.rule in BLACK_BOX:
            raise ValueError(f"expected a rule that takes gradients, got {value.rule}")
        return value

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe_named(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return recipe_of({"base": "retraining", **value})
        return recipe_of(value) if isinstance(value, str) else value

    def identity(self) -> dict[str, Any]:
        """Return what decides the classifier that a round ends with, its rule aside: the number of rounds is not."""
        unused = "perturbations" if self.method == "universal-training" else "step_share"
        return self.model_dump(mode="json", exclude={"rounds", "name", "rule", unused})
