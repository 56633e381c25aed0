"""Weights between those that a training began with and those that it ended with."""

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolated(
    initial: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float, head: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return ``(1 - share) initial + share trained``; what batch norms have measured is to be measured again.

    (Wortsman et al. 2022, WiSE-FT.) Their last layer comes from text; ours begins at random, of which nothing is to be
    mixed in, so it is the trained one at every share. Equal values stay equal to the last bit.

    Args:
        initial: A state dict.
        trained: The same names, shapes and types.
        share: Of the way, 0 to 1; at 1 all is as trained.
        head: What the names of the last layer's tensors begin with.
    """
    assert initial.keys() == trained.keys(), "two states of one architecture"
    return {
        name: torch.lerp(initial[name], end, share) if end.is_floating_point() and not name.startswith(head) else end
        for name, end in trained.items()
    }
