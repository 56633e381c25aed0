"""Architectures by name: the papers' seven, small ones for CPU, every timm name, torchvision's.

timm and torchvision are imported where one of theirs is asked for: a plan with the papers' names needs neither.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from uapray.errors import ClassifierError
from uapray.models.initial import adopt, fold_name
from uapray.models.pixel import PixelModel
from uapray.models.small import SMALL, SmallCNN
from uapray.steady import drawing

PAPERS = (
    "inception_v3",
    "vgg16",
    "vgg19",
    "resnet50",
    "inception_resnet_v2",
    "densenet121",
    "densenet169",
)
TORCHVISION = "torchvision:"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL_MEAN, _SMALL_STD = 0.5, 0.25


def canonical(architecture: str) -> str:
    """Return the one name of an architecture; the papers' spellings (``InceptionV3``) are understood.

    Raises:
        ClassifierError: If there is none of that name; the nearest valid ones are in the text.
    """
    folded = {fold_name(name): name for name in (*PAPERS, *SMALL)}
    if "." not in architecture and (found := folded.get(fold_name(architecture))) is not None:
        return found
    from uapray.models import libraries

    if architecture in _torchvisions() or libraries.is_timm(architecture):
        return architecture
    if libraries.is_timm(architecture.lower()):
        return architecture.lower()
    tagged = libraries.timm_names(tagged=True) if "." in architecture else []
    near = difflib.get_close_matches(architecture.lower(), [*known_names(), *tagged], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"e.g. {', '.join((*PAPERS, *SMALL))}"
    raise ClassifierError(f"unknown architecture '{architecture}'; {hint}")


def known_names() -> list[str]:
    """Return every name that `build` takes, ours and the papers' first."""
    from uapray.models import libraries

    ours = [*SMALL, *PAPERS]
    return [*ours, *(name for name in libraries.timm_names() if name not in PAPERS), *_torchvisions()]


def _torchvisions() -> list[str]:
    from uapray.models import libraries

    return [TORCHVISION + name for name in libraries.torchvision_names()]


def build(
    architecture: str,
    *,
    classes: int,
    channels: int,
    size: tuple[int, int],
    initial_weights: str = "random",
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> PixelModel:
    """Build a classifier of [0, 1] pixels, in evaluation mode.

    Args:
        architecture: See `canonical`.
        classes: Number of logits.
        channels: Of the images, 1 or 3.
        size: ``(h, w)`` of the images.
        initial_weights: ``random``; ``pretrained`` (timm's own loading); or the URI of a ``.safetensors`` or
            ``.npz`` file: another classifier, or plain weights under timm's or torchvision's names. A last
            layer for another number of classes starts at random.
        seed: Of every random number used here; the global random state is left as it was.
        mean: Of the normalisation inside, one a backbone channel; None: what the weights were made for.
        std: As ``mean``.

    Raises:
        ClassifierError: Unknown architecture, images too small for it, weights of another one, or no
            pretrained weights within reach.
    """
    name = canonical(architecture)
    if classes < 2:
        raise ClassifierError(f"{name}: expected at least 2 classes, got {classes}")
    if channels not in (1, 3):
        raise ClassifierError(f"{name}: expected images of 1 or 3 channels, got {channels}")
    with drawing, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs too.
        torch.default_generator.manual_seed(seed)
        backbone = _backbone(name, classes, channels, size, pretrained=initial_weights == "pretrained")
    usual_mean, usual_std = _normalisation(name, backbone, channels)
    model = PixelModel(backbone, mean or usual_mean, std or usual_std, channels, size)
    if initial_weights not in ("random", "pretrained"):
        adopt(model, name, initial_weights, keep_normalisation=mean is not None or std is not None)
    model.eval()
    _check_size(name, model, classes)
    return model


def _backbone(name: str, classes: int, channels: int, size: tuple[int, int], *, pretrained: bool) -> nn.Module:
    if name in SMALL:
        if pretrained:
            raise ClassifierError(f"{name}: nobody publishes pretrained weights of it; expected random or a file")
        return SmallCNN(SMALL[name], channels, classes)
    from uapray.models import libraries

    if name.startswith(TORCHVISION):
        if pretrained:
            raise ClassifierError(f"{name}: {libraries.ONLY_PICKLES}")
        return libraries.torchvision_backbone(name.removeprefix(TORCHVISION), classes)
    return libraries.timm_backbone(name, classes, size, pretrained=pretrained)


def _normalisation(name: str, backbone: nn.Module, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    if name in SMALL:
        return (_SMALL_MEAN,) * channels, (_SMALL_STD,) * channels
    usual: Any = getattr(backbone, "pretrained_cfg", {})
    return usual.get("mean", _IMAGENET_MEAN), usual.get("std", _IMAGENET_STD)


def _check_size(name: str, model: PixelModel, classes: int) -> None:
    assert model.size is not None
    height, width = model.size
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, model.channels, height, width))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        said = str(error).partition("\n")[0]
        raise ClassifierError(
            f"{name}: does not take images of {height}x{width} px ({said}); "
            "use larger ones or another architecture, e.g. small-cnn"
        ) from error
    assert logits.shape == (1, classes), f"{name} returned {tuple(logits.shape)} for {classes} classes"
