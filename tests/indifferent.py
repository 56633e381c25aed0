"""A classifier with no gradient, for ``module:function``: every search on it fails."""

from torch import Tensor, nn


class _Indifferent(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        bright = (pixels.mean((1, 2, 3)) * 255).round()  # a step function: no gradient anywhere
        return nn.functional.one_hot(bright.long() % 3, 3).float() * 3 + 0 * pixels.mean()


def classifier() -> nn.Module:
    """Return it."""
    return _Indifferent()
