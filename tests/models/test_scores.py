from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uapray.data.images import ImageSet
from uapray.models.card import Card
from uapray.models.scores import classifier_rows, predict_probabilities, score, score_classifier
from uapray.models.weights import make_classifier
from uapray.models.zoo import build


def test_a_table_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.array(
        [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]
    )
    found = score(labels, probabilities, ("a", "b", "c"))
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    first = found.classes[0]
    assert (first.images, first.sensitivity, first.specificity) == (
        3,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert first.accuracy == pytest.approx(4 / 6)
    assert first.auc == pytest.approx(6 / 9)
    # Wilson 1927: 4 of 6 at 95 %.
    assert (found.accuracy_low, found.accuracy_high) == (
        pytest.approx(0.2999, abs=1e-3),
        pytest.approx(0.9032, abs=1e-3),
    )


def test_one_class_only_has_no_auc_and_no_specificity() -> None:
    found = score(np.array([1, 1]), np.array([[0.3, 0.7], [0.6, 0.4]]), ("a", "b"))
    assert found.auc is None
    assert found.classes[0].sensitivity is None
    assert found.classes[1].specificity is None
    assert found.balanced_accuracy == found.accuracy == 0.5


@st.composite
def judged(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    classes, count = draw(st.integers(2, 5)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return rng.integers(0, classes, count), rng.dirichlet(np.ones(classes), count)


@settings(deadline=None, max_examples=60)
@given(judged())
def test_every_figure_is_a_share_and_the_parts_agree(
    case: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    labels, probabilities = case
    found = score(labels, probabilities, [f"class {i}" for i in range(probabilities.shape[1])])
    assert 0 <= found.accuracy_low <= found.accuracy <= found.accuracy_high <= 1
    assert sum(each.images for each in found.classes) == found.images == len(labels)
    right = sum((each.sensitivity or 0) * each.images for each in found.classes)
    assert right == pytest.approx(found.accuracy * found.images)
    for each in found.classes:
        for value in (each.accuracy, each.sensitivity, each.specificity, each.auc):
            assert value is None or 0 <= value <= 1


def test_rows_of_the_table(image_set: Callable[..., ImageSet]) -> None:
    model = build("tiny-cnn", classes=2, channels=1, size=(32, 32))
    card = Card(
        architecture="tiny-cnn", class_names=("upright", "lying"), channels=1, size=(32, 32),
        initial_weights="random", recipe={"epochs": 1}, data_sha256="ab",
    )  # fmt: skip
    classifier, images = make_classifier(model, card), image_set(20)
    scores = score_classifier(classifier, images)
    rows = classifier_rows(classifier, scores, split="test")
    assert [row["class_name"] for row in rows] == ["upright", "lying", None]
    columns = [
        "classifier_sha256",
        "architecture",
        "data_sha256",
        "initial_weights",
        "recipe",
        "split",
        "class_name",
        "images",
        "accuracy",
        "sensitivity",
        "specificity",
        "auc",
    ]
    assert all(sorted(row) == sorted(columns) for row in rows)
    assert rows[-1]["images"] == 20 == rows[0]["images"] + rows[1]["images"]
    assert rows[0]["recipe"] == '{"epochs": 1}'
    assert scores.plain()["classes"][0]["class_name"] == "upright"


def test_probabilities_do_not_depend_on_the_batch_and_leave_the_mode(
    image_set: Callable[..., ImageSet],
) -> None:
    model, images = build("tiny-cnn", classes=2, channels=1, size=(32, 32)).train(), image_set(10)
    whole, pieces = (predict_probabilities(model, images, batch_size=size) for size in (10, 3))
    assert model.training
    np.testing.assert_allclose(whole, pieces, atol=1e-5)
    np.testing.assert_allclose(whole.sum(1), 1)
