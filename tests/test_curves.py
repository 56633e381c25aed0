"""Curves over zeta, against arithmetic."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from victims import TwoClass, grey_levels, two_class

from uapray.curves import ZETAS, crossing, curve_of, fooled
from uapray.measures import Outcome

counts = st.integers(4, 40)
seeds = st.integers(0, 2**16)


def outcome(clean: NDArray[np.int64], perturbed: NDArray[np.int64], classes: int = 2) -> Outcome:
    return Outcome(clean, clean, perturbed, classes)


def ladder(count: int, needed: NDArray[np.float64], zetas: tuple[float, ...]) -> list[Outcome]:
    """Return outcomes in which image i, of class 0, goes to class 1 from the zeta that it needs."""
    clean = np.zeros(count, dtype=np.int64)
    return [outcome(clean, (needed <= zeta).astype(np.int64)) for zeta in zetas]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 1))
def test_the_fit_is_at_the_level_where_it_crosses(rates: list[float], level: float) -> None:
    from sklearn.isotonic import IsotonicRegression

    zetas = np.arange(1, len(rates) + 1) / 100
    at = crossing(zetas.tolist(), rates, level)
    fit = IsotonicRegression().fit(zetas, rates).predict(zetas)
    if fit[-1] < level:
        assert at == math.inf
    else:
        assert np.interp(at, [0, *zetas], [0, *fit]) == pytest.approx(level)
        assert (fit[zetas < at - 1e-12] < level + 1e-12).all(), "it was reached before"


def test_known_crossings() -> None:
    assert crossing([0.01, 0.02], [0.25, 0.75], 0.5) == pytest.approx(0.015)
    assert crossing([0.02], [1.0], 0.5) == pytest.approx(0.01), "a line from rate 0 at zeta 0"
    assert crossing([0.01, 0.02, 0.03], [0.5, 0.3, 0.8], 0.5) == pytest.approx(0.02 + 0.01 * 0.1 / 0.4), "pooled at 0.4"
    assert crossing([0.01, 0.02], [0.2, 0.4], 0.5) == math.inf
    assert crossing([0.01], [0.0], 0.0) == math.inf, "where nothing can be fooled, half of it is nowhere"


@given(counts, seeds)
def test_the_interval_holds_the_estimate_or_says_beyond(count: int, seed: int) -> None:
    needed = np.random.default_rng(seed).uniform(0, 0.12, count)
    said = curve_of(ZETAS, ladder(count, needed, ZETAS), (None,) * count, target=None)
    assert said.rates[0].hits == int((needed <= ZETAS[0]).sum())
    for one in (said.zeta50, said.zeta50_of_ceiling):
        assert 0 < one.low <= ZETAS[-1]
        assert one.high is None or one.low <= one.high <= ZETAS[-1]
        assert one.zeta is None or (one.low <= one.zeta and (one.high is None or one.zeta <= one.high))


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_victim_it_is_where_arithmetic_says(norm: str, share: float) -> None:
    images = grey_levels(60)
    victim = two_class(images, share=share)
    scores = victim.scores(images)
    w = victim.w.double()
    needed = -scores / float(w.abs().sum() if norm == "linf" else w.norm())  # radius that lifts a score over zero
    up = np.sort(needed[scores < 0])
    zetas = [float((low + high) / 2) for low, high in pairwise(up)] + [float(up[-1] * 1.1)]
    said = curve_of(zetas, [judged(victim, images, norm, xi) for xi in zetas], (None,) * 60, target=None)
    assert [rate.hits for rate in said.rates] == list(range(1, len(up) + 1))
    assert said.ceiling == pytest.approx(len(up) / 60)
    for level, one in ((30, said.zeta50), (len(up) / 2, said.zeta50_of_ceiling)):
        assert one.zeta == pytest.approx(np.interp(level, range(len(up) + 1), [0, *zetas]), rel=1e-9)


def judged(victim: TwoClass, images: NDArray[np.uint8], norm: str, xi: float) -> Outcome:
    import torch
    from victims import unit_pixels

    def classes(pixels: torch.Tensor) -> NDArray[np.int64]:
        return victim.module.double()(pixels.double()).argmax(1).numpy()

    clean = unit_pixels(images)
    return outcome(classes(clean), classes(clean + victim.best(norm, xi)))


def test_half_that_is_never_reached_has_the_largest_zeta_as_lower_limit() -> None:
    clean = np.array([0, 1] * 20)
    outcomes = [outcome(clean, clean), outcome(clean, np.where(np.arange(40) < 20, 1, clean))]
    said = curve_of([0.01, 0.02], outcomes, (None,) * 40, target=None)
    assert said.zeta50.zeta is None
    assert said.zeta50.high is None
    assert said.zeta50.low == 0.02
    assert said.ceiling == 0.5
    assert said.zeta50_of_ceiling.zeta == pytest.approx(0.02), "a quarter of the images is half of what can be"


def test_a_target_counts_those_that_come_to_it() -> None:
    clean = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    towards = np.array([2, 1, 1, 2, 2, 2, 2, 0])
    assert fooled(outcome(clean, towards, 3), 2).tolist() == [True, False, False, True, *[False] * 4]
    assert fooled(outcome(clean, towards, 3), None).sum() == 4
    said = curve_of([0.04], [outcome(clean, towards, 3)], (None,) * 8, target=2)
    assert said.ceiling == 0.5
    assert said.zeta50.zeta is None
    assert said.zeta50_of_ceiling.zeta == pytest.approx(0.04), "two of the four that are not the target"


@given(seeds)
def test_images_of_one_patient_are_drawn_together(seed: int) -> None:
    needed = np.random.default_rng(seed).uniform(0, 0.06, 20)
    alone = curve_of(ZETAS, ladder(20, needed, ZETAS), tuple(map(str, range(20))), target=None, seed=seed)
    twice = np.repeat(needed, 2)
    pairs = tuple(str(row // 2) for row in range(40))
    together = curve_of(ZETAS, ladder(40, twice, ZETAS), pairs, target=None, seed=seed)
    assert together.zeta50 == pytest.approx(alone.zeta50) or together.zeta50 == alone.zeta50
    apart = curve_of(ZETAS, ladder(40, twice, ZETAS), (None,) * 40, target=None, seed=seed)
    assert apart.zeta50.zeta == alone.zeta50.zeta, "patients matter to the interval alone"


def test_the_same_seed_gives_the_same_interval() -> None:
    needed = np.linspace(0, 0.08, 50)
    one, other = (curve_of(ZETAS, ladder(50, needed, ZETAS), (None,) * 50, target=None, seed=3) for _ in range(2))
    assert one == other
