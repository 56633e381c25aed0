"""Small classifiers for CPU; apart from the zoo, so that a replica of one need not import timm."""

from collections.abc import Sequence

from torch import nn

SMALL = {"small-cnn": (32, 64, 128, 128), "tiny-cnn": (16, 32, 64, 64)}


class SmallCNN(nn.Sequential):
    """Blocks of 3x3 convolution, batch norm, ReLU and max-pool; then the mean and one linear layer."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int) -> None:
        blocks = [
            nn.Sequential(
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            )
            for before, width in zip((channels, *widths), widths, strict=False)
        ]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
