"""Frozen settings, checked once at the border."""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from uapray.errors import ConfigError

Norm = Literal["l2", "linf"]
RuleName = Literal[
    "aimed-ascent",
    "spgd",
    "sga",
    "df-uap",
    "cosine-uap",
    "uap-fgsm",
    "uap-deepfool",
    "hill-climb",
    "cma-es",
    "pso",
    "de",
    "ga",
    "random",
]
DEFAULT_RULE: RuleName = "aimed-ascent"
LossName = Literal["cross-entropy", "margin", "cosine", "probability", "probability-log"]
InitName = Literal["zero", "random", "gradient"]
Feedback = Literal["scores", "labels"]
Placed = Literal["surface", "ball"]
XiFrom = Literal["whole-images", "first-channel", "source-images"]
USUAL_XI_FROM: XiFrom = "whole-images"
Precision = Literal["fp32", "tf32", "bf16"]
SEQUENTIAL = frozenset({"uap-fgsm", "uap-deepfool"})
BLACK_BOX = frozenset({"hill-climb", "cma-es", "pso", "de", "ga"})

# What a rule is best with, where that differs from the defaults of ``Search``: docs/rules/ has the measurements.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "aimed-ascent": {
        "starts": 4,
        "step_decay": None,
        "batch_size": 8,
        "round_size": 8,
        "leave_out": True,
        "least_rounds": 400,
        "screen_images": 256,
    },
    "spgd": {"clamp": 9.0},
    "sga": {"inner_rounds": 4, "step_decay": 0.9},
    "df-uap": {"loss": "margin", "clamp": 10.0, "batch_size": 32, "round_size": 32, "step_decay": 1.0},
    "cosine-uap": {"loss": "cosine", "batch_size": 32, "round_size": 32, "step_decay": 1.0},
    **{rule: {"loss": "margin", "clamp": 5.0} for rule in sorted(BLACK_BOX - {"hill-climb"})},
    "hill-climb": {"loss": "margin", "clamp": 5.0, "race_images": 8},
    "uap-fgsm": {"measures_per_epoch": 1},
    "uap-deepfool": {"measures_per_epoch": 1},
}
# First steps as shares of xi, for linf and l2.
STEP_SIZES: Mapping[str, tuple[float, float]] = {
    "aimed-ascent": (0.8, 0.8),
    "spgd": (0.8, 0.4),
    "sga": (0.4, 0.4),
    "df-uap": (0.1276, 0.1276),
    "cosine-uap": (0.1276, 0.1276),
    "uap-fgsm": (0.25, 0.25),
    "uap-deepfool": (1.0, 1.0),
    "hill-climb": (0.2, 0.2),
    "cma-es": (0.3, 0.3),
    "pso": (0.3, 0.3),
    "de": (0.3, 0.3),
    "ga": (0.3, 0.3),
}
MAX_EPOCHS: Mapping[str, float] = {
    "aimed-ascent": 2.0,
    "uap-fgsm": 15.0,
    "uap-deepfool": 15.0,
    **dict.fromkeys(BLACK_BOX, 500.0),
}
ATTACKER_SHARE = 0.3  # of the test images, where a black-box rule is asked for and nothing is said
_USUAL_EPOCHS = 20.0
_USUAL_DECAY = 0.6
_LAST_STEP = 0.04
_USUAL_MOMENTUM = 0.5
_USUAL_FILTER = 4.0
_LAST_OF_WHOLE = 0.09  # of a search whose step falls with its budget
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """A frozen value whose unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Arithmetic(Settings):
    """How replicas take gradients. Part of a result's identity, since it changes bits; what is judged is fp32.

    Attributes:
        precision: ``fp32``; ``tf32``, which rounds the factors of products to 10 bits, on GPUs; ``bf16``, which
            rounds them and what a layer hands on to 7 bits. Pixels, perturbation, losses and sums are never rounded.
        compiled: Whether ``torch.compile`` makes the classifier's gradients.
    """

    precision: Precision = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision}+compiled" if self.compiled else self.precision


FP32 = Arithmetic()


class Budget(Settings):
    """When a search stops: at whichever limit it meets first.

    Attributes:
        max_epochs: Passes over the source images that a start makes. None: the rule's own, unless one of the
            three limits below is named; then there is no limit of passes.
        max_image_gradients: Image-gradients, all starts together.
        max_image_queries: Forward passes of an image without gradient, all starts together.
        max_seconds: Wall time; the one limit that makes a result depend on the machine.
        stop_rate: Fooling rate (targeted: targeted success rate) on the validation part that is enough.
    """

    max_epochs: float | None = Field(None, gt=0)
    max_image_gradients: int | None = Field(None, gt=0)
    max_image_queries: int | None = Field(None, gt=0)
    max_seconds: float | None = Field(None, gt=0)
    stop_rate: float | None = Field(None, gt=0, le=1)


class Search(Settings):
    """How a rule looks for the perturbation. What is not given is what the rule is best with (``PRESETS``).

    Attributes:
        rule: The update rule, or the control ``random``.
        loss: What is raised: ``cross-entropy``, ``margin``, ``cosine``, ``probability`` or ``probability-log``; None:
            the rule's own, by aim.
        clamp: What a single image's loss counts for at most; None: no limit.
        batch_size: Images that a replica differentiates at once. Part of a result's identity.
        round_size: Images between two changes of the perturbation; a multiple of ``batch_size``.
        step_size: First step as a share of xi; None: the rule's own, by norm.
        step_decay: What the step is multiplied with from one pass to the next; None: what makes the last step 9 % of
            the first when the passes that the budget allows are made.
        momentum: Share of the earlier rounds' gradients that is kept from round to round; None: of ``aimed-ascent`` a
            half where there are three classes or more, else nothing.
        wiener_rounds: ``spgd`` and ``aimed-ascent`` only: spatial frequencies in which the gradients of one round do
            not agree with those of the next count less, as if noise were averaged over so many rounds while the step
            is longest, and over more as it falls. 0: all count the same; None: 4 for ``aimed-ascent`` in l2, else 0.
        init: Where the first undirected start begins: ``zero``, a ``random`` point of the ball, or the leading
            ``gradient`` direction of the source images.
        clip: Whether pixels are clipped to [0, 1] in the search; when judged they always are.
        inner_rounds: ``sga`` only: rounds that the inner point walks before the perturbation moves; at most those
            between two measurements.
        overshoot: ``uap-deepfool`` only: how much longer than needed a step across the boundary is.
        inner_steps: ``uap-deepfool`` only: steps to the boundary at most.
        frequencies: Black-box rules: lowest frequencies a side of the cosine basis that is searched; those that
            ``hill-climb`` tries first.
        feedback: Black-box rules: whether the classifier tells ``scores``, which are compared by ``loss``, or
            ``labels`` only.
        placed: ``hill-climb`` only: whether candidates are compared on the ``surface`` of the ball, where they are
            judged in the end, or where they stand in the ``ball``, as published.
        population: Black-box rules but ``hill-climb``: candidates of a generation.
        race_images: Black-box rules: images on which all candidates are compared, before the worse half drops out and
            the others see as many again, and so on. None: all images, every candidate, as published.
        starts: Searches begun at most, since the search has several basins: nontargeted one a class, those with the
            highest ceiling first, and one that aims nowhere; targeted always one.
        leave_out: Of two classes, whether images that are of the class aimed at when clean are left out of the
            gradients: they are where the others are to go. Batches are half as large then, and an aim is kept to the
            end.
        least_rounds: Rounds that the image-gradients which the budget allows are to make, where a targeted search
            leaves out images: batches are smaller then, down to one image. 0: as ``batch_size`` says.
        screen_rounds: Rounds of a heat of the starts, all together, but two each at least; a quarter of them go on.
        screen_images: Source images at most on which, with the validation part, the starts of a heat are compared by
            their rate; 0: by their certainty on the validation part alone.
        survivors: Starts that go on after the last heat.
        validation_share: Share of the source images, by group, on which the best perturbation is chosen.
        max_validation_images: Upper limit of that part.
        measures_per_epoch: How often a pass the perturbation is judged on the validation part.
        refine_epochs: Passes of a search that continues from a perturbation found for another radius.
        budget: When to stop.
    """

    rule: RuleName = DEFAULT_RULE
    loss: LossName | None = None
    clamp: float | None = Field(None, gt=0)
    batch_size: int = Field(16, gt=0)
    round_size: int = Field(16, gt=0)
    step_size: float | None = Field(None, gt=0)
    step_decay: float | None = Field(_USUAL_DECAY, gt=0, le=1)
    momentum: float | None = Field(None, ge=0, lt=1)
    wiener_rounds: float | None = Field(None, ge=0)
    init: InitName = "zero"
    clip: bool = True
    inner_rounds: int = Field(10, gt=0)
    overshoot: float = Field(0.02, ge=0)
    inner_steps: int = Field(10, gt=0)
    frequencies: int = Field(8, gt=0)
    feedback: Feedback = "scores"
    placed: Placed = "surface"
    population: int = Field(16, gt=3)
    race_images: int | None = Field(16, gt=0)
    starts: int = Field(1, gt=0)
    leave_out: bool = False
    least_rounds: int = Field(0, ge=0)
    screen_rounds: int = Field(8, gt=0)
    screen_images: int = Field(0, ge=0)
    survivors: int = Field(1, gt=0)
    validation_share: float = Field(0.2, gt=0, lt=1)
    max_validation_images: int = Field(256, gt=0)
    measures_per_epoch: int = Field(4, gt=0)
    refine_epochs: float = Field(0.25, gt=0)
    budget: Budget = Budget()

    @model_validator(mode="before")
    @classmethod
    def _best_of_the_rule(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        rule = values.get("rule", cls.model_fields["rule"].default)
        return {**PRESETS.get(rule, {}), **values} if isinstance(rule, str) else values

    @model_validator(mode="after")
    def _rounds_are_whole_batches(self) -> Self:
        if self.round_size % self.batch_size:
            raise ValueError(f"round_size: expected a multiple of batch_size {self.batch_size}, got {self.round_size}")
        return self

    @model_validator(mode="after")
    def _image_by_image_there_is_one_start(self) -> Self:
        if self.rule in SEQUENTIAL and self.starts != 1:
            raise ValueError(f"starts: expected 1 for {self.rule}, which goes image by image, got {self.starts}")
        if self.rule in SEQUENTIAL and self.init == "gradient":
            raise ValueError(f"init: expected zero or random for {self.rule}, got gradient")
        return self

    @property
    def max_epochs(self) -> float:
        """Passes over the source images that a start makes at most."""
        budget = self.budget
        if budget.max_epochs is not None:
            return budget.max_epochs
        named = (budget.max_image_gradients, budget.max_image_queries, budget.max_seconds)
        return MAX_EPOCHS.get(self.rule, _USUAL_EPOCHS) if named == (None, None, None) else math.inf

    @property
    def continues(self) -> bool:
        """Whether the rule can go on from a perturbation found for another radius."""
        return self.rule != "random" and self.rule not in SEQUENTIAL | BLACK_BOX

    def gradients_in(self, asked: Arithmetic) -> Arithmetic | None:
        """Return how the rule's gradients are taken where that is asked for; None: it takes none.

        Rules that go image by image are never compiled: they look ahead by as many images as serve at the time.
        """
        if self.rule == "random" or self.rule in BLACK_BOX:
            return None
        return asked.model_copy(update={"compiled": False}) if self.rule in SEQUENTIAL else asked

    def decay(self, images: int | None = None) -> float:
        """Return what the step is multiplied with from one pass to the next.

        Args:
            images: Source images of a pass; None: a limit of image-gradients does not count.
        """
        if self.step_decay is not None:
            return self.step_decay
        passes, gradients = self.max_epochs, self.budget.max_image_gradients
        if gradients is not None and images is not None:
            passes = min(passes, gradients / images)
        return _USUAL_DECAY if passes == math.inf else _LAST_OF_WHOLE ** (1 / passes)

    def refinement(self) -> "Search":
        """Return the settings of a search that continues: one undirected start, and all steps in fewer passes.

        The first step is the rule's own, and the last is as short as in a whole search, but no shorter than a 25th of
        the first, to which those of ``aimed-ascent`` fall. The other limits of the budget stay.
        """
        epochs = min(self.refine_epochs, self.max_epochs)
        last = _LAST_OF_WHOLE if self.step_decay is None else self.step_decay**self.max_epochs
        decay = max(last, _LAST_STEP) ** (1 / epochs)
        budget = self.budget.model_copy(update={"max_epochs": epochs})
        return self.model_copy(update={"starts": 1, "step_decay": decay, "budget": budget})

    def raised(self, *, targeted: bool) -> LossName:
        """Return the loss that a search raises."""
        return self.loss or ("probability-log" if targeted and self.rule == "aimed-ascent" else "cross-entropy")

    def kept(self, classes: int) -> float:
        """Return the share of the earlier rounds' gradients that is kept, where there are that many classes."""
        if self.momentum is not None:
            return self.momentum
        return _USUAL_MOMENTUM if self.rule == "aimed-ascent" and classes > 2 else 0.0

    def filtered(self, norm: Norm) -> float:
        """Return the rounds over which noise counts as averaged when gradients are filtered; 0: they are not."""
        if self.wiener_rounds is not None:
            return self.wiener_rounds
        return _USUAL_FILTER if self.rule == "aimed-ascent" and norm == "l2" else 0.0

    def first_step(self, norm: Norm) -> float:
        """Return the length of the first step as a share of xi."""
        return self.step_size or STEP_SIZES[self.rule][norm == "l2"]


