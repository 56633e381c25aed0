"""Classifiers in files: one ``.safetensors`` with the card inside; users' own; never a pickle."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from uapray.errors import ClassifierError
from uapray.models import exported, foreign
from uapray.models.card import Card, Classifier, default_class_names, read_card
from uapray.models.initial import describe, misfits, strip_prefixes
from uapray.models.pixel import PixelModel
from uapray.models.tensors import (
    decode_weights,
    encode_weights,
    hash_tensors,
    refuse_pickle,
    refuse_pickled_name,
)
from uapray.models.zoo import build, canonical
from uapray.objects import read_uri, write_uri, write_uri_once

if TYPE_CHECKING:
    from uapray.data.images import ImageSet

SUFFIX = ".safetensors"


def make_classifier(module: nn.Module, card: Card) -> Classifier:
    """Put a module (switched to evaluation mode) together with its card."""
    module.eval()
    return Classifier(module, card, hash_tensors(module.state_dict(), _origin(module, card)))


def save_classifier(classifier: Classifier, uri: str) -> None:
    """Write ``x.safetensors`` with the card inside, and ``x.card.json`` beside it for people to read.

    Raises:
        ClassifierError: If the name has another ending, or the architecture could not be built again.
        StoreError: If it cannot be written.
    """
    write_uri(uri, _file_of(classifier, uri))
    _write_card(classifier, uri)


def save_classifier_once(classifier: Classifier, uri: str) -> bool:
    """Do as `save_classifier` if no file is there; return whether it is this classifier that stands there now."""
    stands = write_uri_once(uri, _file_of(classifier, uri))
    if stands:
        _write_card(classifier, uri)
    return stands


def load_classifier(
    reference: str,
    *,
    architecture: str | None = None,
    class_names: Sequence[str] | None = None,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Load a classifier; what kind of file it is, is told from its bytes.

    Args:
        reference: A ``.safetensors`` file of ours; plain weights (``.safetensors``, ``.npz``), which need
            ``architecture``, ``class_names``, ``channels`` and ``size``; an exported program (``.pt2``); or
            ``package.module:function``, which is called and returns the module.
        architecture: Of plain weights; or the ``package.module:function`` that a card names, if it may be called.
        class_names: In the order of the logits; "class 0" and so on if nobody names them.
        channels: Of the images.
        size: ``(h, w)`` of the images.
        mean: Of plain weights' normalisation, one a channel of the backbone, in [0, 1] pixels.
        std: As ``mean``.

    Raises:
        ClassifierError: If it is a pickle, damaged, of another architecture, or not what was said of it.
        NotFoundError: If the file is not there.
    """
    names = None if class_names is None else tuple(class_names)
    size = None if size is None else (size[0], size[1])
    if foreign.is_reference(reference):
        module = foreign.call(reference)
        return wrap_module(module, names, channels, size, architecture=reference)
    refuse_pickled_name(reference)
    body = read_uri(reference)
    if exported.is_program(body):
        program = exported.load_program(reference, body)
        return wrap_module(program, names, channels, size, architecture=reference.rpartition("/")[2])
    refuse_pickle(reference, body)
    file = decode_weights(reference, body)
    if file.card is not None:
        return _load_ours(reference, file.tensors, file.card, architecture, names, channels, size)
    if architecture is None or names is None or channels is None or size is None:
        raise ClassifierError(
            f"{reference}: holds weights and no card; say in Python what they are: "
            "uapray.load_classifier(…, architecture=, class_names=, channels=, size=)"
        )
    own = {name: file.tensors[name].flatten().tolist() for name in ("mean", "std") if name in file.tensors}
    mean, std = mean or own.get("mean"), std or own.get("std")
    model = build(architecture, classes=len(names), channels=channels, size=size, mean=mean, std=std)
    _load_strictly(reference, model.backbone, _without_normalisation(file.tensors), canonical(architecture))
    return make_classifier(model, _card(canonical(architecture), names, channels, size, reference, model))


def load_for(reference: str, images: "ImageSet") -> Classifier:
    """Load a classifier; one without a card is told which images it is for."""
    if reference.endswith(SUFFIX):
        return load_classifier(reference)
    return load_classifier(reference, class_names=images.class_names, channels=images.channels, size=images.size)


