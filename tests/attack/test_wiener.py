import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import State, spgd
from uapray.attack.wiener import BANDS, agreement, remembered, spectrum, weighted, weights

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17))


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agreed(picture: Tensor, earlier: Tensor) -> Tensor:
    return agreement(spectrum(picture), spectrum(earlier), picture.shape)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / a.norm() / b.norm())


@given(shapes, seeds)
def test_all_power_is_in_a_band(shape: tuple[int, int, int], seed: int) -> None:
    picture, other = drawn(shape, seed), drawn(shape, seed + 1)
    common, power = agreed(picture, other)
    assert common.shape == (shape[0], BANDS)
    total = float((picture**2 + other**2).sum() / 2)
    assert float(common.sum()) == pytest.approx(float((picture * other).sum()), abs=1e-5 * total)
    assert float(power.sum()) == pytest.approx(total, rel=1e-5)
    assert (common.abs() <= power + 1e-5 * total).all()


@given(shapes, seeds, st.floats(0.1, 1e6))
def test_what_agrees_in_full_or_nowhere_stays_as_it_is(shape: tuple[int, int, int], seed: int, rounds: float) -> None:
    picture = drawn(shape, seed)
    filled = agreed(picture, picture)[1] > 1e-9
    for earlier in (picture, -picture, 0 * picture):
        by_band = weights(agreed(picture, earlier), rounds)
        torch.testing.assert_close(by_band[filled], torch.ones_like(by_band[filled]), rtol=1e-5, atol=0)
    everything = torch.ones(shape[0], BANDS, dtype=torch.float64)
    torch.testing.assert_close(weighted(spectrum(picture), everything, shape), picture, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 17), st.integers(1, 17), seeds)
def test_grey_and_colours_are_told_apart(height: int, width: int, seed: int) -> None:
    """What is in all channels alike is of the first axis alone, what cancels between them of the others."""
    grey = drawn((1, height, width), seed).expand(3, height, width)
    colour = drawn((3, height, width), seed + 1)
    colour = colour - colour.mean(0)
    power = agreed(grey, grey)[1] + agreed(colour, colour)[1]
    total = float((grey**2 + colour**2).sum())
    assert float(power[0].sum()) == pytest.approx(float((grey**2).sum()), abs=1e-5 * total)
    assert float(power[1:].sum()) == pytest.approx(float((colour**2).sum()), abs=1e-5 * total)
    first = torch.zeros(3, BANDS, dtype=torch.float64)
    first[0] = 1
    kept = weighted(spectrum(grey + colour), first, grey.shape)
    torch.testing.assert_close(kept, grey, rtol=1e-5, atol=1e-5)


@given(st.lists(st.floats(-1, 1), min_size=BANDS, max_size=BANDS), st.floats(0.1, 100))
def test_weights_order_the_bands_and_even_out_with_the_rounds(common: list[float], rounds: float) -> None:
    known = torch.stack([torch.tensor([common], dtype=torch.float64), torch.ones(1, BANDS, dtype=torch.float64)])
    few, many = weights(known, rounds), weights(known, 10 * rounds)
    order = known[0, 0].argsort()
    for (one,) in (few, many):
        assert (one > 0).all()
        assert one.max() == 1
        assert (one[order].diff() >= 0).all()
    assert (many >= few).all()
    torch.testing.assert_close(weights(known, 1e12), torch.ones(1, BANDS, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_signal_in_noise_is_seen_more_clearly() -> None:
    """Rounds that have a coarse grey picture in common, under noise that is everywhere: the filter finds its band."""
    shape, turns = (3, 24, 24), torch.arange(24, dtype=torch.float64) * 2 * math.pi / 24
    signal = 0.3 * (turns.sin()[:, None] + turns.cos()).expand(shape)
    for rounds in (1.0, 10.0):
        known, plain, filtered, earlier = None, 0.0, 0.0, signal + drawn(shape, 1)
        for seed in range(2, 60):
            picture = signal + drawn(shape, seed)
            known = remembered(known, agreed(picture, earlier))
            earlier = picture
            if seed >= 30:
                plain += cosine(picture, signal)
                filtered += cosine(weighted(spectrum(picture), weights(known, rounds), shape), signal)
        assert known is not None
        by_band = weights(known, rounds)
        assert by_band[0].argmax() == 0, "one turn is a twenty-fourth of half of the highest frequency of a side"
        assert filtered > 1.3 * plain


def walked(pictures: list[Tensor], **settings: float) -> list[State]:
    rule = spgd(p=2, xi=1.0, step_size=0.5, step_decay=0.5, **settings)
    states = [rule.start(torch.zeros(pictures[0].shape))]
    for number, picture in enumerate(pictures):
        states.append(rule.step(states[-1], PartialUpdate(picture, 4), number / 3))
    return states


@given(shapes, seeds, st.sampled_from([0.0, 0.5]))
def test_a_rule_filters_from_the_second_round_on(shape: tuple[int, int, int], seed: int, momentum: float) -> None:
    same = [drawn(shape, seed)] * 4
    plain, filtered = walked(same, momentum=momentum), walked(same, momentum=momentum, wiener_rounds=2)
    for one, other in zip(plain, filtered, strict=True):
        torch.testing.assert_close(one.v, other.v, atol=1e-5, rtol=1e-4)
    assert plain[-1].earlier is None
    first = walked([drawn(shape, seed), drawn(shape, seed + 1)], momentum=momentum, wiener_rounds=2)
    assert torch.equal(first[1].v, plain[1].v)
    assert first[1].bands is None
    assert first[2].bands is not None


def test_infinitely_many_rounds_are_no_filter() -> None:
    pictures = [drawn((1, 8, 8), seed) for seed in range(5)]
    plain, never, strong = walked(pictures), walked(pictures, wiener_rounds=math.inf), walked(pictures, wiener_rounds=1)
    assert torch.equal(plain[-1].v, never[-1].v)
    assert not torch.equal(plain[-1].v, strong[-1].v)


def test_no_gradient_moves_nothing() -> None:
    states = walked([torch.zeros(1, 5, 5, dtype=torch.float64)] * 3, wiener_rounds=2)
    assert all(torch.equal(state.v, torch.zeros(1, 5, 5)) for state in states)
