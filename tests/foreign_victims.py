"""Classifiers for ``module:function``: one with no gradient, so that every search on it fails; one of brightness."""

import torch
from torch import Tensor, nn


class _Indifferent(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        bright = (pixels.mean((1, 2, 3)) * 255).round()  # a step function: no gradient anywhere
        return nn.functional.one_hot(bright.long() % 3, 3).float() * 3 + 0 * pixels.mean()


def indifferent() -> nn.Module:
    """Return a classifier with no gradient."""
    return _Indifferent()


class _Bright(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.mean((1, 2, 3))
        return torch.stack([-mean, 0.5 - (mean - 0.5).abs(), mean], 1) * 9


def bright() -> nn.Module:
    """Return a classifier of brightness that takes images of any size."""
    return _Bright()
