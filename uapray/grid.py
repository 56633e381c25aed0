"""The grid file: what results are wanted."""

from collections.abc import Mapping
from typing import Any, Self

import yaml
from pydantic import Field, field_validator, model_validator

from uapray.config import (
    ATTACKER_SHARE,
    BLACK_BOX,
    USUAL_XI_FROM,
    Arithmetic,
    Budget,
    Norm,
    Precision,
    Search,
    Seed,
    Settings,
    XiFrom,
    parse,
)
from uapray.errors import ConfigError
from uapray.models.hardening import Hardening
from uapray.models.recipe import RECIPES, Recipe, recipe_of
from uapray.rendering import parse_rendering

NONTARGETED = "nontargeted"
ALL_CLASSES = "all"
NONE = "none"


class DataEntry(Settings):
    """A data set.

    Attributes:
        uri: Path, glob, ``s3://…`` or ``phantom:…``; relative paths are relative to the grid file.
        name: How results call it; None: after the file.
        size: Height and width in pixels; None: as stored.
        healthy: Class of the healthy, so that the diseased who are called healthy are counted.
        referable: Classes whose patients are to be referred.
    """

    uri: str
    name: str | None = None
    size: int | None = Field(None, ge=8)
    healthy: str | None = None
    referable: tuple[str, ...] = ()


class ClassifierEntry(Settings):
    """A classifier: one that exists, or one to be trained.

    Attributes:
        weights: A ``.safetensors`` or ``.pt2`` file, or ``module:function``; taken as it is.
        architecture: Trained on each data set of the grid, with the settings below.
        initial_weights: ``random``, ``pretrained``, or a weights file.
        recipe: Name of a recipe, or a mapping with ``base`` and what differs from it.
        train_seeds: One classifier each.
        tuned: A classifier each: share of the way from the weights that training begins with to those it ends with.
        hardened: A classifier each: ``none``, as it is; or how it is hardened (keys of ``Hardening``).
        filters: What images go through before each is asked, a classifier each: ``none``, or a rendering.
        name: How results call it.
    """

    weights: str | None = None
    architecture: str | None = None
    initial_weights: str = "pretrained"
    recipe: Recipe = RECIPES["papers"]
    train_seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    tuned: tuple[float, ...] = Field((1.0,), min_length=1)
    hardened: tuple[Hardening | None, ...] = Field((None,), min_length=1)
    filters: tuple[str, ...] = Field((NONE,), min_length=1)
    name: str | None = None

    @field_validator("recipe", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return recipe_of(value) if isinstance(value, str | Mapping) else value

    @field_validator("tuned")
    @classmethod
    def _shares_of_the_way(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for share in value:
            if not 0 <= share <= 1:
                raise ValueError(f"expected shares in [0, 1], 0.25 for a quarter of the way, got {share:g}")
        return tuple(dict.fromkeys(value))

    @field_validator("hardened", mode="before")
    @classmethod
    def _none_is_as_it_is(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        short = [None if one == NONE else {"method": one} if isinstance(one, str) else one for one in value]
        return [one for place, one in enumerate(short) if one not in short[:place]]

    @field_validator("filters")
    @classmethod
    def _as_written_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one if one == NONE else str(parse_rendering(one, "filter")) for one in value))

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.weights is None) == (self.architecture is None):
            raise ValueError("expected either weights or architecture, got both or neither")
        if self.weights is not None and self.tuned != (1.0,):
            came = ", ".join(f"{share:g}" for share in self.tuned)
            raise ValueError(f"tuned: expected architecture, so that it is known where training begins, got {came}")
        return self


class SourceEntry(Settings):
    """Images that perturbations are made from.

    Attributes:
        uri: Another data set, such as natural images; None: the data set that is judged.
        split: Of it; None: ``train``, or ``attacker`` for black-box rules on the data set that is judged.
        images: How many of them, in an order drawn from the seed of the search; None: all.
        name: How results call it; None: after the file.
    """

    uri: str | None = None
    split: str | None = None
    images: int | None = Field(None, ge=2)
    name: str | None = None


