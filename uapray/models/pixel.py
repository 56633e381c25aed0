"""A backbone that takes pixels as the images hold them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uapray.errors import ClassifierError


class PixelModel(nn.Module):
    """Takes [0, 1] pixels in the images' own channels; widening and normalisation happen inside.

    So a perturbation of a grey image has one channel and pixel units, whatever the backbone was trained on.

    Args:
        backbone: Maps normalised ``(n, len(mean), h, w)`` to logits ``(n, k)``.
        mean: Mean of each channel that the backbone takes, in [0, 1] pixels.
        std: Standard deviation of each, above 0.
        channels: Channels of the images: as many as ``mean``, or 1, which is repeated.
        size: ``(h, w)`` of the images that the model is meant for; kept for those who ask.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or channels not in (1, len(mean)) or min(std) <= 0:
            raise ClassifierError(
                "normalisation: expected a mean and a std above 0 for each channel of the backbone, "
                f"got mean {list(mean)} and std {list(std)} for images of {channels} channel(s)"
            )
        self.backbone = backbone
        self.channels = channels
        self.size = size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``(n, k)`` of [0, 1] pixels ``(n, channels, h, w)``."""
        if pixels.shape[1] != self.channels:
            # Broadcasting would take three channels for one and say nothing.
            raise ValueError(f"expected {self.channels} channels, got pixels {tuple(pixels.shape)}")
        logits: Tensor = self.backbone((pixels - self.mean) / self.std)
        return logits
