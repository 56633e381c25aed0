from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from victims import noise

from uapray.attack.partial import PartialUpdate, add_in_order

seeds = st.lists(st.integers(0, 10_000), min_size=1, max_size=9)


def part(seed: int) -> PartialUpdate:
    return PartialUpdate(noise(seed).double() * 10.0 ** (seed % 17), seed % 33)


@given(seeds)
def test_parts_are_added_from_first_to_last(seeds: list[int]) -> None:
    parts = [part(seed) for seed in seeds]
    before = [one.total.clone() for one in parts]
    expected = before[0].clone()
    for one in before[1:]:
        expected = expected + one
    total = add_in_order(iter(parts))
    assert torch.equal(total.total, expected)
    assert total.total.dtype == torch.float64
    assert total.count == sum(one.count for one in parts)
    assert all(torch.equal(one.total, old) for one, old in zip(parts, before, strict=True))


def test_the_order_decides_the_bits() -> None:
    parts = [part(seed) for seed in (16, 1, 33)]
    assert not torch.equal(add_in_order(parts).total, add_in_order(parts[::-1]).total)
    assert torch.equal(add_in_order(parts).total, reduce(PartialUpdate.__add__, parts).total)


def test_an_update_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        part(1).count = 5  # type: ignore[misc]
