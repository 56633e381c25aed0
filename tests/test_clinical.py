"""Clinical readings against scikit-learn and torchmetrics, and their intervals by patient."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from uapray.clinical import BINS, Reading, Roles, auc, clinical_readings
from uapray.measures import Rate

seeds = st.integers(0, 10_000)


def sample(seed: int, images: int = 60, classes: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels and probabilities that know something of them, some of them equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)).round(1)
    logits[np.arange(images), labels] += 1
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def by_name(readings: tuple[Reading, ...]) -> dict[tuple[str, int | None], Reading]:
    return {(one.measure, one.class_index): one for one in readings}


@given(seeds, st.integers(2, 5))
def test_values_are_those_of_the_libraries(seed: int, classes: int) -> None:
    labels, clean = sample(seed, 60, classes)
    perturbed = sample(seed + 1, 60, classes)[1]
    found = by_name(clinical_readings(labels, clean, perturbed, [None] * 60))
    for side, probabilities in (("clean", clean), ("perturbed", perturbed)):
        values = {name: getattr(one, side).value for name, one in found.items()}
        table = confusion_matrix(labels, probabilities.argmax(1), labels=range(classes))
        for index in range(classes):
            hit, of_class, called = table[index, index], table[index].sum(), table[:, index].sum()
            if of_class:
                assert values["sensitivity", index] == pytest.approx(hit / of_class)
                assert values["auc", index] == pytest.approx(roc_auc_score(labels == index, probabilities[:, index]))
            rejected = 60 - of_class - called + hit
            assert values["specificity", index] == pytest.approx(rejected / (60 - of_class))
            assert values["ppv", index] == (pytest.approx(hit / called) if called else None)
        assert values["accuracy", None] == pytest.approx(np.trace(table) / 60)
        error = multiclass_calibration_error(
            torch.from_numpy(probabilities), torch.from_numpy(labels), classes, n_bins=BINS
        )
        assert values["calibration_error", None] == pytest.approx(float(error), abs=1e-5)


@given(seeds)
def test_an_auc_of_weighted_images_is_that_of_the_images_repeated(seed: int) -> None:
    labels, probabilities = sample(seed, 40, 2)
    weights = np.random.default_rng(seed).multinomial(40, np.full(40, 1 / 40), 3).astype(np.float64)
    for row, area in zip(weights, auc(labels == 1, probabilities[:, 1], weights), strict=True):
        places = np.repeat(np.arange(40), row.astype(np.int64))
        assert area == pytest.approx(roc_auc_score(labels[places] == 1, probabilities[places, 1]))


@given(seeds)
def test_intervals_hold_their_value_and_nothing_changes_where_nothing_was_done(seed: int) -> None:
    labels, clean = sample(seed)
    for one in clinical_readings(labels, clean, clean, [None] * 60):
        assert (one.change.value, one.change.low, one.change.high) == (0, 0, 0)
        assert one.clean == one.perturbed
        assert one.clean.value is not None
        if one.measure != "calibration_error":  # its resamples lie above it: absolute values add up
            assert one.clean.low <= one.clean.value <= one.clean.high


def test_images_of_one_patient_are_drawn_together() -> None:
    labels, clean = sample(1, 40)
    repeated = [np.repeat(each, 10, axis=0) for each in (labels, clean)]
    one_each = by_name(clinical_readings(labels, clean, clean, [str(i) for i in range(40)]))
    ten_each = by_name(clinical_readings(*repeated, repeated[1], [str(i) for i in range(40) for _ in range(10)]))
    strangers = by_name(clinical_readings(*repeated, repeated[1], [None] * 400))
    width = {
        name: found["accuracy", None].clean.high - found["accuracy", None].clean.low
        for name, found in (("one", one_each), ("ten", ten_each), ("strangers", strangers))
    }
    assert width["ten"] > 2 * width["strangers"], "ten pictures of a patient are no ten patients"
    assert width["ten"] == pytest.approx(width["one"], rel=0.3)


def test_the_diseased_who_are_called_healthy_and_those_to_be_referred() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    said = np.array([0, 1, 0, 1, 0, 0, 1, 2])
    roles = Roles(healthy=0, referable=frozenset({2}))
    found = by_name(clinical_readings(labels, np.eye(3)[labels], np.eye(3)[said], [None] * 8, roles=roles))
    healthy = found["called_healthy", None]
    assert (healthy.clean.value, healthy.perturbed.value, healthy.change.value) == (0, 0.5, 0.5)
    assert (healthy.clean.low, healthy.clean.high) == pytest.approx(Rate(0, 6).interval), "none of six is not never"
    assert found["referable_sensitivity", None].perturbed.value == 0.25
    assert found["referable_specificity", None].perturbed.value == 1
    without = by_name(clinical_readings(labels, np.eye(3)[labels], np.eye(3)[said], [None] * 8))
    assert not {name for name, _ in without} & {"called_healthy", "referable_sensitivity"}


def test_what_is_lost_altogether_has_an_interval_too() -> None:
    labels = np.arange(40) % 2
    one = by_name(clinical_readings(labels, np.eye(2)[labels], np.eye(2)[1 - labels], [None] * 40))["sensitivity", 0]
    low, high = Rate(0, 20).interval
    assert (one.perturbed.value, one.perturbed.low, one.perturbed.high) == (0, low, high)
    assert (one.change.value, one.change.low) == (-1, -1)
    assert one.change.high == pytest.approx(2 * high - 1)


def test_what_cannot_be_told_is_none() -> None:
    labels = np.zeros(4, dtype=np.int64)
    clean = np.tile([0.9, 0.1], (4, 1))
    found = by_name(clinical_readings(labels, clean, clean, [None] * 4))
    for name in (("sensitivity", 1), ("specificity", 0), ("auc", 0), ("ppv", 1)):
        assert (found[name].clean.value, found[name].clean.low, found[name].change.high) == (None, None, None)


@given(seeds)
def test_equal_seeds_give_equal_intervals(seed: int) -> None:
    labels, clean = sample(seed)
    perturbed = sample(seed + 1)[1]
    assert clinical_readings(labels, clean, perturbed, [None] * 60, seed=seed) == clinical_readings(
        labels, clean, perturbed, [None] * 60, seed=seed
    )
