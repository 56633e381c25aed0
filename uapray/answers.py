"""What `uapray.perturb`, `uapray.evaluate` and `uapray.zeta_curve` answer."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from uapray.controls import Controls
from uapray.coordinator import Measurement
from uapray.curves import Curve
from uapray.measures import Outcome, Rate, Visibility


@dataclass(frozen=True, slots=True, eq=False)
class PerturbResult:
    """A perturbation and how it was found.

    Attributes:
        perturbation: float32 ``(c, h, w)``, pixel units in [0, 1].
        xi: Radius of the ball it was searched in, pixel units.
        validation_rate: Rate on the part of the images it was chosen on (fooling, or targeted success);
            None for a random draw. Of several classifiers the mean.
        source_fooling_rate: Fooling rate on the images it was made from; None for a random draw.
        history: Measurements on that part, in order.
        image_gradients: Spent, all starts together.
        image_queries: Spent, all starts together.
    """

    perturbation: Tensor
    xi: float
    validation_rate: float | None
    source_fooling_rate: float | None
    history: tuple[Measurement, ...]
    image_gradients: int
    image_queries: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a perturbation does to a classifier on a set of images, beside a control of the same size.

    Attributes:
        outcome: Predictions before and after.
        control: The same for the control: a random draw from the ball that the perturbation just fits in.
        controls: Draws of each kind of matched control, and how likely chance does as well; empty if none were asked.
        renderings: Predictions where clean and perturbed images are rendered first, by the rendering's name.
        visibility: How much the clipped images changed.
        l2: Norm of the perturbation, pixel units.
        linf: Norm of the perturbation, pixel units.
        target: Index of the class that was asked for; None: nontargeted.
        class_names: In the order of the class indices.
    """

    outcome: Outcome
    control: Outcome
    controls: tuple[Controls, ...]
    renderings: Mapping[str, Outcome]
    visibility: Visibility
    l2: float
    linf: float
    target: int | None
    class_names: tuple[str, ...]

    @property
    def fooling_rate(self) -> float:
        """Share of images whose predicted class changed."""
        return self.outcome.fooling.share

    @property
    def fooling_rate_low(self) -> float:
        """Lower limit of the 95 % Wilson interval."""
        return self.outcome.fooling.interval[0]

    @property
    def fooling_rate_high(self) -> float:
        """Upper limit of the 95 % Wilson interval."""
        return self.outcome.fooling.interval[1]

    @property
    def fooling_rate_ceiling(self) -> float:
        """Fooling rate that sending every image to the dominant class would reach."""
        return self.outcome.ceiling

    @property
    def control_fooling_rate(self) -> float:
        """Fooling rate of the control."""
        return self.control.fooling.share

    @property
    def targeted_success_rate(self) -> float | None:
        """Share predicted as the target, natives included; None without a target."""
        return None if self.target is None else self.outcome.towards(self.target).share

    @property
    def targeted_success_rate_non_target(self) -> float | None:
        """Share predicted as the target among the images that were not before; None without a target."""
        return None if self.target is None else self.outcome.towards_non_target(self.target).share

    @property
    def dominant_label(self) -> str:
        """The class most perturbed images are predicted as."""
        return self.class_names[self.outcome.dominant]

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images predicted as labelled."""
        return self.outcome.clean_accuracy

    @property
    def robust_accuracy(self) -> float:
        """Share of perturbed images predicted as labelled."""
        return self.outcome.robust_accuracy


@dataclass(frozen=True, slots=True, eq=False)
class ZetaCurve:
    """How a classifier's rate grows with the radius, and the zeta at which half is fooled.

    Attributes:
        zetas: Rising.
        curve: Rates with intervals, the ceiling, and where the curve crosses half of the images and of the ceiling.
        outcomes: Predictions before and after, of each zeta.
        perturbations: float32 ``(c, h, w)``, pixel units, of each zeta.
        xis: Radii in pixel units, of each zeta.
        image_gradients: Spent for the whole curve.
        image_queries: Spent in its searches.
    """

    zetas: tuple[float, ...]
    curve: Curve
    outcomes: tuple[Outcome, ...]
    perturbations: tuple[Tensor, ...]
    xis: tuple[float, ...]
    image_gradients: int
    image_queries: int

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Images fooled at each zeta, of all, with Wilson intervals; targeted: brought to the target."""
        return self.curve.rates

    @property
    def zeta50(self) -> float | None:
        """Zeta at which half of all images are fooled; None if that is beyond the largest."""
        return self.curve.zeta50.zeta

    @property
    def interval(self) -> tuple[float, float | None]:
        """Limits of ``zeta50`` at 95 %; the upper one None if it is beyond the largest zeta."""
        return self.curve.zeta50.low, self.curve.zeta50.high

    @property
    def zeta50_of_ceiling(self) -> float | None:
        """Zeta at which half of the images are fooled that can be; None if that is beyond the largest."""
        return self.curve.zeta50_of_ceiling.zeta
