from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from uapray.race import Contender, Places, price, race


def run(truth: np.ndarray, first: int, seed: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    """Race perturbations whose scores ``(contenders, n, goals)`` are given; return also how many each was asked for."""
    count, images, goals = truth.shape
    field = [Contender.new(torch.tensor(float(one)), images, goals) for one in range(count)]
    asked = np.zeros(count, dtype=np.int64)

    def ask(contenders: Sequence[Contender], places: Places) -> None:
        for one in contenders:
            assert np.isnan(one.scores[places]).all(), "asked twice"
            one.scores[places] = truth[int(one.v), places]
            asked[int(one.v)] += len(places)

    winner, short = race(field, np.random.default_rng(seed).permutation(images), first, ask)
    return winner, short, asked


def drawn(seed: int, count: int, images: int, goals: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, images, goals))


sizes = (st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 50), st.integers(1, 3))


@given(*sizes)
def test_with_all_images_first_everyone_is_asked_for_all_and_the_best_wins(
    seed: int, count: int, images: int, goals: int
) -> None:
    truth = drawn(seed, count, images, goals)
    winner, short, asked = run(truth, images)
    value = truth.mean(1).max(1)
    assert (asked == images).all()
    assert winner == value.argmax()
    np.testing.assert_allclose(short, value - value.max(), atol=1e-12)


@given(*sizes, st.integers(1, 60))
def test_nobody_is_asked_for_more_than_all_images_and_the_winner_for_most(
    seed: int, count: int, images: int, goals: int, first: int
) -> None:
    winner, short, asked = run(drawn(seed, count, images, goals), first)
    assert (asked >= min(first, images)).all()
    assert asked[winner] == asked.max() <= images
    assert short[winner] == 0 >= short.max()
    assert asked.sum() == price(count, images, first)


@given(st.integers(0, 2**16), st.integers(2, 12), st.integers(1, 20))
def test_one_that_is_better_on_every_image_always_wins(seed: int, count: int, first: int) -> None:
    truth = drawn(seed, count, 40, 1)
    truth[count - 1] = truth.max(0) + 0.01
    assert run(truth, first)[0] == count - 1


def test_the_worse_half_drops_out_and_the_others_see_as_many_again() -> None:
    truth = np.arange(8.0)[:, None, None] + np.zeros((8, 100, 1))
    winner, short, asked = run(truth, 5)
    assert winner == 7
    assert asked.tolist() == [5, 5, 5, 5, 10, 10, 20, 40]
    assert short.tolist() == [-7, -6, -5, -4, -3, -2, -1, 0]


def test_of_equals_the_first_wins() -> None:
    assert run(np.zeros((3, 9, 1)), 4)[0] == 0
    assert run(np.zeros((3, 9, 1)), 9)[0] == 0
