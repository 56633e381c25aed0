import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uapray.attack.control import random_perturbation
from uapray.errors import ConfigError

orders = st.sampled_from([2.0, math.inf])
radii = st.floats(1e-3, 10)
seeds = st.integers(0, 2**40)
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
IMAGE = (3, 48, 48)


@given(orders, radii, seeds, shapes)
def test_lies_in_the_ball(p: float, xi: float, seed: int, shape: tuple[int, ...]) -> None:
    v = random_perturbation(shape, p=p, xi=xi, seed=seed)
    assert v.shape == shape
    assert v.dtype == torch.float32
    assert torch.linalg.vector_norm(v.double(), ord=p) <= xi * (1 + 1e-6)
    assert v.abs().max() > 0


@given(orders, seeds)
def test_the_seed_alone_decides(p: float, seed: int) -> None:
    state = torch.random.get_rng_state()
    first = random_perturbation((1, 5, 5), p=p, xi=0.1, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(random_perturbation((1, 5, 5), p=p, xi=0.1, seed=seed), first)
    assert not torch.equal(random_perturbation((1, 5, 5), p=p, xi=0.1, seed=seed + 1), first)


@given(radii, st.integers(0, 50))
def test_a_draw_from_the_cube_has_a_third_of_its_corners_energy(xi: float, seed: int) -> None:
    v = random_perturbation(IMAGE, p=math.inf, xi=xi, seed=seed).double()
    count = v.numel()
    # Mean and variance of u^2, u uniform in [-1, 1], are 1/3 and 4/45.
    assert float((v / xi).square().mean()) == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45 / count))
    assert float((v / xi).mean()) == pytest.approx(0, abs=5 * math.sqrt(1 / 3 / count))
    assert float(v.abs().max()) > 0.99 * xi


@given(radii, st.integers(0, 50))
def test_a_draw_from_the_l2_ball_of_images_lies_near_its_surface(xi: float, seed: int) -> None:
    v = random_perturbation(IMAGE, p=2, xi=xi, seed=seed)
    assert 0.995 * xi < float(v.double().norm()) <= xi * (1 + 1e-6)
    assert float((v.double() / xi).mean()) == pytest.approx(0, abs=5 / v.numel())


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_a_draw_is_uniform_in_the_volume(p: float) -> None:
    draws = torch.stack([random_perturbation((1, 1, 3), p=p, xi=2.0, seed=seed) for seed in range(800)]).flatten(1)
    inner = float((torch.linalg.vector_norm(draws, ord=p, dim=1) < 1).float().mean())
    assert inner == pytest.approx(1 / 8, abs=5 * math.sqrt(1 / 8 * 7 / 8 / 800))  # half the radius, three dimensions
    octants = torch.bincount(((draws > 0) * torch.tensor([1, 2, 4])).sum(1), minlength=8)
    assert octants.min() > 100 - 5 * math.sqrt(100)
    assert octants.max() < 100 + 5 * math.sqrt(100)


def test_other_orders_are_refused() -> None:
    with pytest.raises(ConfigError, match="p: expected 2 or inf, got 1"):
        random_perturbation((1, 2, 2), p=1, xi=0.1, seed=0)
