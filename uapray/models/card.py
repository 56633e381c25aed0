"""What a classifier is and where it comes from; whether an image set fits it."""

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uapray.errors import ClassifierError

if TYPE_CHECKING:
    from torch import nn

    from uapray.data.images import ImageSet


def _version() -> str:
    try:
        return metadata.version("uapray")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


class Card(BaseModel):
    """The description that travels inside a weights file.

    Attributes:
        architecture: Name that `uapray.models.zoo.build` takes, ``module:function``, or what was wrapped.
        class_names: In the order of the logits.
        channels: Channels of the images: 1 or 3.
        size: ``(h, w)`` of the images.
        initial_weights: ``random``, ``pretrained`` or the file that training began from.
        recipe: The `Recipe` as plain data; empty if not trained here.
        seed: Of the training; None if not trained here.
        data: Name or URI of the data set it was trained on.
        data_sha256: Content hash of that data set.
        pixel_range: Pixels the module takes.
        mean: Of the normalisation inside, a backbone channel each; empty if unknown.
        std: As ``mean``.
        metrics: Clean metrics by split, as plain data.
        uapray_version: Version that made the classifier.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version's card may say more

    architecture: str
    class_names: tuple[str, ...] = Field(min_length=2)
    channels: int = Field(gt=0)
    size: tuple[int, int]
    initial_weights: str
    recipe: dict[str, Any] = {}
    seed: int | None = None
    data: str | None = None
    data_sha256: str | None = None
    pixel_range: tuple[Literal[0], Literal[1]] = (0, 1)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    metrics: dict[str, Any] = {}
    uapray_version: str = Field(default_factory=_version)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A module with its card.

    Attributes:
        module: In evaluation mode; [0, 1] pixels ``(n, c, h, w)`` to logits ``(n, k)``.
        card: What it is.
        sha256: Of its weights: names, types, shapes and bytes.
    """

    module: "nn.Module"
    card: Card
    sha256: str


def read_card(origin: str, text: str) -> Card:
    """Read a card from its JSON text; ``origin`` is for the error.

    Raises:
        ClassifierError: If it is damaged.
    """
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ClassifierError(f"{origin}: its card is damaged ({place}: {first['msg']})") from None


def default_class_names(count: int) -> tuple[str, ...]:
    """Return the names of classes that nobody named."""
    return tuple(f"class {index}" for index in range(count))


def check_pixels(classifier: Classifier, images: "ImageSet") -> None:
    """Refuse images of other channels or another size than the classifier takes.

    Raises:
        ClassifierError: One line: expected, came, what to do.
    """
    card, what = classifier.card, f"{images.name} {images.split}"
    if images.channels != card.channels:
        raise ClassifierError(
            f"{what}: expected {_channels(card.channels)} as {card.architecture} takes, "
            f"got {_channels(images.channels)}; use a classifier trained on such images"
        )
    if images.size != card.size:
        raise ClassifierError(
            f"{what}: expected images of {_size(card.size)} as {card.architecture} takes, "
            f"got {_size(images.size)}; bring them to that size (--size, in Python size=)"
        )


def check_fits(classifier: Classifier, images: "ImageSet") -> None:
    """Refuse images of other channels, another size or other classes than the classifier's.

    Raises:
        ClassifierError: One line: expected, came, what to do.
    """
    check_pixels(classifier, images)
    expected, came = classifier.card.class_names, images.class_names
    if came == expected or (len(came) == len(expected) and expected == default_class_names(len(expected))):
        return
    raise ClassifierError(
        f"{images.name} {images.split}: expected the classes of {classifier.card.architecture} "
        f"({_some(expected)}), got {_some(came)}; use a classifier trained on this data set"
    )


def _channels(count: int) -> str:
    return f"{count} channel" if count == 1 else f"{count} channels"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown}, … {len(names)} in all"