def wrap_module(
    module: nn.Module,
    class_names: Sequence[str] | None = None,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    architecture: str | None = None,
) -> Classifier:
    """Make a classifier of any module that takes [0, 1] pixels ``(n, c, h, w)``; it is tried on noise.

    Args:
        module: Used as it is, in evaluation mode; not copied.
        class_names: In the order of the logits; None: "class 0" and so on.
        channels: Of the images; None: what the module says of itself.
        size: ``(h, w)`` of the images; None: what the module says of itself.
        architecture: Its name in records; None: its class.

    Raises:
        ClassifierError: If it does not take such images or does not return logits, one a class.
    """
    name = architecture or type(module).__name__
    own_channels, own_size = getattr(module, "channels", None), getattr(module, "size", None)
    for what, said, is_ in (("channels", channels, own_channels), ("size", size, own_size)):
        if said is not None and isinstance(is_, int | tuple) and said != is_:
            raise ClassifierError(f"{name}: expected images of {what} {is_}, which it takes, got {said}")
    channels, size = channels or own_channels, size or own_size
    if not isinstance(channels, int) or not isinstance(size, tuple):
        raise ClassifierError(f"{name}: say which images it takes: channels and size")
    module.eval()
    classes = foreign.count_classes(name, module, channels, size)
    names = default_class_names(classes) if class_names is None else tuple(class_names)
    if len(names) != classes:
        raise ClassifierError(f"{name}: expected {len(names)} logits ({', '.join(names)}), got {classes}")
    return make_classifier(module, _card(name, names, channels, size, name, module))


def check_can_be_saved(classifier: Classifier) -> None:
    """Refuse a classifier that could not be built again out of its weights and its card.

    Raises:
        ClassifierError: One line.
    """
    if not isinstance(classifier.module, PixelModel) and not foreign.is_reference(classifier.card.architecture):
        raise ClassifierError(
            f"{classifier.card.architecture}: cannot be built again from a name, so its weights alone are no "
            "classifier; keep the file it came from, or give it as module:function"
        )


def _file_of(classifier: Classifier, uri: str) -> bytes:
    if not uri.endswith(SUFFIX):
        raise ClassifierError(f"{uri}: expected a name that ends in {SUFFIX}")
    check_can_be_saved(classifier)
    return encode_weights(classifier.module.state_dict(), classifier.card.model_dump_json())


def _write_card(classifier: Classifier, uri: str) -> None:
    write_uri(f"{uri.removesuffix(SUFFIX)}.card.json", classifier.card.model_dump_json(indent=2).encode())


def _load_ours(
    reference: str,
    tensors: Mapping[str, Tensor],
    card_text: str,
    architecture: str | None,
    names: tuple[str, ...] | None,
    channels: int | None,
    size: tuple[int, int] | None,
) -> Classifier:
    card = read_card(reference, card_text)
    if foreign.is_reference(card.architecture) and architecture != card.architecture:
        raise ClassifierError(  # or a file could have any function called
            f"{reference}: its card names the function {card.architecture}, which no file may have called; "
            f"if you trust both, uapray.load_classifier(…, architecture='{card.architecture}')"
        )
    for what, said, is_ in (
        ("class names", names, card.class_names),
        ("channels", channels, card.channels),
        ("size", size, card.size),
    ):
        if said is not None and said != is_:
            raise ClassifierError(f"{reference}: expected {what} {said}, its card says {is_}")
    module = _rebuild(card)
    _load_strictly(reference, module, dict(tensors), card.architecture)
    return make_classifier(module, card)


def _rebuild(card: Card) -> nn.Module:
    if foreign.is_reference(card.architecture):
        return foreign.call(card.architecture)
    return build(
        card.architecture,
        classes=len(card.class_names),
        channels=card.channels,
        size=card.size,
        mean=card.mean or None,
        std=card.std or None,
    )


def _load_strictly(reference: str, module: nn.Module, tensors: dict[str, Tensor], architecture: str) -> None:
    expected = module.state_dict()
    if wrong := misfits(tensors, expected):
        raise ClassifierError(f"{reference}: expected weights of {architecture}, got {describe(wrong)}")
    module.load_state_dict({name: tensors.get(name, value) for name, value in expected.items()})


def _without_normalisation(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in strip_prefixes(tensors).items() if name not in ("mean", "std")}


def _card(
    architecture: str,
    names: tuple[str, ...],
    channels: int,
    size: tuple[int, int],
    initial_weights: str,
    module: nn.Module,
) -> Card:
    inside = module if isinstance(module, PixelModel) else None
    return Card(
        architecture=architecture,
        class_names=names,
        channels=channels,
        size=size,
        initial_weights=initial_weights,
        mean=() if inside is None else tuple(inside.mean.flatten().tolist()),
        std=() if inside is None else tuple(inside.std.flatten().tolist()),
    )


def _origin(module: nn.Module, card: Card) -> str:
    """Return what tells modules of equal weights apart; a model of ours is its weights and its card."""
    if isinstance(module, exported.ExportedModule):
        return module.graph_text
    return "" if isinstance(module, PixelModel) else card.architecture
