"""The blocks of an architecture, counted from the pixels, and keeping the first of them as they are in training.

A block is a child of the backbone that has a weight of two or more dimensions (a convolution, a residual block, a
layer of a transformer), in order of definition; of a ``Sequential`` or ``ModuleList`` its members are looked at
instead, as deep as these are nested. What has vectors alone, such as a batch norm, belongs to the block before it; what
the backbone holds itself, such as position embeddings, to the first. What holds the last layer, the head, is none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from uapray.errors import ConfigError
from uapray.models.initial import head_prefixes
from uapray.models.pixel import PixelModel


def blocks_of(module: nn.Module) -> list[list[nn.Module]]:
    """Return the modules of each block, from the pixels up."""
    backbone = _backbone(module)
    head = head_prefixes(backbone)
    blocks: list[list[nn.Module]] = []
    for name, part in _parts(backbone, ""):
        tensors: dict[str, Tensor] = part.state_dict(prefix=name)
        if not tensors or any(key.startswith(head) for key in tensors):
            continue
        if not blocks or any(weight.ndim > 1 for weight in part.parameters()):
            blocks.append([])
        blocks[-1].append(part)
    return blocks


def first_blocks(module: nn.Module, count: int) -> list[nn.Module]:
    """Return the modules of the first ``count`` blocks.

    Raises:
        ConfigError: If there are fewer.
    """
    blocks = blocks_of(module) if count else []
    if count > len(blocks):
        raise ConfigError(
            f"frozen_blocks: expected at most {len(blocks)}, the blocks of this architecture below its last layer, "
            f"got {count}"
        )
    return [part for block in blocks[:count] for part in block]


@contextmanager
def frozen(module: nn.Module, count: int) -> Iterator[Sequence[nn.Module]]:
    """Take the gradients from the first blocks inside the block; yield their modules, to be kept in evaluation mode.

    Args:
        module: A classifier, not wrapped for several workers.
        count: How many blocks; 0 for none.

    Raises:
        ConfigError: If there are fewer.
    """
    parts = first_blocks(module, count)
    held = [weight for part in parts for weight in part.parameters()]
    held += _backbone(module).parameters(recurse=False) if count else []
    learning = [weight for weight in held if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield parts
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def _backbone(module: nn.Module) -> nn.Module:
    return module.backbone if isinstance(module, PixelModel) else module


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}.", child
