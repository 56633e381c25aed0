"""Architectures of timm and torchvision: the border to both, whose import takes seconds."""

import functools
import inspect
from typing import Any

import timm
import torchvision
from torch import nn

from uapray.errors import ClassifierError

ONLY_PICKLES = (
    "pretrained weights of it are published as pickles or not at all, and pickles are never read; "
    "take another name, or convert the file to .safetensors once and give it as initial weights"
)


def is_timm(name: str) -> bool:
    """Return whether timm has an architecture of that name, and the tag behind its dot, if it has one."""
    if not timm.is_model(name):
        return False
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture is known, the tag behind the dot is not
        return False
    return True


def timm_names(*, tagged: bool = False) -> list[str]:
    """Return every architecture of timm; or those with pretrained weights, each with the tag behind its dot."""
    names: list[str] = timm.list_models(pretrained=tagged)
    return names


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Return every architecture of torchvision."""
    return tuple(torchvision.models.list_models(torchvision.models))


def timm_backbone(name: str, classes: int, size: tuple[int, int], *, pretrained: bool) -> nn.Module:
    """Return a model of timm; VGGs as the papers had them.

    Args:
        name: timm's.
        classes: Number of logits.
        size: ``(h, w)`` of the images.
        pretrained: Whether with timm's published weights, else with random ones.

    Raises:
        ClassifierError: If it cannot be built for such images, or has no pretrained weights within reach.
    """
    options: dict[str, Any] = {"num_classes": classes}
    usual = timm.get_pretrained_cfg(name)
    if usual is not None and usual.fixed_input_size and usual.input_size[1:] != size:
        options["img_size"] = size
    if pretrained:
        if usual is None or not usual.hf_hub_id:
            raise ClassifierError(f"{name}: {ONLY_PICKLES}")
        # Named, so that timm does not look for a pickle where there is no safetensors file.
        options["pretrained_cfg_overlay"] = {"hf_hub_filename": "model.safetensors"}
    papers_head = name in ("vgg16", "vgg19")
    if papers_head and not pretrained:
        options["mlp_ratio"] = 1 / 512  # layers that are replaced below need no 120 million random numbers
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm, its hub client and 1,300 constructors raise what they like
        said = str(error).partition("\n")[0] or type(error).__name__
        if pretrained:
            raise ClassifierError(
                f"{name}: pretrained weights could not be loaded ({said});\n"
                "without network give a local .safetensors file as initial weights, or 'random'"
            ) from error
        raise ClassifierError(f"{name}: cannot be built for {size[0]}x{size[1]} px images ({said})") from error
    return _with_papers_head(module, classes) if papers_head else module


def torchvision_backbone(name: str, classes: int) -> nn.Module:
    """Return a model of torchvision with random weights.

    Args:
        name: torchvision's, without the prefix.
        classes: Number of logits.
    """
    builder = torchvision.models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    # Models with auxiliary heads return tuples while they are trained.
    if "init_weights" in inspect.signature(_model_class(name)).parameters:
        options["init_weights"] = True
    if "aux_logits" in inspect.signature(_model_class(name)).parameters:
        options["aux_logits"] = False
    module: nn.Module = builder(**options)
    return module


def _model_class(name: str) -> Any:
    classes = {"inception_v3": torchvision.models.Inception3, "googlenet": torchvision.models.GoogLeNet}
    return classes.get(name, nn.Module)


def _with_papers_head(vgg: Any, classes: int) -> nn.Module:
    """Replace VGG's two layers of 4,096 by the mean over the picture (Hirano et al. 2021)."""
    vgg.pre_logits = nn.Identity()
    vgg.head = timm.layers.ClassifierHead(512, classes, pool_type="avg")
    vgg.head_hidden_size = vgg.num_features
    module: nn.Module = vgg
    return module
