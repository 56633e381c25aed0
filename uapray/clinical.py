"""What an attack means for patients: each class found or missed, clean and perturbed, with intervals by patient."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uapray.measures import CONFIDENCE, Rate, patients

RESAMPLES = 400
BINS = 15  # of the calibration error (Guo et al. 2017)
_AT_ONCE = 50  # resamples of an AUC
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Roles:
    """Which classes mean what to a clinician, by index.

    Attributes:
        healthy: The class of the healthy; None: there is none, or nobody said.
        referable: Classes whose patients are to be sent on; none: nobody said.
    """

    healthy: int | None = None
    referable: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval at 95 %, all None where there is nothing to divide by."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One measure of a classifier, clean and under attack.

    Attributes:
        measure: ``sensitivity``, ``specificity``, ``ppv``, ``auc`` of a class against the rest; ``accuracy`` and
            ``calibration_error`` of all; ``called_healthy``: share of the diseased that are called healthy;
            ``referable_sensitivity`` and ``referable_specificity``.
        class_index: The class; None: all.
        clean: Of the clean images.
        perturbed: Of the same images perturbed.
        change: Perturbed minus clean, of the same patients.
    """

    measure: str
    class_index: int | None
    clean: Estimate
    perturbed: Estimate
    change: Estimate


def clinical_readings(
    labels: NDArray[np.int64],
    clean: Floats,
    perturbed: Floats,
    groups: Sequence[str | None],
    *,
    roles: Roles = Roles(),
    seed: int = 0,
) -> tuple[Reading, ...]:
    """Return what clinicians ask of a classifier, clean and under attack.

    Patients are drawn with replacement, all images of one together, the same draws for clean and perturbed; the limits
    are percentiles (Efron & Tibshirani 1993, chapter 13). One perturbation on one classifier: what another seed would
    have found is not in them.

    Args:
        labels: True classes ``(n,)``, at least one image.
        clean: Probabilities of the clean images, ``(n, k)``; the largest is the prediction.
        perturbed: The same of the perturbed images.
        groups: Patient of each image; an image of unknown patient stands for itself.
        roles: Which class is that of the healthy, and which are to be referred.
        seed: Of the resampling.
    """
    assert len(labels) == len(clean) == len(perturbed) == len(groups) > 0
    patient = patients(groups)
    count = int(patient.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(labels))), draws[:, patient]])  # the first is the sample itself
    before, after = (
        tuple(_measured(labels, probabilities, weights, patient, roles)) for probabilities in (clean, perturbed)
    )
    return tuple(_reading(one, other) for one, other in zip(before, after, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A measure's values, the sample's first and then those of the resamples.

    Attributes:
        measure: See `Reading`.
        class_index: See `Reading`.
        values: ``(1 + resamples,)``, NaN where there is nothing to divide by.
        patients: Of a share: how many patients it is of.
    """

    measure: str
    class_index: int | None
    values: Floats
    patients: int | None = None

    @property
    def estimate(self) -> Estimate:
        """The value with percentiles; where no resample differs, a share has the Wilson interval of its patients.

        A share of all or of none looks certain to a bootstrap, and is not.
        """
        found = _estimate(self.values)
        if self.patients and found.value in (0.0, 1.0) and found.low == found.high:
            low, high = Rate(self.patients * int(found.value or 0), self.patients).interval
            return Estimate(found.value, low, high)
        return found


def _reading(before: _Measured, after: _Measured) -> Reading:
    clean, perturbed, change = before.estimate, after.estimate, _estimate(after.values - before.values)
    if change.value and change.low == change.high:
        (clean_low, clean_high), (low, high) = _limits(clean), _limits(perturbed)
        change = Estimate(change.value, low - clean_high, high - clean_low)
    return Reading(before.measure, before.class_index, clean, perturbed, change)


def _measured(
    labels: NDArray[np.int64], probabilities: Floats, weights: Floats, patient: NDArray[np.int64], roles: Roles
) -> Iterator[_Measured]:
    """Yield each measure with its value for every row of weights ``(resamples, n)``."""

    def share(measure: str, index: int | None, hit: NDArray[np.bool_], asked: NDArray[np.bool_]) -> _Measured:
        return _Measured(measure, index, _share(weights, hit, asked), len(np.unique(patient[asked])))

    said, classes = probabilities.argmax(1), probabilities.shape[1]
    for index in range(classes):
        of_class, called = labels == index, said == index
        yield share("sensitivity", index, called, of_class)
        yield share("specificity", index, ~called, ~of_class)
        yield share("ppv", index, of_class, called)
        yield _Measured("auc", index, auc(of_class, probabilities[:, index], weights))
    right = said == labels
    yield share("accuracy", None, right, np.ones(len(labels), dtype=np.bool_))
    yield _Measured("calibration_error", None, _calibration_error(right, probabilities.max(1), weights))
    if roles.healthy is not None:
        yield share("called_healthy", None, said == roles.healthy, labels != roles.healthy)
    if roles.referable:
        to_refer, referred = (np.isin(each, sorted(roles.referable)) for each in (labels, said))
        yield share("referable_sensitivity", None, referred, to_refer)
        yield share("referable_specificity", None, ~referred, ~to_refer)


def _limits(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def auc(is_class: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Return the area under the ROC curve for every row of weights ``(resamples, n)``; NaN if one side is empty.

    The share of pairs of one of the class and one of the others that the scores put in order, ties half (Mann &
    Whitney 1947), each pair weighted by its images. Libraries take one row of weights at a time.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each run of equal scores
    parts = []
    for first in range(0, len(weights), _AT_ONCE):
        some = weights[first : first + _AT_ONCE, order]
        ours, others = (np.add.reduceat(some * side[order], starts, axis=1) for side in (is_class, ~is_class))
        below = np.cumsum(others, axis=1) - others / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((ours * below).sum(1) / (ours.sum(1) * others.sum(1)))
    return np.concatenate(parts)


def _calibration_error(right: NDArray[np.bool_], confidence: Floats, weights: Floats) -> Floats:
    """Return the mean distance of confidence and accuracy over equal bins of confidence (Guo et al. 2017, eq. 3)."""
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((len(right), BINS))
    gaps[np.arange(len(right)), place] = right - confidence
    error: Floats = np.abs(weights @ gaps).sum(1) / weights.sum(1)
    return error


def _share(weights: Floats, hit: NDArray[np.bool_], asked: NDArray[np.bool_]) -> Floats:
    """Return which share of those asked is hit, for every row of weights; NaN where nobody is asked."""
    hits, all_asked = (weights @ np.column_stack([hit & asked, asked]).astype(np.float64)).T
    with np.errstate(invalid="ignore"):
        share: Floats = hits / all_asked
    return share


def _estimate(values: Floats) -> Estimate:
    """Return the first value, with percentiles of the others that are numbers."""
    value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value) or not len(draws):
        return Estimate(None, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
