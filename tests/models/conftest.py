"""Small image sets and models that the tests of the classifiers share."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from uapray.data.images import ImageSet


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bars(count: int = 60, size: int = 32, channels: int = 1, seed: int = 0) -> ImageSet:
    """Noise with a bright bar: upright in class 0, lying in class 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 120, (count, size, size, channels))
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(4, size - 8)
        bar = (slice(None), slice(place, place + 4)) if label == 0 else (slice(place, place + 4), slice(None))
        image[bar] += 90
    return ImageSet(
        images.astype(np.uint8),
        labels.astype(np.int64),
        tuple(f"image {i}" for i in range(count)),
        tuple(f"patient {i // 2}" for i in range(count)),
        ("upright", "lying"),
        "bars",
        "train",
    )


@pytest.fixture
def image_set() -> Callable[..., ImageSet]:
    return bars


def liven(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and factors that are not those of a fresh module."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_var is not None:
            assert norm.running_mean is not None
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.1)
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
            for weight in norm.parameters():
                weight.data.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    return module


@pytest.fixture
def livened() -> Callable[..., nn.Module]:
    return liven
