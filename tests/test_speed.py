"""A batch size is proposed from what was measured; where memory ends, the search ends."""

import pytest
import torch
from torch import Tensor, nn
from victims import SmallCNN

from uapray.config import Arithmetic
from uapray.errors import ClassifierError
from uapray.speed import Speed, measure_speeds, proposed


def speeds(*each: float) -> list[Speed]:
    return [Speed(2**place, rate, None) for place, rate in enumerate(each)]


def test_the_smallest_batch_that_is_nearly_as_fast_is_proposed() -> None:
    assert proposed(speeds(10, 19, 30, 91, 100, 99)).batch_size == 8
    assert proposed(speeds(10, 19, 30, 89, 100, 99)).batch_size == 16
    assert proposed(speeds(10)).batch_size == 1


def test_sizes_are_doubled_up_to_the_largest_until_more_brings_nothing() -> None:
    measured = list(measure_speeds(SmallCNN(), (1, 8, 8), largest=8, seconds=0.01))
    assert [one.batch_size for one in measured] == [1, 2, 4, 8][: len(measured)]
    assert len(measured) > 1
    assert all(one.image_gradients_per_s > 0 and one.memory_bytes is None for one in measured)


class Hungry(nn.Module):
    """Takes as many images at once as fit into a memory of its own."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.inner, self.fits = SmallCNN(), fits

    def forward(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.fits:
            raise torch.OutOfMemoryError
        logits: Tensor = self.inner(pixels)
        return logits


def test_where_memory_ends_the_search_ends() -> None:
    measured = list(measure_speeds(Hungry(2), (1, 8, 8), largest=64, seconds=0.01))
    assert [one.batch_size for one in measured] == [1, 2]
    with pytest.raises(ClassifierError, match="not even one image of 8x8 px fits"):
        list(measure_speeds(Hungry(0), (1, 8, 8), seconds=0.01))


def test_a_precision_is_measured_as_it_is_used() -> None:
    (one,) = measure_speeds(SmallCNN(), (1, 8, 8), largest=1, seconds=0.01, arithmetic=Arithmetic(precision="bf16"))
    assert one.image_gradients_per_s > 0