class Threat(Settings):
    """What the perturbation may be and is to do.

    Attributes:
        norm: ``linf`` or ``l2``.
        zeta: Radius as a share of the mean norm of the source images (0.04 is 4 %).
        xi: Radius in pixel units instead of ``zeta``.
        xi_from: Whose mean norm makes ``zeta`` a radius. ``whole-images``: the train images of the judged data set, all
            channels (Minagi et al. 2022). ``first-channel``: the same images, channel 0 alone (Hirano et al. 2021,
            code). ``source-images``: those that the perturbation is made from, all channels (Koga & Takemoto 2022).
        target: Class name to be reached; None: any other class (nontargeted).
    """

    norm: Norm = "linf"
    zeta: float | None = Field(None, gt=0, le=1)
    xi: float | None = Field(None, gt=0)
    xi_from: XiFrom = USUAL_XI_FROM
    target: str | None = None

    @model_validator(mode="after")
    def _one_radius(self) -> Self:
        if (self.zeta is None) == (self.xi is None):
            raise ValueError("expected either zeta or xi, got both or neither")
        if self.xi is not None and self.xi_from != USUAL_XI_FROM:
            raise ValueError(f"xi_from: expected with zeta only, got {self.xi_from} beside xi; leave one of them out")
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
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{place}: unknown {first['input']!r}; {nearest(first['input'], known)}"
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
