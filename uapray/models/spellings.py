"""Names that other libraries give the tensors of a network, turned into timm's."""

import re
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_WIDENED = _SQUEEZE | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = _SQUEEZE | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def in_timms_names(tensors: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the names that a backbone of timm has for them; those that nothing is known of as they are.

    Known are what timm itself translates, architecture by architecture, and EfficientNets as in efficientnet-pytorch
    and its kin, which number their blocks through (``_blocks.4._bn0``) where timm counts them in stages.

    Args:
        tensors: By the file's names.
        backbone: Of timm; others get their tensors back.
    """
    return _efficientnets(_timms_own(tensors, backbone), backbone)


def _timms_own(tensors: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    home = sys.modules[type(backbone).__module__]
    translate = getattr(home, "checkpoint_filter_fn", None) or getattr(home, "_filter_fn", None)
    if translate is None:
        return dict(tensors)
    try:
        return dict(translate(dict(tensors), backbone))
    except Exception:  # written for one family of files; others make it fail in any way
        return dict(tensors)


def _efficientnets(tensors: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    if "_conv_stem.weight" not in tensors or not hasattr(backbone, "conv_stem"):
        return tensors
    places = [f"blocks.{i}.{j}." for i, stage in enumerate(backbone.blocks) for j in range(len(stage))]

    def timms(name: str) -> str:
        if found := _BLOCK.fullmatch(name):
            number, inside = int(found[1]), found[2]
            names = _WIDENED if f"_blocks.{number}._expand_conv.weight" in tensors else _PLAIN
            return places[number] + _renamed(inside, names) if number < len(places) else name
        return _renamed(name, _OUTSIDE)

    return {timms(name): value for name, value in tensors.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    layer, dot, tensor = name.partition(".")
    return names.get(layer, layer) + dot + tensor
