"""What several verbs take in: a classifier with its images, and settings as NAME=VALUE."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uapray.data.images import ImageSet
    from uapray.models.card import Classifier


def load(
    model: str, data: str, splits: tuple[str, ...], size: int | None, attacker_share: float = 0.0
) -> "tuple[Classifier, list[ImageSet]]":
    """Load a classifier and splits, at the size asked for or else at the size that its card says."""
    from uapray.cli.leaks import tell_shared_patients
    from uapray.data.dataset import open_data, with_attacker
    from uapray.models.card import check_fits
    from uapray.models.weights import load_classifier, load_for

    square = None if size is None else (size, size)
    opened = open_data(data)
    tell_shared_patients(opened)
    opened = with_attacker(opened, attacker_share) if attacker_share else opened
    if model.endswith(".safetensors"):
        classifier = load_classifier(model)
        images = [opened.images(split, square or classifier.card.size) for split in splits]
    else:
        images = [opened.images(split, square) for split in splits]
        classifier = load_for(model, images[0])
    check_fits(classifier, images[0])
    return classifier, images


def parsed(settings: list[str]) -> dict[str, Any]:
    """Return settings given as NAME=VALUE, the values as YAML reads them."""
    import yaml

    from uapray.errors import ConfigError

    values: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign:
            raise ConfigError(f"--set: expected NAME=VALUE, got {setting!r}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {name}: expected a value, got {value!r}") from error
    return values
