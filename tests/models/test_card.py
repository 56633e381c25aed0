from collections.abc import Callable

import pytest
from torch import nn

from uapray.data.images import ImageSet
from uapray.errors import ClassifierError
from uapray.models.card import Card, Classifier, check_fits, check_pixels


def classifier(**changes: object) -> Classifier:
    facts = {
        "architecture": "tiny-cnn",
        "class_names": ("upright", "lying"),
        "channels": 1,
        "size": (32, 32),
        "initial_weights": "random",
    }
    return Classifier(nn.Identity(), Card.model_validate({**facts, **changes}), "")


def test_what_fits_fits(image_set: Callable[..., ImageSet]) -> None:
    check_fits(classifier(), image_set(4))
    check_fits(classifier(class_names=("class 0", "class 1")), image_set(4))  # classes nobody named
    check_pixels(classifier(class_names=("a", "b", "c")), image_set(4))  # e.g. natural images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 3}, "expected 3 channels as tiny-cnn takes, got 1 channel;"),
        (
            {"size": (32, 48)},
            "expected images of 32x48 px as tiny-cnn takes, got 32x32 px; bring them to that size",
        ),
        ({"class_names": ("lying", "upright")}, r"\(lying, upright\), got upright, lying;"),
        (
            {"class_names": ("class 0", "class 1", "class 2")},
            r"\(class 0, class 1, class 2\), got upright, lying;",
        ),
    ],
)
def test_what_does_not_is_said_in_one_line(
    image_set: Callable[..., ImageSet], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ClassifierError, match=message) as refusal:
        check_fits(classifier(**changes), image_set(4))
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("bars train: ")


def test_a_later_versions_card_can_be_read() -> None:
    text = classifier().card.model_dump_json().replace("{", '{"news": 1, ', 1)
    assert Card.model_validate_json(text) == classifier().card
