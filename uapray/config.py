"""Frozen settings, checked once at the border."""

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from uapray.errors import ConfigError

Norm = Literal["l2", "linf"]
RuleName = Literal["spgd", "sga", "random"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """A frozen value whose unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Budget(Settings):
    """When a search stops: at whichever limit it meets first.

    Attributes:
        max_epochs: Passes over the source images that a start makes.
        max_image_gradients: Image-gradients, all starts together.
        max_image_queries: Forward passes of an image without gradient, all starts together.
        max_seconds: Wall time; the one limit that makes a result depend on the machine.
        stop_rate: Fooling rate (targeted: targeted success rate) on the validation part that is enough.
    """

    max_epochs: float = Field(4.0, gt=0)
    max_image_gradients: int | None = Field(None, gt=0)
    max_image_queries: int | None = Field(None, gt=0)
    max_seconds: float | None = Field(None, gt=0)
    stop_rate: float | None = Field(None, gt=0, le=1)


class Search(Settings):
    """How a rule looks for the perturbation.

    Attributes:
        rule: ``spgd``, ``sga``, or the control ``random``.
        batch_size: Images that a replica differentiates at once. Part of a result's identity.
        round_size: Images between two changes of the perturbation; a multiple of ``batch_size``.
        step_size: First step as a share of xi; None: the rule's own default.
        step_decay: What the step is multiplied with from one pass to the next.
        inner_rounds: ``sga`` only: rounds that the inner point walks before the perturbation moves; at most those
            between two measurements.
        starts: Searches begun; the search has several basins. A nontargeted search of a classifier of few classes
            begins one a class, if that is no more than half of them.
        screen_epochs: Passes each start makes before the best ``survivors`` go on.
        survivors: Starts that go on after the screening.
        validation_share: Share of the source images, by group, on which the best perturbation is chosen.
        max_validation_images: Upper limit of that part.
        measures_per_epoch: How often a pass the perturbation is judged on the validation part.
        budget: When to stop.
    """

    rule: RuleName = "spgd"
    batch_size: int = Field(16, gt=0)
    round_size: int = Field(16, gt=0)
    step_size: float | None = Field(None, gt=0)
    step_decay: float = Field(0.6, gt=0, le=1)
    inner_rounds: int = Field(10, gt=0)
    starts: int = Field(4, gt=0)
    screen_epochs: float = Field(0.25, gt=0)
    survivors: int = Field(1, gt=0)
    validation_share: float = Field(0.2, gt=0, lt=1)
    max_validation_images: int = Field(256, gt=0)
    measures_per_epoch: int = Field(4, gt=0)
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _rounds_are_whole_batches(self) -> Self:
        if self.round_size % self.batch_size:
            raise ValueError(f"round_size: expected a multiple of batch_size {self.batch_size}, got {self.round_size}")
        return self


class Threat(Settings):
    """What the perturbation may be and is to do.

    Attributes:
        norm: ``linf`` or ``l2``.
        zeta: Radius as a share of the mean norm of the source images (0.04 is 4 %).
        xi: Radius in pixel units instead of ``zeta``.
        target: Class name to be reached; None: any other class (nontargeted).
    """

    norm: Norm = "linf"
    zeta: float | None = Field(None, gt=0, le=1)
    xi: float | None = Field(None, gt=0)
    target: str | None = None

    @model_validator(mode="after")
    def _one_radius(self) -> Self:
        if (self.zeta is None) == (self.xi is None):
            raise ValueError("expected either zeta or xi, got both or neither")
        return self


S = TypeVar("S", bound=BaseModel)


def parse(kind: type[S], values: Mapping[str, Any], *, origin: str) -> S:
    """Make a settings value out of plain data.

    Args:
        kind: The settings class.
        values: Plain data, e.g. from YAML.
        origin: Where it came from, for the error.

    Raises:
        ConfigError: One line for the first mistake; a misspelt key comes with the nearest valid name.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_sentence(error, kind)}") from None
    except ConfigError as error:  # of a part that is parsed by itself
        raise ConfigError(f"{origin}: {error}") from None


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{place}'; {_hint(str(first['loc'][-1]), _at(kind, first['loc'][:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    came = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{place}: {message}{came}" if place else f"{message}{came}"


def nearest(name: str, known: Collection[str]) -> str:
    """Say which name was meant, or which there are."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"


def _hint(key: str, kinds: list[type[BaseModel]]) -> str:
    """Say where a key belongs, or which one was meant."""
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    inside = [name for name, field in fields.items() for kind in _inside(field) if key in kind.model_fields]
    if inside:
        return f"it belongs inside '{inside[0]}'"
    return nearest(key, fields)


def _at(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Return the settings classes that may stand at a place inside another."""
    kinds = [kind]
    for part in place:
        if isinstance(part, str):
            kinds = [inner for one in kinds if part in one.model_fields for inner in _inside(one.model_fields[part])]
    return kinds


def _inside(field: FieldInfo) -> list[type[BaseModel]]:
    return _settings_in(field.annotation)


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _settings_in(part)]