class Grid(Settings):
    """The cross product of everything below; ``random`` is added to the rules, since a rate alone says little.

    Attributes:
        name: Partition of the store that the rows go to.
        data: Data sets.
        classifiers: Classifiers.
        sources: What perturbations are made from.
        norms: ``linf``, ``l2``.
        zetas: Radii as shares of a mean norm.
        xi_from: Whose: ``whole-images``, or as some papers have it (``Threat``).
        curve: Whether the zetas of each classifier, norm, target, rule and seed are one curve, in which each search
            continues from the one before and ``zeta50`` is read off at the end; at least two zetas.
        targets: ``nontargeted``, class names, or ``all`` for each class in turn.
        rules: Update rules, by name or with what differs from the defaults (keys of ``Search``).
        seeds: Of the searches.
        transfer: Whether each perturbation is judged on every other classifier of its data set too.
        precision: In which gradients are taken: ``fp32``, ``tf32``, ``bf16``. Part of a result's identity.
        compiled: Whether ``torch.compile`` makes them. Part of a result's identity.
        splits: On which the perturbations are judged.
        attacker_share: Share of the test images, by patient, that black-box rules make their perturbations on; it is
            left out of the split ``test`` for all rules. None: 0.3 if a rule is black-box, else 0.
        budget: Of each search; a rule's own entry goes before it.
        control: Whether the random control is added.
        control_draws: Draws of each kind of matched control that a search is judged beside; 0 for none.
        control_images: Images of a split that these are judged on at most, evenly spread.
        renderings: What images go through before a perturbation is judged once more, e.g. ``uint8+jpeg:75``.
        examples: Pictures a trial keeps in the store for the report; 0 for none.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: tuple[DataEntry, ...] = Field(min_length=1)
    classifiers: tuple[ClassifierEntry, ...] = Field(min_length=1)
    sources: tuple[SourceEntry, ...] = Field((SourceEntry(),), min_length=1)
    norms: tuple[Norm, ...] = Field(("linf",), min_length=1)
    zetas: tuple[float, ...] = Field((0.04,), min_length=1)
    xi_from: tuple[XiFrom, ...] = Field((USUAL_XI_FROM,), min_length=1)
    curve: bool = False
    targets: tuple[str, ...] = Field((NONTARGETED,), min_length=1)
    rules: tuple[Search, ...] = Field((Search(),), min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    transfer: bool = False
    precision: Precision = "fp32"
    compiled: bool = False
    splits: tuple[str, ...] = Field(("test",), min_length=1)
    attacker_share: float | None = Field(None, ge=0, lt=1)
    budget: Budget = Budget()
    control: bool = True
    control_draws: int = Field(19, ge=0)
    control_images: int = Field(128, gt=0)
    renderings: tuple[str, ...] = ("uint8",)
    examples: int = Field(4, ge=0)

    @field_validator("targets", mode="before")
    @classmethod
    def _null_is_nontargeted(cls, value: Any) -> Any:
        return [NONTARGETED if one is None else one for one in value] if isinstance(value, list) else value

    @field_validator("rules", mode="before")
    @classmethod
    def _names_are_short(cls, value: Any) -> Any:
        return [{"rule": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value

    @field_validator("splits")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("renderings")
    @classmethod
    def _as_written_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(parse_rendering(one)) for one in value))

    @field_validator("zetas")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for zeta in value:
            if not 0 < zeta <= 1:
                raise ValueError(f"expected shares in (0, 1], 0.04 for 4 %, got {zeta:g}")
        return value

    @model_validator(mode="after")
    def _attacker_has_images(self) -> Self:
        if self.attacker_share == 0 and self._black_box:
            raise ValueError(f"attacker_share: expected more than 0 with rule {self._black_box[0]}, got 0")
        return self

    @model_validator(mode="after")
    def _a_curve_has_points(self) -> Self:
        if self.curve and len(set(self.zetas)) < 2:
            raise ValueError(f"curve: expected at least two zetas, got {len(set(self.zetas))}")
        return self

    @property
    def _black_box(self) -> list[str]:
        return [search.rule for search in self.rules if search.rule in BLACK_BOX]

    @property
    def attackers(self) -> float:
        """Share of the test images that are the attacker's."""
        if self.attacker_share is None:
            return ATTACKER_SHARE if self._black_box else 0.0
        return self.attacker_share

    @property
    def arithmetic(self) -> Arithmetic:
        """How replicas take gradients."""
        return Arithmetic(precision=self.precision, compiled=self.compiled)

    def searches(self) -> tuple[Search, ...]:
        """Return the settings of every rule, the control last, each once."""
        named = [self._with_budget(search) for search in self.rules]
        control = [Search(rule="random")] if self.control else []
        return tuple(dict.fromkeys(named + control))

    def _with_budget(self, search: Search) -> Search:
        if search.rule == "random" or "budget" in search.model_fields_set:
            return search
        return search.model_copy(update={"budget": self.budget})


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would quietly take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            names = [self.construct_object(name, deep=True) for name, _ in node.value]
            twice = next(name for name in names if names.count(name) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' is there twice", node.start_mark)
        return values


def parse_grid(text: str | bytes, *, origin: str) -> Grid:
    """Read a grid from YAML text.

    Args:
        text: YAML.
        origin: File name, for the error.

    Raises:
        ConfigError: If it is not YAML or not a grid.
    """
    try:
        values = yaml.load(text, _EachKeyOnce)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected a mapping with name, data and classifiers, got {type(values).__name__}")
    return parse(Grid, values, origin=origin)
