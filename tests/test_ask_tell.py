import numpy as np
import pytest

from uapray.ask_tell import AskTell, searcher

RULES = ("cma-es", "pso", "de", "ga")
GOAL = np.linspace(-0.5, 0.5, 12)


def begun(rule: str, seed: int = 0) -> AskTell:
    return searcher(rule, len(GOAL), population=16, spread=0.3, seed=seed)


def searched(search: AskTell, generations: int) -> np.ndarray:
    for _ in range(generations):
        points = search.ask()
        assert points.shape == (16, len(GOAL))
        search.tell(-((points - GOAL) ** 2).sum(1))
    return search.favourite


@pytest.mark.parametrize("rule", RULES)
def test_the_top_of_a_bowl_is_found(rule: str) -> None:
    assert ((searched(begun(rule), 200) - GOAL) ** 2).sum() < 0.02 * (GOAL**2).sum()


@pytest.mark.parametrize("rule", RULES)
def test_equal_seeds_give_equal_bits_and_leave_the_global_state_alone(rule: str) -> None:
    np.random.seed(1)
    first = searched(begun(rule), 5)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    search, other = begun(rule), begun(rule, seed=9)
    for _ in range(5):  # another search between, as in another thread
        searched(other, 1)
        again = searched(search, 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, searched(begun(rule, seed=1), 5))
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("rule", ["pso", "de", "ga"])
def test_points_stay_in_the_box(rule: str) -> None:
    search = begun(rule)
    for _ in range(20):
        points = search.ask()
        assert np.abs(points).max() <= 1
        search.tell(points.sum(1))
